"""Nodes that sign what they did not do: old claims again, or two claims for one session."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from unisono.types import GenerationRequest, digest, request_hash
from unisono.verification.evidence import VERSION, Contradiction
from unisono.verification.receipt import Receipt
from unisono.wire.claims import TAG_BYTES, HopClaim
from unisono.wire.identity import Identity


@dataclass(frozen=True, slots=True)
class ReplayedReceipt:
    """A chain and its gateway that present an old answer for a new request."""

    past: Receipt
    gateway: Identity

    def resent(self, request: GenerationRequest) -> Receipt:
        """The very claims of then, under the new request."""
        return msgspec.structs.replace(self.past, request=request).signed_by(self.gateway)

    def restamped(self, request: GenerationRequest, hops: tuple[Identity, ...]) -> Receipt:
        """The rows of then, which the hops sign for the new request."""
        asked = request_hash(request)
        claims = tuple(
            msgspec.structs.replace(claim, request=asked).signed_by(identity)
            for claim, identity in zip(self.past.hops, hops, strict=True)
        )
        return msgspec.structs.replace(self.past, request=request, hops=claims).signed_by(
            self.gateway
        )


@dataclass(frozen=True, slots=True)
class Equivocation:
    """A node that signs one result for its client, and another for whoever audits."""

    identity: Identity

    def second(self, claim: HopClaim) -> HopClaim:
        """Another result of the same work."""
        rows = digest("equivocation", claim.signed_bytes())
        return msgspec.structs.replace(
            claim, rows_out=rows.hex(), out_tags=rows[:TAG_BYTES] * claim.positions
        ).signed_by(self.identity)

    def evidence(self, claim: HopClaim) -> Contradiction:
        """What whoever sees both can show to anybody."""
        return Contradiction(VERSION, (claim, self.second(claim)))
