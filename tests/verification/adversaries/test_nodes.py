from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import TinyModels
from tests.verification.adversaries.trial import Court, Served, serve
from unisono.models.store import StoredModel
from unisono.simulation.adversaries_stakes import Juror
from unisono.types import Q16, GenerationRequest, Sampling
from unisono.verification.adversaries.answering import (
    CachedAnswer,
    IgnoredBan,
    OtherPrompt,
    OtherSeed,
    OtherTemperature,
    TruncatedContext,
    UncheckedDraft,
)
from unisono.verification.adversaries.computing import (
    Dishonest,
    FewerLayers,
    FourBitWeights,
    OtherWeights,
    PassedOn,
    RandomRows,
)
from unisono.verification.light.draw import Budget

TOKENS_ONLY = Budget(columns=0, samples=0, heads=1 << 20)
"""Of a whole answer."""
BANNED = tuple((t, IgnoredBan.BAN) for t in range(0, 300, 2))
ROWS = (
    OtherWeights,
    FourBitWeights,
    FewerLayers,
    RandomRows,
    OtherPrompt,
    TruncatedContext,
    CachedAnswer,
)
TOKENS = (OtherSeed, OtherTemperature, IgnoredBan, UncheckedDraft)


def requests(model: StoredModel, count: int = 3, **changes: Any) -> list[GenerationRequest]:
    """Prompts that differ, and drawn tokens of which half are banned."""
    sampling = Sampling(temperature=Q16, logit_bias=BANNED, seed=7)
    return [
        GenerationRequest(
            model.id,
            tuple((11 * i + 7 * j * j + 5 * (j % 4)) % 300 for j in range(18)),
            changes.get("max_tokens", 8),
            sampling,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def court(tiny_models: TinyModels) -> Iterator[Court]:
    made = Court(tiny_models.store, tiny_models.llama)
    yield made
    made.close()


def dishonest(court: Court, attack: type[Dishonest], **options: Any) -> Served:
    """The last of some answers: what is cached is then another's."""
    asked = requests(court.model)
    return asyncio.run(serve(court.model, asked, attack, together=1, **options))[-1]


@pytest.mark.parametrize("attack", ROWS)
def test_rows_that_the_model_does_not_give_are_caught_by_every_audit(
    court: Court, attack: type[Dishonest]
) -> None:
    served = dishonest(court, attack)
    assert court.form(served) is None  # nothing shows without computing
    assert caught_by_replay(court, served) == "rows_out"
    assert caught_by_light_audit(court, served) == "operator"
    assert caught_by_committee(court, served) == "rows_out"
    conviction, _ = asyncio.run(court.dispute(served))
    assert (conviction.party, conviction.node) == ("defender", served.claim.node)


@pytest.mark.parametrize("attack", TOKENS)
def test_tokens_that_the_rows_do_not_give_are_caught_by_every_audit(
    court: Court, attack: type[Dishonest]
) -> None:
    served = dishonest(court, attack)
    assert court.form(served) is None
    assert caught_by_replay(court, served) == "sampling"
    assert caught_by_light_audit(court, served, TOKENS_ONLY) == "sampling"
    assert caught_by_committee(court, served) == "sampling"
    conviction, _ = asyncio.run(court.dispute(served))
    assert (conviction.party, conviction.node) == ("defender", served.claim.node)
    assert conviction.tensor == "chosen"


def test_of_a_colluding_pair_the_one_that_did_not_compute_is_caught(court: Court) -> None:
    """Neighbours agree about what went between them, and the friend computed what it signed."""
    served = dishonest(court, PassedOn, blocks=2)
    assert court.form(served) is None
    assert caught_by_replay(court, served) == "rows_out"
    assert caught_by_committee(court, served) == "rows_out"
    conviction, _ = asyncio.run(court.dispute(served))
    assert conviction.node == served.claim.node


def test_an_honest_node_is_accused_by_nothing(court: Court) -> None:
    for blocks in (1, 2, 4):
        for served in asyncio.run(serve(court.model, requests(court.model, 2), blocks=blocks)):
            assert court.form(served) is None
            assert court.replay(served).verdict == "VALID"
            assert court.light(served, court.trace(served)).verdict == "VALID"
            assert committee(court, served).verdict == "VALID"


def caught_by_replay(court: Court, served: Served) -> str:
    verdict = court.replay(served)
    assert verdict.verdict == "INVALID"
    assert verdict.fault is not None
    assert verdict.fault.node == served.claim.node
    return verdict.fault.kind


def caught_by_light_audit(court: Court, served: Served, budget: Budget = Budget()) -> str:
    verdict = court.light(served, court.trace(served), budget)
    assert verdict.verdict == "INVALID"
    assert verdict.fault is not None
    assert verdict.fault.node == served.claim.node
    return verdict.fault.kind


def committee(court: Court, served: Served) -> Any:
    truth = court.truth(served)
    verdict, faults, _ = asyncio.run(court.committee(served, truth, 3, Juror, 0.0))
    assert not faults
    return verdict


def caught_by_committee(court: Court, served: Served) -> str:
    verdict = committee(court, served)
    assert verdict.verdict == "INVALID"
    assert verdict.fault.node == served.claim.node
    return verdict.fault.kind
