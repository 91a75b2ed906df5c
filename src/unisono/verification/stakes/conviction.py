"""A conviction: everything that shows a stranger that a committee found a node's claim false.

It shows neither what was asked nor what was answered: hashes stand for both.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.errors import ReceiptError
from unisono.types import (
    Q16,
    GenerationRequest,
    NodeId,
    Sampling,
    canonical,
    digest,
    request_hash_over,
    tokens_hash,
)
from unisono.verification.receipt import Receipt
from unisono.verification.stakes.beacon import Beacon
from unisono.verification.stakes.committee import difference
from unisono.verification.stakes.lottery import Roster, binding_is_good
from unisono.verification.stakes.transcript import Digest, Transcript
from unisono.verification.verdict import Fault, fault_of
from unisono.wire.bounds import MAX_HOPS, Hop, Node
from unisono.wire.claims import EPOCH_DRIFT, HopClaim
from unisono.wire.identity import SIGNATURE_BYTES, Identity, verify_signature
from unisono.wire.verification_messages import LotteryBinding

LEAST_SEATS = 3
"""Whom a smaller committee finds wrong is convicted by nobody but its auditor."""


class SignedRoster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An auditor's statement whom it draws the committees of an epoch from."""

    auditor: Node
    roster: Roster
    signature: Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)] = b""

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything else."""
        return digest("signed-roster/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> SignedRoster:
        """The same statement with the auditor's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the auditor signed it."""
        return verify_signature(self.auditor, self.signed_bytes(), self.signature)


class Conviction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An audit that found a claim false, and what its verdict follows from."""

    hops: Annotated[tuple[HopClaim, ...], Meta(min_length=1, max_length=MAX_HOPS)]
    """The claims of the answer, from the first."""
    hop: Hop
    transcript: Transcript
    binding: LotteryBinding
    roster: SignedRoster
    terms: GenerationRequest
    """The request without its prompt,"""
    prompt: Digest
    """of which this is the `tokens_hash`."""

    @classmethod
    def of(
        cls,
        receipt: Receipt,
        hop: int,
        transcript: Transcript,
        binding: LotteryBinding,
        roster: SignedRoster,
    ) -> Conviction:
        """What an auditor says of a hop of one of its answers."""
        return cls(
            hops=receipt.hops,
            hop=hop,
            transcript=transcript,
            binding=binding,
            roster=roster,
            terms=msgspec.structs.replace(receipt.request, prompt=()),
            prompt=tokens_hash(receipt.request.prompt),
        )

    @property
    def node(self) -> NodeId:
        """Who is convicted, if `check` finds a fault."""
        return self.hops[min(self.hop, len(self.hops) - 1)].node

    def check(self, beacon: Beacon) -> Fault:
        """The fault that this proves.

        Whether the roster was known in time, or could be the auditor's at all, is for the caller
        to judge: nothing in here shows it.

        Raises:
            ReceiptError: it proves none.
        """
        self._check_hops()
        claim, transcript = self.hops[self.hop], self.transcript
        ticket, roster = transcript.task.ticket, self.roster
        if (roster.auditor, roster.roster.epoch) != (ticket.auditor, ticket.epoch):
            raise ReceiptError("the roster is of another auditor or epoch")
        if not (roster.signature_is_good() and binding_is_good(self.binding)):
            raise ReceiptError("the auditor signed neither this roster nor this lottery key")
        outcome = transcript.check_audit(self.hops, self.hop, self.binding, roster.roster, beacon)
        if outcome.result is None or outcome.seats < LEAST_SEATS:
            raise ReceiptError(
                f"{outcome.votes} of {outcome.seats} members agreed; a conviction takes a "
                f"majority of at least {LEAST_SEATS}"
            )
        if outcome.result.rows_in != claim.rows_in:
            raise ReceiptError("the committee was given other inputs than the node signed")
        wrong = difference(outcome.result, claim)
        if wrong is None:
            raise ReceiptError("the committee computed what the node signed")
        kind, what = wrong
        if kind == "sampling":
            self._check_sampling()
        message = (
            f"hop {claim.hop} (layers {claim.layers}, node {claim.node}) {what}, as "
            f"{outcome.votes} of {outcome.seats} members of a committee found"
        )
        return fault_of(claim, kind, message)

    def _check_hops(self) -> None:
        """That these are the claims of one chain: its nodes may not sit, and nobody else is kept
        from it.

        Raises:
            ReceiptError: they are not.
        """
        first = self.hops[0]
        if self.hop >= len(self.hops):
            raise ReceiptError(f"there is no hop {self.hop} of {len(self.hops)}")
        for index, claim in enumerate(self.hops):
            same = (claim.session, claim.request, claim.model, claim.gateway) == (
                first.session,
                first.request,
                first.model,
                first.gateway,
            )
            if not (same and claim.hop == index and claim.signature_is_good()):
                raise ReceiptError(f"claim {index} is not of this chain, or not signed")
            if abs(claim.epoch - first.epoch) > 2 * EPOCH_DRIFT:
                raise ReceiptError(f"claim {index} is of another time")
        if first.layers.start or any(
            a.layers.stop != b.layers.start for a, b in pairwise(self.hops)
        ):
            raise ReceiptError("the claims do not continue each other")

    def _check_sampling(self) -> None:
        """That the committee drew tokens as the request says, after the tokens that it says.

        Raises:
            ReceiptError: it did not, or that cannot be told: of a chain's last hop the tokens are
                not tied to its rows, so that draws which depend on them prove nothing.
        """
        claim, task = self.hops[self.hop], self.transcript.task
        if request_hash_over(self.terms, task.prompt, self.prompt) != claim.request:
            raise ReceiptError("the request is not the one that the node signed")
        if task.sampling != self.terms.sampling:
            raise ReceiptError("the committee was given other sampling settings")
        if self.hop and _counts_tokens(self.terms.sampling):
            raise ReceiptError("the draws depend on tokens that nothing here shows")


def _counts_tokens(sampling: Sampling) -> bool:
    """Whether a draw depends on which tokens there were before."""
    return (
        sampling.repetition_penalty != Q16
        or sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
    )
