"""Disputes on chains between real processes: chain, node, gateway and challenger."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cli.program import UNISONO
from unisono.compose.dispute_demo import HONEST, Demonstration, answered, demonstration
from unisono.compose.trial_model import trial_model
from unisono.models.catalog import DEFAULT_MODEL
from unisono.models.store import ModelStore, StoredModel
from unisono.settlement.ledger.anvil import find_anvil

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MOVE_SECONDS = 120
"""About the default model, also on a busy machine; the liar is that late in the end."""
LEDGERS = [
    "embedded",
    pytest.param(
        "anvil",
        marks=[
            pytest.mark.anvil,
            pytest.mark.skipif(find_anvil() is None, reason="make test-anvil fetches it"),
        ],
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    return trial_model(tmp_path_factory.mktemp("trial"))


@pytest.fixture(params=LEDGERS)
async def demo(request: pytest.FixtureRequest, model: StoredModel) -> AsyncIterator[Demonstration]:
    async with demonstration(model, request.param, 60) as made:
        yield made


async def test_liars_are_slashed_and_an_honest_node_wins(demo: Demonstration) -> None:
    for conduct in ("probability", "chosen", HONEST):
        shown = await demo.show(conduct)
        assert shown is not None
        assert shown.is_right, shown
        assert shown.outcome.gas < 5_000_000


async def test_a_node_that_was_killed_goes_on_with_its_defence(demo: Demonstration) -> None:
    async with demo.network(HONEST) as network:
        receipt = await answered(network.front)
        target = demo.target(receipt, HONEST)

        begun = asyncio.Event()

        def told(text: str) -> None:
            if text == "playing":
                begun.set()

        async def kill() -> None:
            await begun.wait()
            await asyncio.sleep(2)  # some moves into the game
            await network.stop_node(kill=True)
            await network.start_node()

        shown, _ = await asyncio.gather(demo.dispute(network, receipt, target, told), kill())
    assert shown.is_right, shown


@pytest.mark.timeout(900)
@pytest.mark.parametrize("ledger", LEDGERS)
async def test_a_wrong_weight_of_the_default_model_is_slashed(ledger: str) -> None:
    model = ModelStore().cached(DEFAULT_MODEL)
    if model is None:
        pytest.skip("the default model is not here")
    async with demonstration(model, ledger, MOVE_SECONDS) as demo:
        for conduct in ("weights", HONEST):
            shown = await demo.show(conduct)
            assert shown is not None
            assert shown.is_right, shown


def test_the_verb_shows_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [*UNISONO, "dispute", "demo", "--operator", "embed", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"UNISONO_STATE": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = [(x["conduct"], x["right"], x["challenger_won"]) for x in told["disputes"]]
    assert told["right"]
    assert found == [("token", True, True), ("embed", True, True), ("honest", True, False)]
