"""Do the tests see mistakes in contracts? `python -m tests.settlement.mutations CONTRACT`.

Breaks a contract's source in one place after another (a check left out, a comparison turned, a
change of state forgotten, …), compiles it, and runs the tests that should notice until one does.
What no test notices is printed as SURVIVED: it needs a test, or a reason why it is no mistake.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

os.environ.setdefault("UNISONO_EVM", "translated")
os.environ.setdefault("UNISONO_SEQUENCES", "100")

TESTS = {
    "registry": ["test_registry.py", "test_conservation.py::TestRegistry"],
    "channels": ["test_channels.py", "test_conservation.py::TestChannels"],
    "committee": ["test_committee.py", "test_committee_conservation.py"],
    "court": ["test_court_rules.py", "test_court_money.py", "test_court.py"],
}
MODULES = {"registry": ["purse"], "channels": ["purse"]}
"""Further sources that belong to a contract."""

Rule = tuple[str, str]
RULES: list[Rule] = [
    (r" <= ", " < "),
    (r" >= ", " > "),
    (r" < ", " <= "),
    (r" > ", " >= "),
    (r" == ", " != "),
    (r" != ", " == "),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \+= ", " -= "),
    (r" -= ", " += "),
    (r" \* ", " // "),
    (r" // ", " * "),
    (r" and ", " or "),
    (r" or ", " and "),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"\bTrue\b", "False"),
    (r"\bFalse\b", "True"),
    (r"= 0$", "= 1"),
    (r"msg\.sender", "self"),
]
"""What is put in place of what."""
LEFT_OUT = re.compile(r"\s+(assert|log|self\.|purse\.|extcall|\w+(\.\w+)? [-+|]?= |\w+\.\w+ = )")
"""Statements that may be forgotten."""


@dataclass(frozen=True)
class Mutation:
    """One line of a source, broken."""

    source: str
    line: int
    """From 1."""
    before: str
    after: str

    def applied(self, text: str) -> str:
        """The broken source."""
        lines = text.splitlines(keepends=True)
        lines[self.line - 1] = self.after + "\n"
        return "".join(lines)

    def __str__(self) -> str:
        return f"{self.source}.vy:{self.line}: {self.before.strip()} -> {self.after.strip()}"


def mutations(source: str, text: str) -> Iterator[Mutation]:
    """All mutations of a contract's functions."""
    inside = prose = False
    for number, line in enumerate(text.splitlines(), 1):
        inside = inside or line.startswith(("@deploy", "@external", "@internal"))
        quotes = line.count('"""')
        if prose or quotes or not inside or not line.startswith(" ") or line.strip()[:1] == "#":
            prose ^= quotes % 2 == 1
            continue
        code = line.split("  #")[0].rstrip()
        for pattern, other in RULES:
            for place in re.finditer(pattern, code):
                changed = code[: place.start()] + other + code[place.end() :]
                yield Mutation(source, number, code, changed)
        condition = re.fullmatch(r"(\s+)(if|elif) (.*):", code)
        if condition:
            start, word, what = condition.groups()
            yield Mutation(source, number, code, f"{start}{word} not ({what}):")
        if LEFT_OUT.match(code) and all(code.count(a) == code.count(b) for a, b in ("()", "[]")):
            yield Mutation(source, number, code, re.match(r"\s+", code)[0] + "pass")  # type: ignore[index]


def compiled(contract: str, folder: Path) -> Any:
    """The artifact of a contract, or None if the compiler refuses it."""
    from vyper.cli.vyper_compile import compile_files
    from vyper.compiler.settings import Settings
    from vyper.exceptions import VyperException

    from unisono.settlement.artifacts import Artifact
    from unisono.settlement.build import EVM

    formats = ["abi", "bytecode", "bytecode_runtime"]
    os.chdir(folder)
    try:
        found = compile_files(
            [f"{contract}.vy"],
            formats,
            settings=Settings(evm_version=EVM),
            no_bytecode_metadata=True,
        )
    except VyperException:
        return None
    built = next(iter(found.values()))
    code, runtime = (built[x].removeprefix("0x") for x in formats[1:])
    return Artifact(contract, "", EVM, len(runtime) // 2, built["abi"], code)


class Judge:
    """Runs tests against broken contracts, each in a process that has imported everything."""

    def __init__(self, contract: str) -> None:
        import pytest
        from hypothesis import Phase, settings

        settings.register_profile("mutations", phases=[Phase.generate], database=None)
        settings.load_profile("mutations")
        self.contract, self._pytest = contract, pytest
        self.root = Path.cwd()
        from tests.settlement import conftest

        self._conftest = conftest
        self._compile = conftest._compile  # type: ignore[reportPrivateUsage]
        self._harness = {
            name: self._compile(conftest.HARNESSES / f"{name}.vy")
            for name in ("hostile_coin", "court_stub")
        }
        for test in {x.split("::")[0] for x in TESTS[contract]}:
            __import__(f"tests.settlement.{test.removesuffix('.py')}")

    def verdict(self, mutation: Mutation | None) -> str:
        """The test that notices, "" if none does, "refused" by the compiler."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            status = 1
            try:
                os.write(writing, self._tried(mutation).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading) as told:
            verdict = told.read()
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("the tests did not run")
        return verdict

    def _tried(self, mutation: Mutation | None) -> str:
        from unisono.settlement import artifacts
        from unisono.settlement.build import SOURCES

        with tempfile.TemporaryDirectory() as folder:
            sources, built = Path(folder, "contracts"), Path(folder, "artifacts")
            shutil.copytree(SOURCES, sources)
            shutil.copytree(str(artifacts.ARTIFACTS), built)
            if mutation:
                file = sources / f"{mutation.source}.vy"
                file.write_text(mutation.applied(file.read_text()))
            made = compiled(self.contract, sources)
            os.chdir(self.root)
            if made is None:
                return "refused"
            (built / f"{self.contract}.json").write_bytes(msgspec.json.encode(made))
            artifacts.ARTIFACTS = built
            artifacts.artifact.cache_clear()
            known = {**self._harness, self.contract: made}
            self._conftest._compile = lambda source: known.get(source.stem) or self._compile(source)  # type: ignore[reportPrivateUsage]
            seen = _Seen()
            tests = [f"tests/settlement/{x}" for x in TESTS[self.contract]]
            options = ["-x", "-q", "-m", "not slow and not anvil", "-p", "no:timeout", "-o"]
            options += [f"cache_dir={folder}/cache", "-W", "ignore", "-o", "timeout=0"]
            status = self._pytest.main([*tests, *options], plugins=[seen])
            if status and not seen.failed:
                raise RuntimeError(f"pytest ran no test: status {status}")
            return seen.failed


class _Seen:
    """Notes the first test that fails."""

    failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid.removeprefix("tests/settlement/")


def main() -> int:
    """The command; its exit status is 1 if a mutation survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.settlement.mutations")
    parser.add_argument("contract", choices=sorted(TESTS))
    parser.add_argument("--most", type=int, default=60, help="so many mutations, drawn by chance")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from unisono.settlement.build import SOURCES

    contract = arguments.contract
    names = [contract, *MODULES.get(contract, [])]
    found = [m for n in names for m in mutations(n, (SOURCES / f"{n}.vy").read_text())]
    random.Random(arguments.seed).shuffle(found)
    judge = Judge(contract)
    whole = judge.verdict(None)
    if whole:
        print(f"the contract as it is does not pass: {whole}")
        return 2
    killed = survived = 0
    for mutation in found:
        if killed + survived == arguments.most:
            break
        before = time.monotonic()
        verdict = judge.verdict(mutation)
        if verdict == "refused":
            continue
        killed, survived = killed + bool(verdict), survived + (not verdict)
        print(
            f"{verdict or 'SURVIVED'} | {mutation} | {time.monotonic() - before:.0f} s", flush=True
        )
    print(f"{contract}: {killed} of {killed + survived} noticed ({len(found)} possible)")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
