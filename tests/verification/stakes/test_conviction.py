"""A conviction shows a stranger that a node lied, and nothing else does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.verification.stakes.audits import World, identity
from tests.verification.stakes.convictions import MODEL, TOKENS, Trial, altered, lie
from unisono.errors import ReceiptError
from unisono.types import LayerRange, Sampling
from unisono.verification.stakes.conviction import Conviction
from unisono.verification.stakes.lottery import LotteryKey
from unisono.verification.stakes.work import Answer


def test_a_committees_finding_convicts_and_shows_no_token() -> None:
    trial = Trial(World())
    conviction = trial.conviction(lie(trial))
    fault = conviction.check(trial.world.beacon)
    assert (fault.kind, fault.node) == ("rows_out", trial.world.node.node_id)
    assert conviction.node == trial.world.node.node_id
    data = msgspec.msgpack.encode(conviction)
    assert msgspec.msgpack.decode(data, type=Conviction) == conviction
    assert conviction.terms.prompt == ()
    assert len(data) < 8_000


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(repetition_penalty=80_000, seed=4)])
def test_other_tokens_than_the_rows_give_convict_too(sampling: Sampling) -> None:
    trial = Trial(World(), sampling=sampling)
    conviction = trial.conviction(trial.claim(tokens="22" * 32))
    assert conviction.check(trial.world.beacon).kind == "sampling"


def test_an_honest_node_is_not_convicted_by_other_sampling_or_another_prompt() -> None:
    trial = Trial(World())
    honest = trial.claim(tokens="22" * 32)
    for answer in (
        Answer(MODEL, trial.answer.prompt, TOKENS, Sampling(seed=9)),
        Answer(MODEL, (*trial.answer.prompt, TOKENS[0]), TOKENS[1:], Sampling()),
    ):
        conviction = trial.conviction(honest, answer=answer)
        with pytest.raises(ReceiptError, match=r"sampling settings|not the one"):
            conviction.check(trial.world.beacon)


def test_a_true_claim_a_split_committee_and_a_small_one_convict_nobody() -> None:
    trial = Trial(World())
    for conviction, problem in (
        (trial.conviction(trial.claim()), "computed what"),
        (trial.conviction(lie(trial), votes=1), "takes a majority"),
        (Trial(World(), seats=1).conviction(lie(trial)), "majority of at least 3"),
        (trial.conviction(lie(trial, rows_in="33" * 32)), "other inputs"),
    ):
        with pytest.raises(ReceiptError, match=problem):
            conviction.check(trial.world.beacon)


def test_nothing_in_a_conviction_can_be_exchanged() -> None:
    trial = Trial(World())
    good = trial.conviction(lie(trial))
    other = Trial(World(seed=5)).conviction(lie(trial))
    forged = altered(lie(trial), epoch=trial.epoch + 1)
    own_roster = altered(good.roster, roster=altered(good.roster.roster, verifiers=()))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"hops": (forged,)}, "not of this chain"),
        ({"hops": (trial.claim(),)}, "another claim"),
        ({"hops": (lie(trial, layers=LayerRange(1, 4)),)}, "continue"),
        ({"hops": (lie(trial, hop=1),)}, "chain"),
        ({"hop": 1}, "no hop"),
        ({"roster": own_roster}, "signed neither"),
        ({"roster": own_roster.signed_by(trial.world.auditor)}, "another roster"),
        ({"roster": altered(good.roster, auditor=identity(9).node_id)}, "another auditor"),
        ({"binding": LotteryKey(identity(9)).binding(identity(9), 0)}, "winning lot"),
        ({"binding": altered(good.binding, since=1)}, "signed neither"),
        ({"transcript": other.transcript}, "another claim|roster|winning"),
        ({"transcript": altered(good.transcript, tokens=bytes(32))}, "another task"),
        ({"transcript": altered(good.transcript, rows=bytes(32))}, "another task"),
        ({"transcript": altered(good.transcript, reveals=())}, "takes a majority"),
    ]
    for changes, problem in cases:
        with pytest.raises(ReceiptError, match=problem):
            altered(good, **changes).check(trial.world.beacon)


def test_claims_of_strangers_keep_nobody_from_a_committee() -> None:
    trial = Trial(World())
    good = trial.conviction(lie(trial))
    strange = trial.claim(identity(50), session="ab" * 16, hop=1, layers=LayerRange(4, 5))
    with pytest.raises(ReceiptError, match="not of this chain"):
        altered(good, hops=(*good.hops, strange)).check(trial.world.beacon)
