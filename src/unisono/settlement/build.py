"""Compiles the contracts: `python -m unisono.settlement.build [--check]`.

Every `contracts/NAME.vy` that has a function to call from outside becomes `artifacts/NAME.json`;
the others are modules, which contracts import. With `--check` nothing is written: the exit status
is 1 unless every artifact is what its source compiles to. Needs the compiler, which running does
not: `pip install -e '.[dev]'`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from unisono.errors import ConfigurationError, UnisonoError
from unisono.settlement.artifacts import RUNTIME_LIMIT, Artifact

FOLDER = Path(__file__).parent
SOURCES = FOLDER / "contracts"
EVM = "cancun"
"""The oldest version of the EVM that has all instructions used: transient storage, MCOPY."""


class _Output(msgspec.Struct):
    abi: list[dict[str, Any]]
    bytecode: str
    bytecode_runtime: str


def compile_contract(source: Path) -> Artifact | None:
    """What a source compiles to, or None for a module.

    Raises:
        ConfigurationError: the compiler is missing or refuses the source, or its code is larger
            than a chain takes.
    """
    command = [sys.executable, "-m", "vyper", "-f", "combined_json", "--no-bytecode-metadata"]
    command += ["--evm-version", EVM, source.name]
    done = subprocess.run(command, cwd=source.parent, capture_output=True)
    if done.returncode:
        told = done.stderr.decode(errors="replace")
        if "No module named vyper" in told:
            raise ConfigurationError("there is no Vyper compiler: pip install -e '.[dev]'")
        raise ConfigurationError(f"{source.name} does not compile: {told}")
    printed = msgspec.json.decode(done.stdout, type=dict[str, msgspec.Raw])
    version = msgspec.json.decode(printed["version"], type=str)
    built = msgspec.json.decode(printed[source.name], type=_Output)
    if not any(entry["type"] == "function" for entry in built.abi):
        return None
    size = len(built.bytecode_runtime) // 2 - 1
    if size > RUNTIME_LIMIT:
        raise ConfigurationError(
            f"{source.name} compiles to {size} bytes; a chain takes {RUNTIME_LIMIT}: split it"
        )
    return Artifact(source.stem, version, EVM, size, built.abi, built.bytecode.removeprefix("0x"))


def encoded(artifact: Artifact) -> bytes:
    """The contents of an artifact's file."""
    return msgspec.json.format(msgspec.json.encode(artifact), indent=1) + b"\n"


def differences(sources: Path, artifacts: Path) -> list[str]:
    """What is wrong with the artifacts of a folder of sources, a sentence each."""
    built = _built(sources)
    found = {x.stem for x in artifacts.glob("*.json")}
    wrong = [f"{name}.json has no source" for name in sorted(found - set(built))]
    for name, contents in built.items():
        file = artifacts / f"{name}.json"
        if not file.is_file():
            wrong.append(f"{name}.json is missing")
        elif file.read_bytes() != contents:
            wrong.append(f"{name}.json is not what {name}.vy compiles to")
    return wrong


def write(sources: Path, artifacts: Path) -> list[str]:
    """Compile a folder; returns the names of the artifacts that changed."""
    artifacts.mkdir(exist_ok=True)
    built = _built(sources)
    for file in artifacts.glob("*.json"):
        if file.stem not in built:
            file.unlink()
    changed: list[str] = []
    for name, contents in built.items():
        file = artifacts / f"{name}.json"
        if not file.is_file() or file.read_bytes() != contents:
            file.write_bytes(contents)
            changed.append(name)
    return changed


def _built(sources: Path) -> dict[str, bytes]:
    artifacts = (compile_contract(x) for x in sorted(sources.glob("*.vy")))
    return {x.contract: encoded(x) for x in artifacts if x is not None}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m unisono.settlement.build")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    try:
        if parser.parse_args(arguments).check:
            wrong = differences(SOURCES, FOLDER / "artifacts")
            for sentence in wrong:
                print(f"{sentence}: run python -m unisono.settlement.build", file=sys.stderr)
            return 1 if wrong else 0
        for name in write(SOURCES, FOLDER / "artifacts"):
            print(f"wrote artifacts/{name}.json")
    except UnisonoError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
