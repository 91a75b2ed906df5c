"""Credits for service levels on paid answers: both sides tally and spend alike."""

from __future__ import annotations

import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import request_for
from tests.scenarios.test_payments import Market, market
from unisono.models.store import StoredModel
from unisono.wire.records import NodeRecord


@pytest.fixture
def model(tiny_models: TinyModels) -> StoredModel:
    return tiny_models.llama


def windows_of(made: Market) -> tuple[int, ...]:
    """A test may run over midnight."""
    now = int(made.network.clock.now())
    return now // 86_400 - 1, now // 86_400


async def test_both_sides_tally_what_was_signed_for_and_spend_what_comes_back(
    model: StoredModel,
) -> None:
    async with market(model, (0, model.layer_count)) as made:
        request = request_for(model, max_tokens=12)
        await made.network.answer(request)
        ours, _ = await made.settled(0)
        (record,) = made.network.members.records()
        (place,) = [p for p, _, _ in made.purse.accounts()]
        till, gateway = made.tills[0], made.network.gateway.node_id
        total = 0
        for window in windows_of(made):
            paid = await made.purse.paid(record, window)
            there = till.credits.place_of(gateway, place.payer, place.payee, window)
            if there is None:
                assert not paid
                continue
            assert paid == till.credits.paid(there, gateway, window)
            total += paid
            units = await till.credit(gateway, place.payer, window, 400)
            came, least = await made.purse.credited(record, window, units, 400)
            assert came == units >= least
            assert units == paid * 400 // 1000
        assert total == ours.charged + sum(
            [await _given(made, record, window) for window in windows_of(made)]
        )
        ours, theirs = await made.settled(0)
        assert ours == theirs
        promised, credit = ours.promised, ours.credit
        # the next answer is paid with what came back
        await made.network.answer(request_for(model, max_tokens=1))
        ours, theirs = await made.settled(0)
        assert ours == theirs
        assert credit > 0
        assert ours.promised - promised < total


async def _given(made: Market, record: NodeRecord, window: int) -> int:
    (place,) = [p for p, _, _ in made.purse.accounts()]
    return made.purse.credits.given(place, record.node, window)


async def test_what_was_paid_ahead_and_lost_is_not_counted(model: StoredModel) -> None:
    async with market(model, (0, model.layer_count)) as made:
        answer = await made.network.swarm.open(request_for(model, max_tokens=40))
        async for _ in answer:
            break
        await answer.cancel()
        ours, _ = await made.settled(0)
        assert ours.charged > 0
        (record,) = made.network.members.records()
        assert [await made.purse.paid(record, w) for w in windows_of(made)] == [0, 0]
