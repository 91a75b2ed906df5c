"""One audit, from a winning lot to a verdict: the rows that go in, and the committees."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from unisono.clock import Clock
from unisono.errors import ConfigurationError
from unisono.models.decoder import Rows
from unisono.types import NodeId, PeerAddress
from unisono.verification.policy import DEFAULT_RATE, DEFAULT_SEATS, larger_committee
from unisono.verification.receipt import Receipt
from unisono.verification.stakes.committee import COMMIT_SECONDS, REVEAL_SECONDS
from unisono.verification.stakes.conviction import LEAST_SEATS
from unisono.verification.stakes.lottery import Roster, draw_committee
from unisono.verification.stakes.rows import rows_after
from unisono.verification.stakes.service import Audited, Auditor, plant
from unisono.verification.stakes.transcript import PASSED_OVER
from unisono.verification.stakes.work import Answer, make_task
from unisono.verification.verdict import Verdict
from unisono.wire.claims import HopClaim
from unisono.wire.rows import encode_rows
from unisono.wire.transports.base import Transport
from unisono.wire.verification_messages import (
    MAX_COMMITTEE,
    MILLION,
    ReplayResult,
    RowsTask,
    Ticket,
)

log = logging.getLogger(__name__)

DEFAULT_PLANTS = 50_000
COMMITTEES = 3
"""Committees for one claim, each twice as large as the one before and one more."""
_NOT_SEATED = Verdict(
    "INCONCLUSIVE",
    message=f"fewer than {LEAST_SEATS} nodes beside the chain hold these layers: no committee",
)


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """How much a gateway audits."""

    rate: int = DEFAULT_RATE
    """Claims per million, of nodes that were verified often; of strangers up to 20 times as many
    (`verification.policy`). 0: none."""
    seats: int = DEFAULT_SEATS
    running: int = 2
    """Audits at the same time: they share the nodes with answers."""
    plants: int = DEFAULT_PLANTS
    """Of the audits that find a claim right, so many per million are held again by others, with the
    result sealed in the task: who then says something else did not compute, or works for a liar."""
    commit_seconds: float = COMMIT_SECONDS
    reveal_seconds: float = REVEAL_SECONDS

    def __post_init__(self) -> None:
        rates = self.rate, self.plants
        if (
            not all(0 <= rate <= MILLION for rate in rates)
            or not LEAST_SEATS <= self.seats <= MAX_COMMITTEE
        ):
            raise ConfigurationError(
                f"an audit rate is 0 to {MILLION} per million and a committee has {LEAST_SEATS} to "
                f"{MAX_COMMITTEE} seats; got {self.rate}, {self.plants} and {self.seats}"
            )


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of an audit."""

    verdict: Verdict
    audited: Audited | None = None
    """The last committee's; None: there was none."""
    seats: int = 0
    """Of that committee."""
    planted: Audited | None = None
    """A committee that sat about what was known already."""
    rows: Rows | None = None
    """What came into the hop, int64 [positions, hidden]; None for one that begins the model."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """Everything that the audit of one hop of an answer needs."""

    auditor: Auditor
    transport: Transport
    clock: Clock
    address_of: Callable[[NodeId], PeerAddress | None]
    hidden: int
    """The model's width."""
    settings: AuditSettings
    receipt: Receipt
    claim: HopClaim
    ticket: Ticket
    roster: Roster

    async def hold(self) -> Heard:
        """Ask committees, each larger than the one before, until one decides.

        Takes as long as slow members are given; never raises for what nodes do.
        """
        hops, hop = self.receipt.hops, self.claim.hop
        request = self.receipt.request
        answer = Answer(request.model, request.prompt, self.receipt.tokens, request.sampling)
        rows: Rows | None = None
        seats = self._seats(self.settings.seats)
        if seats < LEAST_SEATS:
            return Heard(_NOT_SEATED)
        if hop:
            rows = await self._rows_before(answer)
            if rows is None:
                message = "nobody computes the rows that the hops before signed"
                return Heard(Verdict("INCONCLUSIVE", message=message))
        rows_in = hops[hop - 1].rows_out if hop else answer.root()
        heard = Heard(_NOT_SEATED)
        for _ in range(COMMITTEES):
            audited = await self._convene(answer, rows, seats)
            if audited.outcome is None:
                verdict = Verdict("INCONCLUSIVE", message="not one node took the task")
            else:
                verdict = audited.outcome.judge(self.claim, rows_in)
            heard = Heard(verdict, audited, seats, rows=rows)
            larger = self._seats(larger_committee(seats) or seats)
            if verdict.verdict != "INCONCLUSIVE" or larger <= seats:
                break
            seats = larger
        return await self._planted(heard, answer, rows)

    async def _planted(self, heard: Heard, answer: Answer, rows: Rows | None) -> Heard:
        """Now and then ask others once more, who cannot see that the result is known."""
        outcome = None if heard.audited is None else heard.audited.outcome
        valid = heard.verdict.verdict == "VALID" and outcome is not None
        if not valid or secrets.randbelow(MILLION) >= self.settings.plants:
            return heard
        assert outcome is not None
        assert heard.audited is not None
        members = heard.audited.members
        able = self._order(len(members) + self.settings.seats)
        if len(able) < len(members) + LEAST_SEATS:
            return heard
        planted = await self._convene(
            answer, rows, self.settings.seats, known=outcome.result, besides=members
        )
        return replace(heard, planted=planted)

    def _seats(self, wanted: int) -> int:
        """The largest odd number of seats up to `wanted` for which there are nodes."""
        able = len(self._order(wanted))
        return min(wanted, able - 1 + able % 2)

    def _order(self, count: int) -> tuple[NodeId, ...]:
        """The first of those who may be asked to sit."""
        claim = self.claim
        exclude = {self.ticket.auditor, *(c.node for c in self.receipt.hops)}
        able = self.roster.able(claim.model, claim.layers)
        return draw_committee(self.ticket, able, count, exclude)

    async def _convene(
        self,
        answer: Answer,
        rows: Rows | None,
        seats: int,
        *,
        known: ReplayResult | None = None,
        besides: tuple[NodeId, ...] = (),
    ) -> Audited:
        """Hold one committee, with nobody in it who is named in `besides`."""
        seal = plant(self.ticket.audit(), known)
        task, body = make_task(
            self.ticket,
            seal.seal(),
            answer,
            self.claim.layers,
            self.claim.hop == len(self.receipt.hops) - 1,
            rows,
            seats=seats,
            commit_ms=round(self.settings.commit_seconds * 1000),
            reveal_ms=round(self.settings.reveal_seconds * 1000),
        )
        order = self._order(PASSED_OVER * seats + len(besides))
        asked = tuple(node for node in order if node not in besides)
        return await self.auditor.audit(task, body, self._addresses(asked), seal)

    def _addresses(self, nodes: tuple[NodeId, ...]) -> list[PeerAddress]:
        return [a for node in nodes if (a := self.address_of(node)) is not None]

    async def _rows_before(self, answer: Answer) -> Rows | None:
        """The rows that go into the audited hop, computed again block by block."""
        rows: Rows | None = None
        for claim in self.receipt.hops[: self.claim.hop]:
            if rows is None:
                widths, body = b"", np.array(answer.inputs, dtype="<u4").tobytes()
            else:
                widths, encoded = encode_rows(rows)
                body = b"".join(encoded)
            task = RowsTask(self.ticket, claim.model, claim.layers, claim.positions, widths)
            able = self.roster.able(claim.model, claim.layers)
            holders = draw_committee(self.ticket, able, MAX_COMMITTEE, {claim.node})
            rows = await rows_after(
                self.transport,
                self.clock,
                task,
                body,
                self._addresses((*holders, claim.node)),
                hidden=self.hidden,
                root=claim.rows_out,
                seconds=self.settings.commit_seconds,
            )
            if rows is None:
                return None
        return rows
