"""Convictions without weights: a claim, and a committee that says otherwise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.verification.stakes.audits import EPOCH, World, hexes, identity
from unisono.types import (
    GenerationRequest,
    LayerRange,
    ModelId,
    NodeId,
    Sampling,
    SessionId,
    request_hash,
)
from unisono.verification.receipt import VERSION, Receipt
from unisono.verification.stakes.beacon import AUDIT_DELAY
from unisono.verification.stakes.conviction import Conviction, SignedRoster
from unisono.verification.stakes.lottery import Roster, Verifier, draw_committee, draw_ticket
from unisono.verification.stakes.seat import Seat
from unisono.verification.stakes.service import plant
from unisono.verification.stakes.transcript import PASSED_OVER, Transcript
from unisono.verification.stakes.work import Answer, make_task
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.identity import Identity
from unisono.wire.verification_messages import MILLION, CommitsClosed, ReplayResult

MODEL = ModelId("ab" * 32)
WHOLE = LayerRange(0, 4)
PROMPT, TOKENS = (5, 6, 7), (8, 9)


@dataclass
class Trial:
    """An answer of one node, and what a committee says of it."""

    world: World
    epoch: int = EPOCH
    sampling: Sampling = field(default_factory=Sampling)
    seats: int = 3

    def __post_init__(self) -> None:
        self.request = GenerationRequest(MODEL, PROMPT, 2, self.sampling)
        self.answer = Answer(MODEL, PROMPT, TOKENS, self.sampling)
        self.truth = ReplayResult(
            self.answer.root(),
            hexes(self.world.chance),
            tokens_root(TOKENS),
            hexes(self.world.chance),
        )

    @property
    def roster(self) -> Roster:
        return Roster.of(
            self.epoch, (Verifier(m.node_id, 1, MODEL, WHOLE) for m in self.world.members)
        )

    def signed_roster(self) -> SignedRoster:
        auditor = self.world.auditor
        return SignedRoster(auditor.node_id, self.roster).signed_by(auditor)

    def claim(self, node: Identity | None = None, **changes: Any) -> HopClaim:
        node = node or self.world.node
        fields: dict[str, Any] = {
            "session": SessionId("cd" * 16),
            "request": request_hash(self.request),
            "gateway": self.world.auditor.node_id,
            "model": MODEL,
            "node": node.node_id,
            "hop": 0,
            "layers": WHOLE,
            "positions": len(PROMPT) + len(TOKENS) - 1,
            "rows_in": self.truth.rows_in,
            "rows_out": self.truth.rows_out,
            "out_tags": b"",
            "tokens": self.truth.tokens,
            "epoch": self.epoch,
        }
        return HopClaim(**(fields | changes)).signed_by(node)

    def transcript(
        self, claim: HopClaim, *, votes: int | None = None, answer: Answer | None = None
    ) -> Transcript:
        """Most of a committee gives `truth`."""
        world = self.world
        world.publish(max(claim.epoch + AUDIT_DELAY, world.beacon.latest))
        ticket = draw_ticket(
            world.key, world.auditor.node_id, claim, self.roster, MILLION, world.beacon
        )
        assert ticket is not None
        seal = plant(ticket.audit())
        task, body = make_task(
            ticket,
            seal.seal(),
            answer or self.answer,
            WHOLE,
            True,
            seats=self.seats,
            commit_ms=1000,
            reveal_ms=1000,
        )
        order = draw_committee(
            ticket, self.roster, PASSED_OVER * self.seats, {claim.node, world.auditor.node_id}
        )
        keys = {m.node_id: m for m in world.members}
        sitting = order[: self.seats][:votes]
        seats = {node: Seat(task, body, keys[node]) for node in sitting}
        commits = {node: seat.commit(self.truth) for node, seat in seats.items()}
        closed = CommitsClosed(
            work=task.work(body),
            auditor=world.auditor.node_id,
            sealed=task.sealed,
            commits=tuple(sorted((n, c.digest) for n, c in commits.items())),
        ).signed_by(world.auditor)
        return Transcript(
            task=task,
            tokens=hashlib.sha256(body).digest(),
            rows=hashlib.sha256(b"").digest(),
            members=tuple(sitting),
            closed=closed,
            reveals=tuple(seat.reveal(closed) for seat in seats.values()),
        )

    def receipt(self, claim: HopClaim) -> Receipt:
        return Receipt(
            version=VERSION,
            id="ef" * 16,
            request=self.request,
            tokens=TOKENS,
            finish_reason="length",
            hops=(claim,),
            gateway=self.world.auditor.node_id,
            created=1,
            elapsed_us=1,
            first_token_us=1,
            attempts=1,
        ).signed_by(self.world.auditor)

    def conviction(self, claim: HopClaim, **options: Any) -> Conviction:
        return Conviction.of(
            self.receipt(claim),
            0,
            self.transcript(claim, **options),
            self.world.binding,
            self.signed_roster(),
        )


def lie(trial: Trial, **changes: Any) -> HopClaim:
    """A claim of other rows than the committee's."""
    return trial.claim(**({"rows_out": "11" * 32} | changes))


def stranger() -> NodeId:
    return identity(77).node_id


def altered(value: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(value, **changes)
