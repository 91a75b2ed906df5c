"""What this machine is, as far as speed depends on it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def describe() -> dict[str, str]:
    """Processor, cores, instruction sets, kernels and versions that figures depend on."""
    from unisono.native.library import kernels

    name, flags = platform.processor() or platform.machine(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
    sets = [f for f in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if f in flags]
    return {
        "processor": name,
        "cores": str(os.cpu_count()),
        "instructions": " ".join(sets) or platform.machine(),
        "kernels": kernels(),
        "python": platform.python_version(),
        "unisono": version("unisono"),
        "revision": revision(),
    }


def revision() -> str:
    """The git revision of this source tree; empty for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def resident_bytes(pid: int | str = "self") -> int:
    """Memory that a process holds (its own, not shared file pages); 0 where Linux does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
