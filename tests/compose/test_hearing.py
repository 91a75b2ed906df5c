"""Audits of what is known already: nobody who sits can tell, and who sat before is not asked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.verification.stakes.audits import World
from unisono.clock import VirtualClock
from unisono.compose.hearing import AuditSettings, Heard, Hearing
from unisono.errors import ConfigurationError
from unisono.types import GenerationRequest, NodeId, PeerAddress, Sampling
from unisono.verification.receipt import VERSION, Receipt
from unisono.verification.stakes.committee import Outcome
from unisono.verification.stakes.service import Audited
from unisono.verification.stakes.work import Answer
from unisono.wire.claims import rows_root, tokens_root
from unisono.wire.verification_messages import MILLION, Work


class Scripted:
    """An auditor whose committees always give one result."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.asked: list[tuple[tuple[NodeId, ...], Any]] = []

    async def audit(self, task: Any, body: bytes, candidates: Any, plant: Any) -> Audited:
        members = tuple(c.node for c in candidates[: task.seats])
        self.asked.append((members, plant.result))
        work = Work(task.ticket.audit(), task.ticket.epoch, "00" * 32)
        outcome = Outcome(work, len(members), len(members), self.result, True)
        return Audited(outcome, members, (), None)


async def heard(members: int, plants: int, *, lie: bool = False) -> tuple[Heard, Scripted, World]:
    world = World(members=members)
    request = GenerationRequest(world.claim().model, (1, 2, 3), 2, Sampling())
    answer = Answer(request.model, request.prompt, (4, 5), request.sampling)
    rows = rows_root([bytes(32)] * 4)
    truth = msgspec.structs.replace(
        world.truth(), rows_in=answer.root(), rows_out=rows, tokens=tokens_root((4, 5))
    )
    claim = world.claim(truth=truth)
    ticket = world.ticket(claim)
    receipt = Receipt(
        version=VERSION,
        id="ab" * 16,
        request=request,
        tokens=(4, 5),
        finish_reason="length",
        hops=(claim,),
        gateway=world.auditor.node_id,
        created=1,
        elapsed_us=2,
        first_token_us=1,
        attempts=1,
    )
    result = msgspec.structs.replace(truth, rows_out="00" * 32) if lie else truth
    auditor = Scripted(result)
    hearing = Hearing(
        auditor=auditor,  # type: ignore[arg-type]
        transport=None,  # type: ignore[arg-type]
        clock=VirtualClock(),
        address_of=lambda node: PeerAddress(node, "memory", (f"memory:{node[:4]}",)),
        hidden=8,
        settings=AuditSettings(plants=plants),
        receipt=receipt,
        claim=claim,
        ticket=ticket,
        roster=world.roster,
    )
    return await hearing.hold(), auditor, world


async def test_others_are_asked_about_what_is_known_and_cannot_see_that() -> None:
    found, auditor, _ = await heard(members=9, plants=MILLION)
    assert found.verdict.verdict == "VALID"
    (first, nothing), (second, known) = auditor.asked
    assert nothing is None
    assert known == auditor.result
    assert len(second) >= 3
    assert not set(first) & set(second)
    assert found.planted is not None
    assert found.planted.members == second


@pytest.mark.parametrize(
    ("members", "plants", "lie"), [(9, 0, False), (5, MILLION, False), (9, MILLION, True)]
)
async def test_nothing_is_planted_without_others_or_where_the_claim_was_wrong(
    members: int, plants: int, lie: bool
) -> None:
    found, auditor, _ = await heard(members, plants, lie=lie)
    assert found.planted is None
    assert all(known is None for _, known in auditor.asked)


def test_a_share_of_plants_is_a_share() -> None:
    with pytest.raises(ConfigurationError, match="per million"):
        AuditSettings(plants=MILLION + 1)
