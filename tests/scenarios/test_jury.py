"""Committees on chain between real processes: chain, nodes on the bench, and a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.scenarios.bench import STAKE, STUBBORN, Assembly, Seated, assembly
from unisono.compose import instruction
from unisono.compose.crooked import WEIGHTS
from unisono.compose.trial_model import trial_model
from unisono.models.store import StoredModel
from unisono.settlement.briefs import Brief
from unisono.settlement.jury_work import task_of
from unisono.settlement.ledger.deploy import TERMS
from unisono.verification.audit_note import CaseNote
from unisono.verification.receipt import Receipt
from unisono.verification.stakes.committee import Outcome
from unisono.verification.verdict import Verdict, fault_of
from unisono.wire.claims import HopClaim

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PENALTY, BOND, FEE, FINE = (TERMS[name] for name in ("penalty", "bond", "fee", "fine"))
PAID = BOND + 3 * FEE
SHARES = PENALTY * (TERMS["to_challenger"] + TERMS["to_payer"]) // 10_000
"""The opener's and the payer's: the gateway that asked is both."""
COURT_BOND = TERMS["bond"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    return trial_model(tmp_path_factory.mktemp("trial"))


async def case_of(it: Assembly, receipt: Receipt) -> CaseNote | None:
    """What the receipt says of a case."""
    notes = (await it.receipt(receipt.id)).audits or ()
    return notes[0].case if notes else None


async def ended(it: Assembly, receipt: Receipt) -> CaseNote:
    """How the case about an answer ended."""

    async def look() -> CaseNote | None:
        case = await case_of(it, receipt)
        return case if case is not None and case.outcome != "open" else None

    return await it.until(look, 450)


def bench_of(it: Assembly) -> list[Seated]:
    """Four members."""
    return [it.prepare(f"node-{n}") for n in range(4)]


async def deposits(it: Assembly, members: list[Seated]) -> list[int]:
    found = [await it.place(member) for member in members]
    return [0 if place is None else place.deposit for place in found]


async def test_a_wrong_weight_is_found_accused_and_slashed_across_a_restart(
    model: StoredModel, tmp_path: Path
) -> None:
    async with assembly(tmp_path, model) as it:
        members = bench_of(it)
        crooked = it.prepare("crooked", WEIGHTS, bench=0, price=1)
        await it.start(*members, crooked)
        receipt = await it.asked_of(crooked)
        before = await it.money()
        await it.until(lambda: case_of(it, receipt))
        await it.restart_front()
        case = await ended(it, receipt)
        assert (case.outcome, case.paid, case.got) == ("convicted", PAID, BOND + SHARES)
        assert await it.stake(crooked) == (STAKE - PENALTY, 0)
        after = await it.money()
        assert after["opener"] - before["opener"] == case.got - case.paid
        gains = sorted(after[member.id] - before[member.id] for member in members)
        assert gains == [0, FEE, FEE, FEE]
        assert await deposits(it, members) == [TERMS["unit"]] * 4
        metrics = it.front.metrics
        assert metrics.cases.labels("convicted")._value.get() == 1
        assert metrics.case_units.labels("got")._value.get() == case.got


def calls_everything_false(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway finds every claim false, whatever its committees say."""

    def judge(self: Outcome, claim: HopClaim, rows_in: str) -> Verdict:
        return Verdict("INVALID", fault_of(claim, "rows_out", "a lie"), "a lie")

    monkeypatch.setattr(Outcome, "judge", judge)


def gives_other_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway tells members of another prompt than it asked about."""

    def lying(brief: Brief, *rest: Any) -> Any:
        request = brief.subject.request
        other = msgspec.structs.replace(request, prompt=(*request.prompt[:-1], 11))
        subject = msgspec.structs.replace(brief.subject, request=other)
        return task_of(msgspec.structs.replace(brief, subject=subject), *rest)

    monkeypatch.setattr(instruction, "task_of", lying)


async def test_an_honest_node_contests_a_lying_gateway_and_keeps_its_stake(
    model: StoredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_everything_false(monkeypatch)
    async with assembly(tmp_path, model) as it:
        members = bench_of(it)
        honest = it.prepare("honest", bench=0, price=1)
        await it.start(*members, honest)
        with monkeypatch.context() as lies:
            gives_other_inputs(lies)
            receipt = await it.asked_of(honest)
            before = await it.money()
            case = await ended(it, receipt)
        assert (case.outcome, case.paid, case.got) == ("acquitted", PAID, 3 * FEE)
        assert await it.stake(honest) == (STAKE, 0)
        after = await it.money()
        assert after["opener"] - before["opener"] == 3 * FEE - PAID - COURT_BOND
        # who was given other inputs is fined with the majority that it was part of
        assert sum(await deposits(it, members)) == 4 * TERMS["unit"] - 3 * FINE
        # members that are given the right ones say that the next one is honest, too
        receipt = await it.ask(5)
        case = await ended(it, receipt)
        assert (case.outcome, case.paid) == ("right", PAID)
        assert case.got == BOND - BOND * TERMS["to_defender"] // 10_000


async def test_a_guilty_node_that_contests_loses_before_the_court_too(
    model: StoredModel, tmp_path: Path
) -> None:
    # it has no proof of its weights for its last move, and loses by its time for that
    async with assembly(tmp_path, model, {"contest_seconds": 30}) as it:
        members = bench_of(it)
        stubborn = it.prepare("stubborn", STUBBORN, bench=0, price=1)
        await it.start(*members, stubborn)
        receipt = await it.asked_of(stubborn)
        before = await it.money()
        case = await ended(it, receipt)
        assert (case.outcome, case.paid, case.got) == ("guilty", PAID, BOND + SHARES)
        # both judges had locked a penalty
        assert await it.stake(stubborn) == (STAKE - 2 * PENALTY, 0)
        after = await it.money()
        assert after["opener"] - before["opener"] == 2 * SHARES - 3 * FEE


async def test_members_that_are_given_nothing_abstain_and_lose_nothing(
    model: StoredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*arguments: object) -> None:
        pass

    monkeypatch.setattr(instruction.Instruction, "give", nothing)
    async with assembly(tmp_path, model, {"commit_seconds": 16}) as it:
        members = bench_of(it)
        crooked = it.prepare("crooked", WEIGHTS, bench=0, price=1)
        await it.start(*members, crooked)
        receipt = await it.asked_of(crooked)
        case = await ended(it, receipt)
        assert (case.outcome, case.paid, case.got) == ("undecided", PAID, PAID)
        assert await deposits(it, members) == [TERMS["unit"]] * 4
        assert await it.stake(crooked) == (STAKE, 0)
