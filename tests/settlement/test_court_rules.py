"""The court's rules at deployment, and what it tells of money."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.settlement.courtroom import (
    BOND,
    CHALLENGER,
    DEPLOYER,
    MOVE_SECONDS,
    OPERATOR,
    OTHER,
    PAYER,
    PENALTY,
    RULES,
    UNBOND_SECONDS,
    Courtroom,
    courtroom,
)
from tests.settlement.evm import Reverted
from tests.verification.fraud.dispute import answer_of
from unisono.settlement.advocates import Appeal, State
from unisono.settlement.artifacts import artifact
from unisono.wire.claims import EPOCH_SECONDS

NAMES = (
    *("bond", "games", "penalty", "move_seconds", "epoch_seconds", "claim_seconds"),
    *("to_challenger", "to_payer", "to_defender"),
)
LONGEST = UNBOND_SECONDS - 2 * EPOCH_SECONDS - 1
"""Seconds in which a claim can be challenged, if its stake is not to leave before."""


@pytest.fixture(scope="module")
def built() -> Courtroom:
    return courtroom()


@pytest.fixture
def court(built: Courtroom) -> Iterator[Courtroom]:
    kept = built.evm.snapshot()
    yield built
    built.evm.restore(kept)


def deploy_with(at: Courtroom, own: bool = True, own_judge: bool = True, **rules: int) -> None:
    """A second court whose rules are those of the tests but for some."""
    evm, judge = at.evm, at.judge
    place = evm.next_address(DEPLOYER, 2)
    referees = [judge.view(x) for x in ("rows", "attention", "choice")]
    court_of_judge = place if own_judge else OTHER
    second = evm.deploy(artifact("judge"), DEPLOYER, court_of_judge, *referees)
    judges = [place] if own else []
    registry = evm.deploy(artifact("registry"), DEPLOYER, at.coin.address, UNBOND_SECONDS, judges)
    all_rules = tuple((dict(zip(NAMES, RULES, strict=True)) | rules).values())
    evm.deploy(artifact("court"), DEPLOYER, registry.address, second.address, all_rules)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"own": False}, "not this registry's court"),
        ({"own_judge": False}, "not this court's judge"),
        *(({x: 0}, "a rule is 0") for x in NAMES[:3]),
        *(({x: 0}, "no time for moves") for x in NAMES[3:5]),
        ({"to_payer": 10_000 - RULES[6] + 1}, "shares above the whole"),
        ({"to_defender": 10_001}, "shares above the whole"),
        ({"claim_seconds": LONGEST + 1}, "stakes could leave"),
    ],
)
def test_rules_that_do_not_fit_are_refused_at_deployment(
    court: Courtroom, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Reverted, match=reason):
        deploy_with(court, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"to_payer": 10_000 - RULES[6], "to_defender": 10_000},
        {"claim_seconds": LONGEST},
    ],
)
def test_rules_at_their_limits_are_taken(court: Courtroom, changes: dict[str, Any]) -> None:
    deploy_with(court, **changes)


def test_every_payment_is_told(court: Courtroom) -> None:
    """A game that the challenger loses by time, one that the defender loses, and two claims."""
    told, case = court.court.events, court.case(answer_of("llama"))
    court.enrol(case)

    def settled(challenger: str) -> list[tuple[str, dict[str, Any]]]:
        court.evm.pass_time(MOVE_SECONDS + 1)
        court.send(OTHER, case.settling(states[challenger]))
        return told()

    states: dict[str, State] = {}
    for person in (CHALLENGER, OTHER):
        states[person] = court.open(case, person)
    ((name, opened),) = told()
    digest = case.claim.digest(court.domain)
    assert (name, opened["claim"], opened["defender"]) == ("Opened", digest, OPERATOR.address)
    game = opened["game"]
    won = settled(OTHER)
    assert won == [
        ("Credited", {"owner": OTHER, "amount": states[OTHER].bond}),
        ("Settled", {"game": game, "loser": OPERATOR.address, "amount": PENALTY}),
    ]
    court.send(OTHER, Appeal("collect", (OTHER,)))
    assert told() == [("Collected", {"owner": OTHER, "amount": states[OTHER].bond})]
    late = settled(CHALLENGER)
    assert [x for x in late if x[0] == "Credited"] == [
        ("Credited", {"owner": CHALLENGER, "amount": BOND})
    ]
    assert late[-1][1]["amount"] == 0
    twin = replace(case.claim, rows_out=bytes(32)).signed_by(OPERATOR, court.domain)
    pair = [x for claim in (case.claim, twin) for x in (claim.words(), claim.signature)]
    free = court.registry.view("free", case.claim.node, OPERATOR.address)
    court.send(OTHER, Appeal("equivocate", tuple(pair)))
    who = {"node": case.claim.node, "operator": OPERATOR.address, "reporter": OTHER}
    assert told() == [("Equivocated", {**who, "amount": min(free, PENALTY)})]
    assert court.registry.view("credit", PAYER) > 0
