"""Committed artifacts are what the sources compile to, and load without a compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import rlp
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from tests.settlement.evm import account
from unisono.errors import ConfigurationError
from unisono.settlement import build
from unisono.settlement.artifacts import (
    RUNTIME_LIMIT,
    artifact,
    artifact_names,
    contract_address,
)
from unisono.settlement.eip712 import address_bytes, checksummed

GOOD = "# pragma version ==0.4.3\n@external\ndef f() -> uint256:\n    return 1\n"
LARGE = f"\n@external\ndef g() -> Bytes[32768]:\n    return x'{'5a' * 25_000}'\n"
MODULE = "# pragma version ==0.4.3\n@internal\ndef f() -> uint256:\n    return 1\n"


def test_artifacts_load_in_a_process_that_has_no_compiler() -> None:
    code = (
        "import sys; sys.modules['vyper'] = None\n"
        "from unisono.settlement.artifacts import artifact, artifact_names\n"
        "print(all(artifact(x).creation for x in artifact_names()), 'vyper.ast' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_every_artifact_fits_on_a_chain() -> None:
    assert {"registry", "channels", "stablecoin"} <= set(artifact_names())
    for name in artifact_names():
        found = artifact(name)
        assert found.contract == name
        assert 0 < found.runtime_bytes <= RUNTIME_LIMIT


def test_an_unknown_contract_is_named_in_the_error() -> None:
    with pytest.raises(ConfigurationError, match=r"'bank': known are .*registry"):
        artifact("bank")


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**160 - 1))
def test_a_contracts_address_follows_from_deployer_and_nonce(nonce: int, number: int) -> None:
    deployer = account(number)
    expected = keccak(rlp.encode([address_bytes(deployer), nonce]))[12:]
    assert contract_address(deployer, nonce) == checksummed(expected)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_committed_artifacts_are_what_the_sources_compile_to() -> None:
    assert build.differences(build.SOURCES, build.FOLDER / "artifacts") == []


@pytest.mark.slow
def test_differences_are_told_one_by_one(tmp_path: Path) -> None:
    sources, artifacts = tmp_path / "contracts", tmp_path / "artifacts"
    sources.mkdir()
    (sources / "good.vy").write_text(GOOD)
    (sources / "module.vy").write_text(MODULE)
    assert build.write(sources, artifacts) == ["good"]
    assert build.write(sources, artifacts) == []
    assert build.differences(sources, artifacts) == []
    (sources / "good.vy").write_text(GOOD.replace("return 1", "return 2"))
    (sources / "new.vy").write_text(GOOD)
    (artifacts / "old.json").write_text("{}")
    told = build.differences(sources, artifacts)
    assert [sentence.split()[0] for sentence in told] == ["old.json", "good.json", "new.json"]
    assert build.write(sources, artifacts) == ["good", "new"]
    assert not (artifacts / "old.json").exists()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("# pragma version ==0.4.3\n@external\ndef f(:\n", "does not compile"),
        (GOOD + LARGE, "24576"),
    ],
)
def test_a_source_that_no_chain_takes_is_an_error(tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / "bad.vy").write_text(source)
    with pytest.raises(ConfigurationError, match=rf"bad.vy (?s:.*){reason}"):
        build.compile_contract(tmp_path / "bad.vy")
