"""Contracts compiled as their sources are now."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
import pytest

from unisono.settlement.artifacts import Artifact
from unisono.settlement.build import EVM, SOURCES

HARNESSES = Path(__file__).parent / "contracts"
"""Contracts that show to tests what modules have inside."""

Compiled = Callable[[str], Artifact]


def _compile(source: Path) -> Artifact:
    command = [sys.executable, "-m", "vyper", "-f", "combined_json", "--no-bytecode-metadata"]
    command += ["--evm-version", EVM, "-p", str(SOURCES), str(source)]
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{source.name} does not compile: {done.stderr[-3000:]}")
    printed = msgspec.json.decode(done.stdout)
    version = printed.pop("version")
    built = next(iter(printed.values()))
    size = len(built["bytecode_runtime"]) // 2 - 1
    code = built["bytecode"].removeprefix("0x")
    return Artifact(source.stem, version, EVM, size, built["abi"], code)


@pytest.fixture(scope="session")
def compiled(pytestconfig: pytest.Config) -> Compiled:
    """A contract or harness by name. Kept between runs until any source changes."""
    folder = Path(pytestconfig.cache.mkdir("contracts"))  # type: ignore[union-attr]
    sources = sorted((*SOURCES.glob("*.vy"), *HARNESSES.glob("*.vy")))
    state = hashlib.sha256(EVM.encode() + b"".join(x.read_bytes() for x in sources)).hexdigest()

    @cache
    def get(name: str) -> Artifact:
        file = folder / f"{name}.{state[:16]}.json"
        if not file.is_file():
            made = _compile(next(x for x in sources if x.stem == name))
            for old in folder.glob(f"{name}.*.json"):
                old.unlink(missing_ok=True)
            part = file.with_suffix(f".{os.getpid()}")  # tests may run beside each other
            part.write_bytes(msgspec.json.encode(made))
            part.replace(file)
            return made
        return msgspec.json.decode(file.read_bytes(), type=Artifact)

    return get
