"""The compiled kernels; everything else is in pyproject.toml.

They are built for the processor of the machine that installs them (`UNISONO_ARCH` names another,
as the compiler's -march takes it). Without a compiler the installation goes on without them.
"""

import os
import platform
import sys
from glob import glob

from setuptools import Extension, setup

x86 = platform.machine().lower() in ("x86_64", "amd64")
arch = os.environ.get("UNISONO_ARCH", "native")
flags = ["/O2", "/std:c++17"]
if sys.platform != "win32":
    # signed overflow wraps, as in the other implementations of the same integers
    flags = ["-std=c++17", "-O3", "-fwrapv", "-pthread", "-g0", "-w"]
    flags.append(f"-march={arch}" if x86 else f"-mcpu={arch}")

setup(
    ext_modules=[
        Extension(
            "unisono.native._kernels",
            sources=sorted(glob("src/unisono/native/cpp/*.cpp")),
            depends=sorted(glob("src/unisono/native/cpp/*.h")),
            language="c++",
            extra_compile_args=flags,
            optional=True,
        )
    ]
)
