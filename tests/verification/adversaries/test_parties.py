from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import msgspec
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import tiny_network
from tests.verification.adversaries.test_nodes import requests
from tests.verification.adversaries.trial import Court, Served, serve
from unisono.clock import VirtualClock
from unisono.errors import AnswerInterrupted
from unisono.execution.session import HopSession
from unisono.execution.signed import SignedClaims
from unisono.simulation.adversaries_stakes import Colluding, Juror, LazyByAgreement
from unisono.verification.adversaries.answering import OtherPrompt
from unisono.verification.adversaries.disputing import Griefing, Slow
from unisono.verification.adversaries.signing import Equivocation, ReplayedReceipt
from unisono.verification.evidence import judge
from unisono.verification.fraud.moves import MOVE_SECONDS
from unisono.verification.fraud.transcript import judge as judge_transcript
from unisono.wire.claims import HopClaim


@pytest.fixture(scope="module")
def court(tiny_models: TinyModels) -> Iterator[Court]:
    made = Court(tiny_models.store, tiny_models.llama)
    yield made
    made.close()


@pytest.fixture(scope="module")
def honest(court: Court) -> Served:
    return asyncio.run(serve(court.model, requests(court.model, 1), blocks=2))[0]


def test_old_claims_under_a_new_request_show_in_the_receipt(court: Court, honest: Served) -> None:
    past = ReplayedReceipt(honest.receipt, honest.gateway)
    fresh = requests(court.model, 2)[1]
    for forged, kind in (
        (past.resent(fresh), "request_altered"),
        (past.restamped(fresh, honest.hops), "rows_in"),
    ):
        fault = court.form(Served(forged, honest.hops, honest.gateway, honest.rows_out, None))
        assert fault is not None
        assert (fault.kind, fault.node) == (kind, honest.claim.node)


class SignsAsBefore(SignedClaims):
    """A node that signs for the first answer's rows in every session."""

    first: HopClaim | None = None

    def sign(self, session: HopSession, tokens: int) -> HopClaim:
        made = super().sign(session, tokens)
        type(self).first = type(self).first or made
        assert type(self).first is not None
        again = msgspec.structs.replace(type(self).first, session=made.session)
        return again.signed_by(self._identity)


async def test_a_gateway_takes_no_old_claim_for_a_new_answer(
    court: Court, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = requests(court.model, 2)
    async with tiny_network(court.model, 1) as network:
        network.nodes[0].worker._signed.__class__ = SignsAsBefore
        await network.answer(one)
        with pytest.raises(AnswerInterrupted):
            await network.answer(other)
    assert "signed another claim than was due" in caplog.text


def test_two_results_for_one_session_convict_whoever_signed_both(honest: Served) -> None:
    evidence = Equivocation(honest.hops[0]).evidence(honest.claim)
    verdict = judge(evidence)
    assert verdict.verdict == "INVALID"
    assert verdict.fault is not None
    assert verdict.fault.node == honest.claim.node


async def test_a_challenger_that_contradicts_at_random_loses(court: Court, honest: Served) -> None:
    for seed in range(5):
        griefing = Griefing(court.challenger, random.Random(seed))
        conviction, arbiter = await court.dispute(honest, challenger=griefing)
        assert (conviction.party, conviction.node) == ("challenger", court.challenger.node_id)
        verdict = judge_transcript(arbiter.transcript())
        assert verdict.fault is not None
        assert verdict.fault.node == court.challenger.node_id


async def test_slow_moves_delay_a_conviction_and_do_not_prevent_it(court: Court) -> None:
    served = (await serve(court.model, requests(court.model, 1), OtherPrompt))[0]
    clock = VirtualClock()
    begun = clock.now()
    slow = Slow(court.defender(served), MOVE_SECONDS - 1)
    conviction, arbiter = await court.dispute(served, slow, clock=clock)
    assert (conviction.party, conviction.reason) == ("defender", "false_step")
    assert len(arbiter.game.moves) <= 40
    assert clock.now() - begun <= 40 * MOVE_SECONDS


async def test_who_lets_its_time_run_out_loses_at_once(court: Court, honest: Served) -> None:
    late = MOVE_SECONDS + 1.0
    griefing = Slow(Griefing(court.challenger, random.Random(1)), late)
    conviction, _ = await court.dispute(honest, challenger=griefing)
    assert (conviction.party, conviction.reason) == ("challenger", "timeout")
    conviction, _ = await court.dispute(honest, Slow(court.defender(honest), late))
    assert (conviction.party, conviction.reason) == ("defender", "timeout")


async def test_a_committee_that_wrongly_convicts_is_corrected_by_a_dispute(court: Court) -> None:
    """A majority of colluders decides a committee. The fraud game decides by arithmetic."""
    served = (await serve(court.model, requests(court.model, 1)))[0]
    truth = court.truth(served)
    verdict, _, _ = await court.committee(served, truth, 3, Colluding, 1.0)
    assert verdict.verdict == "INVALID"
    challenger = Griefing(court.challenger, random.Random(2))
    conviction, _ = await court.dispute(served, challenger=challenger)
    assert conviction.party == "challenger"


async def test_a_minority_of_friends_neither_saves_a_cheat_nor_harms_others(court: Court) -> None:
    served = (await serve(court.model, requests(court.model, 1), OtherPrompt))[0]
    true = (await serve(court.model, requests(court.model, 1)))[0]
    truth = court.truth(served)
    for _ in range(20):
        # of nine or more members at most a few are friends
        verdict, faults, friends = await court.committee(served, truth, 9, LazyByAgreement, 0.05)
        assert verdict.verdict == "INVALID"
        assert {f.node for f in faults} <= friends
        verdict, faults, friends = await court.committee(
            true, court.truth(true), 9, Colluding, 0.05
        )
        assert verdict.verdict == "VALID"
        assert {f.node for f in faults} <= friends


async def test_honest_committees_blame_nobody(court: Court, honest: Served) -> None:
    verdict, faults, _ = await court.committee(honest, court.truth(honest), 5, Juror, 0.0)
    assert verdict.verdict == "VALID"
    assert not faults
