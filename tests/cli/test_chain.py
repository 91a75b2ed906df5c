"""`unisono chain`: from nothing to a network's contracts, and what goes wrong on the way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.program import answered, started, unisono
from unisono.cli.app import app


@pytest.fixture(autouse=True)
def weak_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNISONO_TEST_KEY_STRENGTH", "2")
    monkeypatch.setenv("UNISONO_PASSPHRASE", "open sesame")


@pytest.fixture
def chain(tmp_path: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    """A chain that runs, and where."""
    process = started("chain", "serve", "--port", "0")
    assert process.stdout is not None
    url = process.stdout.readline().split()[1]
    yield process, url
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_network_is_deployed_and_checked(
    chain: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, url = chain
    file = tmp_path / "network.json"
    deploy = ("chain", "deploy", "--chain-rpc", url, "--out", file)
    missing = unisono(*deploy)
    assert missing.returncode == 1
    assert "unisono keys new" in missing.stderr
    answered("keys", "new")
    done = unisono(*deploy, "--term", "delay=2000000")
    assert done.returncode == 0, done.stderr
    contracts = json.loads(file.read_text())["contracts"]
    assert {"stablecoin", "registry", "channels"} <= set(contracts)
    check = ("chain", "check", "--chain-rpc", url, "--deployment", file)
    assert set(answered(*check)["contracts"]) == set(contracts)
    place = ("--chain-rpc", url, "--deployment", file)
    owner = answered("keys", "list")["keys"][0]
    for total in (2_500_000, 5_000_000):  # the same again is made again
        minted = unisono("chain", "mint", owner, "2.5", *place)
        assert minted.returncode == 0, minted.stderr
        assert answered("wallet", "show", *place)["coins"] == total
    nothing = unisono("wallet", "collect", *place)
    assert (nothing.returncode, nothing.stdout) == (0, "collected 0.000000\n")
    answered("keys", "new")
    (other,) = set(answered("keys", "list")["keys"]) - {owner}
    refused = unisono("chain", "mint", owner, "1", *place, "--account", other)
    assert refused.returncode == 1
    assert "only the minter makes coins" in refused.stderr
    again = unisono(*deploy)
    assert again.returncode == 1
    assert "already" in again.stderr
    other = unisono("chain", "serve", "--port", "0")
    assert other.returncode == 1
    assert "another process runs the chain" in other.stderr
    process.kill()
    process.wait()
    gone = unisono(*check)
    assert gone.returncode == 1
    assert "does not answer" in gone.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--term", "delay"), "NAME=NUMBER"),
        (("--term", "colour=3"), "NAME=NUMBER"),
        (("--coin", "0x12"), "is no address"),
        (("--chain-rpc", "chain:8545"), "address must be"),
    ],
)
def test_bad_input_is_refused_before_anything_happens(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    run = CliRunner().invoke
    assert run(app, ["keys", "new"]).exit_code == 0
    file = tmp_path / "network.json"
    done = run(app, ["chain", "deploy", "--out", str(file), *arguments])
    assert done.exit_code == 1
    assert words in done.stderr
    assert not file.exists()


def test_a_file_that_is_no_deployment_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "network.json"
    file.write_text("[]")
    done = CliRunner().invoke(app, ["chain", "check", "--deployment", str(file)])
    assert done.exit_code == 1
    assert "not a deployment file" in done.stderr
