"""Audits without weights: an auditor, a claim, a beacon, and a committee of any kind of member."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from unisono.clock import VirtualClock
from unisono.simulation.adversaries_stakes import Hearing, Juror, hold_round
from unisono.types import LayerRange, ModelId, NodeId, SessionId
from unisono.verification.stakes.beacon import AUDIT_DELAY, ChainBeacon, ChainSource
from unisono.verification.stakes.committee import Committee
from unisono.verification.stakes.faults import CommitteeFault, PlantOpening
from unisono.verification.stakes.lottery import LotteryKey, Roster, Verifier, draw_ticket
from unisono.verification.verdict import Verdict
from unisono.wire.claims import HopClaim
from unisono.wire.identity import Identity
from unisono.wire.verification_messages import (
    MILLION,
    LotteryBinding,
    ReplayResult,
    ResultCommit,
    Ticket,
    Work,
)

EPOCH = 1000


def identity(number: int) -> Identity:
    return Identity.from_seed(number.to_bytes(32, "little"))


def hexes(chance: random.Random) -> str:
    return chance.randbytes(32).hex()


class World:
    """An operator's beacon, an auditor with a lottery key, and an audited node."""

    def __init__(self, seed: int = 0, members: int = 7) -> None:
        self.chance = random.Random(seed)
        self.operator, self.auditor, self.node = (identity(i) for i in (1, 2, 3))
        self.source = ChainSource(self.chance.randbytes(32), EPOCH, 10_000)
        self.beacon = ChainBeacon(self.source.anchor(self.operator))
        self.key = LotteryKey(self.auditor)
        self.binding: LotteryBinding = self.key.binding(self.auditor, 0)
        self.members = [identity(100 + i) for i in range(members)]
        self.roster = self.roster_at(EPOCH)

    def roster_at(self, epoch: int) -> Roster:
        return Roster.of(epoch, (Verifier(m.node_id, 1) for m in self.members))

    def publish(self, epoch: int) -> None:
        self.beacon.accept(epoch, self.source.link(epoch))

    def claim(self, epoch: int = EPOCH, truth: ReplayResult | None = None) -> HopClaim:
        truth = truth or self.truth()
        return HopClaim(
            session=SessionId(self.chance.randbytes(16).hex()),
            request=hexes(self.chance),
            gateway=self.auditor.node_id,
            model=ModelId("ab" * 32),
            node=self.node.node_id,
            hop=0,
            layers=LayerRange(0, 4),
            positions=40,
            rows_in=truth.rows_in,
            rows_out=truth.rows_out,
            out_tags=b"",
            tokens=truth.tokens,
            epoch=epoch,
        ).signed_by(self.node)

    def truth(self) -> ReplayResult:
        return ReplayResult(*(hexes(self.chance) for _ in range(4)))

    def ticket(self, claim: HopClaim, rate: int = MILLION) -> Ticket:
        self.publish(max(claim.epoch + AUDIT_DELAY, self.beacon.latest))
        ticket = draw_ticket(self.key, self.auditor.node_id, claim, self.roster, rate, self.beacon)
        assert ticket is not None
        return ticket


@dataclass
class Held:
    """A round that is over."""

    committee: Committee
    claim: HopClaim
    rows_in: str
    refused: Mapping[NodeId, str]

    @property
    def verdict(self) -> Verdict:
        assert self.committee.outcome is not None
        return self.committee.outcome.judge(self.claim, self.rows_in)

    @property
    def faults(self) -> dict[NodeId, CommitteeFault]:
        return {f.node: f for f in self.committee.faults}

    def kinds(self, jurors: Sequence[Juror]) -> list[str]:
        found = self.faults
        return [found[j.node].kind if j.node in found else "" for j in jurors]


async def hold(
    world: World,
    jurors: Sequence[Juror],
    *,
    lie: bool = False,
    claimed: bool = False,
    planted: bool = False,
    epoch: int = EPOCH,
    earlier: Mapping[str, ResultCommit] | None = None,
) -> Held:
    """One audit of one claim, which is false if `lie`; `claimed`: members know what it says."""
    truth = world.truth()
    claim = world.claim(
        epoch, msgspec.structs.replace(truth, rows_out=hexes(world.chance)) if lie else truth
    )
    ticket = world.ticket(claim)
    clock = VirtualClock()
    plant = PlantOpening(ticket.audit(), world.chance.randbytes(32), truth if planted else None)
    work = Work(ticket.audit(), epoch, hexes(world.chance))
    committee = Committee(
        work, [j.node for j in jurors], world.auditor, clock, plant, earlier=earlier
    )
    roots = (claim.rows_in, claim.rows_out, claim.tokens) if claimed else None
    hearing = Hearing(work, roots, ())
    refused = await hold_round(committee, clock, jurors, hearing, truth, world.chance)
    return Held(committee, claim, truth.rows_in, refused)
