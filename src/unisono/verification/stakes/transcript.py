"""An audit as a file: beside the receipt all that anyone needs to check its verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from unisono.errors import ReceiptError
from unisono.types import NodeId
from unisono.verification.receipt import Receipt
from unisono.verification.stakes.beacon import Beacon
from unisono.verification.stakes.committee import Outcome, majority
from unisono.verification.stakes.lottery import (
    Roster,
    claim_hash,
    draw_committee,
    ticket_is_good,
    wins,
)
from unisono.verification.stakes.register import Register
from unisono.verification.stakes.work import Answer
from unisono.verification.verdict import Verdict
from unisono.wire.bounds import Node
from unisono.wire.claims import HopClaim
from unisono.wire.verification_messages import (
    MAX_COMMITTEE,
    CommitsClosed,
    LotteryBinding,
    ReplayTask,
    ResultReveal,
    Work,
)

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
PASSED_OVER = 2
"""For each seat so many nodes of the lottery's order may be asked: an auditor cannot go on until
it has found friends."""


class Transcript(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The messages of one audit that its verdict follows from."""

    task: ReplayTask
    tokens: Digest
    """SHA-256 of the tokens in the task's body."""
    rows: Digest
    """SHA-256 of the rows in the task's body."""
    members: Annotated[tuple[Node, ...], Meta(min_length=1, max_length=MAX_COMMITTEE)]
    """Who took the task, whether they answered or not."""
    closed: CommitsClosed
    reveals: Annotated[tuple[ResultReveal, ...], Meta(max_length=MAX_COMMITTEE)]

    def check(self, receipt: Receipt, hop: int, register: Register, beacon: Beacon) -> Verdict:
        """The verdict on a hop of a receipt whose form is good (`form.check_form`).

        INCONCLUSIVE: what is missing to judge is not known here, or no majority agreed.

        Raises:
            ReceiptError: this is no honest auditor's transcript of an audit of that hop.
        """
        if not 0 <= hop < len(receipt.hops):
            raise ReceiptError(f"the receipt has {len(receipt.hops)} hops; there is no hop {hop}")
        claim, ticket = receipt.hops[hop], self.task.ticket
        binding = register.binding(ticket.auditor, ticket.epoch)
        roster = register.roster(ticket.epoch, ticket.auditor)
        if binding is None or roster is None:
            self.check_claim(claim)
            return Verdict("INCONCLUSIVE", message=f"epoch {ticket.epoch} is not known here")
        outcome = self.check_audit(receipt.hops, hop, binding, roster, beacon)
        self._check_inputs(receipt, claim)
        rows_in = _answer(receipt).root() if hop == 0 else receipt.hops[hop - 1].rows_out
        return outcome.judge(claim, rows_in)

    def check_audit(
        self,
        hops: Sequence[HopClaim],
        hop: int,
        binding: LotteryBinding,
        roster: Roster,
        beacon: Beacon,
    ) -> Outcome:
        """What the committee found, if it was drawn and heard as it must be. That its inputs were
        the answer's is not looked at here.

        Args:
            hops: the claims of the answer's chain, whose nodes do not sit; `hop` is audited.

        Raises:
            ReceiptError: this is no honest auditor's transcript of an audit of that claim.
        """
        claim, ticket = hops[hop], self.task.ticket
        self.check_claim(claim)
        if not (wins(ticket) and ticket_is_good(ticket, binding, beacon)):
            raise ReceiptError("the ticket is not the auditor's winning lot")
        exclude = {ticket.auditor, *(c.node for c in hops)}
        if roster.hash() != ticket.roster:
            raise ReceiptError("the committee was drawn from another roster")
        self._check_seats(roster.able(claim.model, claim.layers), exclude)
        work = self.task.work_over(self.tokens, self.rows)
        if self.closed.work != work or self.closed.auditor != ticket.auditor:
            raise ReceiptError("the closing list is of another task")
        if not self.closed.signature_is_good():
            raise ReceiptError("the auditor did not sign the closing list")
        return self._outcome(work)

    def check_claim(self, claim: HopClaim) -> None:
        """That the task is about this claim.

        Raises:
            ReceiptError: it is about another one, or another block.
        """
        task, ticket = self.task, self.task.ticket
        if ticket.claim != claim_hash(claim) or ticket.epoch != claim.epoch:
            raise ReceiptError(f"the audit is of another claim than that of hop {claim.hop}")
        if (task.model, task.layers, task.positions) != (
            claim.model,
            claim.layers,
            claim.positions,
        ):
            raise ReceiptError("the task is not about the claim's block")

    def _check_seats(self, roster: Roster, exclude: set[NodeId]) -> None:
        reach = PASSED_OVER * self.task.seats
        order = draw_committee(self.task.ticket, roster, reach, exclude)
        seats = {*self.members}
        if not len(seats) == len(self.members) <= self.task.seats or not seats <= {*order}:
            raise ReceiptError(
                f"the committee is not among the first {reach} of the lottery's order"
            )

    def _check_inputs(self, receipt: Receipt, claim: HopClaim) -> None:
        """That the task is the receipt's, but for rows."""
        answer, task = _answer(receipt), self.task
        sampling = answer.sampling if claim is receipt.hops[-1] else None
        tokens = b""
        if task.token_bytes:
            tokens = np.array(answer.inputs, dtype="<u4").tobytes()
        if (len(answer.prompt), sampling) != (task.prompt, task.sampling) or hashlib.sha256(
            tokens
        ).digest() != self.tokens:
            raise ReceiptError("the task is not about the receipt's answer")

    def _outcome(self, work: Work) -> Outcome:
        sealed = dict(self.closed.commits)
        votes: dict[object, int] = {}
        seen: set[NodeId] = set()
        for reveal in self.reveals:
            counts = (
                reveal.node in self.members
                and reveal.node not in seen
                and reveal.work == work
                and sealed.get(reveal.node) == reveal.sealed()
                and reveal.signature_is_good()
            )
            if counts:
                seen.add(reveal.node)
                votes[reveal.result] = votes.get(reveal.result, 0) + 1
        most = max(votes.values(), default=0)
        result = next((r.result for r in self.reveals if votes.get(r.result) == most), None)
        seats = self.task.seats
        decided = result if most >= majority(seats) else None
        return Outcome(work, seats, most, decided, most == seats)


def _answer(receipt: Receipt) -> Answer:
    request = receipt.request
    return Answer(request.model, request.prompt, receipt.tokens, request.sampling)
