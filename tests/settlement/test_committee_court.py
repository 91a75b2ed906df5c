"""A contested verdict before the real court."""

from __future__ import annotations

import pytest

from tests.settlement import courtroom as c
from tests.settlement import jury as j
from tests.settlement.courtroom import COINS, DEPLOYER, OPERATOR, courtroom
from tests.settlement.evm import Contract, Reverted
from tests.settlement.jury import Jury
from tests.settlement.test_court import sides, step
from tests.verification.fraud.dispute import answer_of
from unisono.settlement.artifacts import artifact
from unisono.settlement.claims import SettlementClaim
from unisono.settlement.committees import Outcome
from unisono.verification.fraud.steps import Cell


def seated(room: c.Courtroom) -> Contract:
    """The room's second judge: a committee with a bench of nine."""
    made = room.evm.deploy(
        artifact("committee"), DEPLOYER, room.registry.address, room.court.address, j.RULES
    )
    for n, member in enumerate(j.MEMBERS):
        room.coin.send(DEPLOYER, "mint", member, COINS)
        room.coin.send(member, "approve", made.address, COINS)
        node = bytes((n + 1,)) * 32
        room.registry.send(member, "register", node, b"\1" * 32, b"\2" * 32)
        made.send(member, "enrol", node, 16)
    room.coin.send(c.CHALLENGER, "approve", made.address, COINS)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("defends", [False, True])
def test_after_a_contest_the_court_decides(defends: bool) -> None:
    room = courtroom()
    committee = seated(room)
    world = Jury(room.evm, room.coin, room.registry, room.court, committee)
    world.blocks(1)
    answer = answer_of("llama")
    dispute = room.case(answer)
    room.enrol(dispute)
    claim: SettlementClaim = dispute.claim
    opened = committee.send(c.CHALLENGER, "open", claim.struct(), claim.signature, claim.node, 3)
    world.drawn(opened)
    world.vote(opened, [j.WRONG] * 3)
    assert world.tally(opened, claim) == 0
    committee.send(OPERATOR.address, "contest", opened)
    state = room.open(dispute)
    with pytest.raises(Reverted, match="has not decided"):
        world.close(opened, claim)
    if defends:
        parties = sides(dispute, answer, answer.honest, (Cell(1, 6), "mixed"))
        advocates = [make(state) for make in parties]
        while state.turn is not None:
            state = step(room, state, *advocates)
    room.evm.pass_time(c.MOVE_SECONDS + 1)
    room.settle(dispute, state)
    outcome = world.close(opened, claim)
    assert outcome == (Outcome.ACQUITTED if defends else Outcome.GUILTY)
