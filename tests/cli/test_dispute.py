"""`unisono dispute --on-chain`: what is refused before anything is asked, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from unisono.cli.app import app
from unisono.cli.court import Plaint, verdict
from unisono.compose.chain_settings import ChainSettings
from unisono.compose.prosecution import Outcome
from unisono.errors import ConfigurationError
from unisono.settlement.courthouses import CourtRules

CHAIN = ("--chain-rpc", "http://127.0.0.1:1", "--deployment", "network.json")
RULES = CourtRules(10, 16, 100, 60, 60, 600, 5_000, 3_000, 5_000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--on-chain needs --chain-rpc, --deployment and --key"),
        (("--key", "k"), "--on-chain needs --chain-rpc, --deployment and --key"),
        (("--deployment", "network.json"), "--deployment needs a chain"),
        (("--chain-rpc", "http://127.0.0.1:1"), "needs --deployment"),
        (CHAIN, "outlives this process"),
        ((*CHAIN, "--key", "k"), "cannot read the receipt none.json"),
    ],
)
def test_a_challenger_is_told_what_is_missing(arguments: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(app, ["dispute", "none.json", "--on-chain", *arguments])
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())


def test_a_key_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    plaint = Plaint(ChainSettings("", ""), str(path), None, None, tuple, None)
    with pytest.raises(ConfigurationError, match="there is no key in"):
        plaint.identity()
    assert not path.exists()


@pytest.mark.parametrize(
    ("outcome", "own", "told"),
    [
        ((True, 100, 90, True, False), True, "was wrong, and lost 100.000000 of its stake"),
        ((True, 100, 90, True, False), True, "collected 90.000000 with its bond and as the one"),
        ((True, 100, 60, False, False), False, "did not move in time"),
        ((True, 100, 60, False, False), False, "with its bond, the payer 30.000000"),
        ((True, 0, 10, False, False), False, "convicted in another game"),
        ((True, 100, 0, True, True), False, "collected 0.000000 now"),
        ((False, 10, 0, True, False), False, "LOST: the bond of 10.000000 is gone; the node was"),
        ((False, 10, 0, False, False), False, "this side did not move in time"),
    ],
)
def test_an_end_is_told_in_words(
    outcome: tuple[bool, int, int, bool, bool], own: bool, told: str
) -> None:
    won, amount, collected, on_time, was_over = outcome
    units = 1_000_000
    ended = Outcome(
        "aa", won, 0, (), units * amount, units * collected, 30 * units, 0, on_time, was_over
    )
    assert told in verdict(ended, own)


def test_the_next_bond_is_the_contracts() -> None:
    assert [RULES.bond_of(n) for n in (1, 2, 16, 32)] == [10, 20, 160, 640]
