"""The attacks on the default model, whose weights are not random."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.verification.adversaries.test_nodes import ROWS, TOKENS, caught_by_committee, requests
from tests.verification.adversaries.trial import Court, serve
from unisono.models.catalog import DEFAULT_MODEL
from unisono.models.store import ModelStore
from unisono.verification.adversaries.computing import Dishonest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def court() -> Iterator[Court]:
    store = ModelStore()
    made = Court(store, store.ensure(DEFAULT_MODEL))
    yield made
    made.close()


@pytest.mark.parametrize("attack", [*ROWS, *TOKENS])
def test_what_an_attack_changes_is_found_and_what_it_leaves_alone_is_not(
    court: Court, attack: type[Dishonest]
) -> None:
    asked = requests(court.model, 2, max_tokens=4)
    served = asyncio.run(serve(court.model, asked, attack, together=1))[-1]
    true = asyncio.run(serve(court.model, asked, together=1))[-1]
    assert court.form(served) is None
    verdict = court.replay(served)
    if (served.receipt.tokens, served.claim.rows_out) == (
        true.receipt.tokens,
        true.claim.rows_out,
    ):
        assert attack in TOKENS  # the model was so sure that the settings made no difference
        assert verdict.verdict == "VALID"
        return
    assert verdict.verdict == "INVALID"
    assert verdict.fault is not None
    assert verdict.fault.node == served.claim.node
    assert verdict.fault.kind == caught_by_committee(court, served)
    if attack in ROWS:
        light = court.light(served, court.trace(served))
        assert light.verdict == "INVALID"
