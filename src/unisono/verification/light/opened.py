"""What a client kept of an audit that found a fault: everything in it is signed by the node.

It convicts the node for whoever has secrets of the model, its own and not the client's, since
only those can check a product. Whoever has none sees that the node signed it, and can hold the
node to it in a dispute.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.types import GenerationRequest, request_hash
from unisono.verification.light.messages import Challenge, TraceCommitment, claim_hash
from unisono.wire.bounds import MAX_POSITIONS, TokenId
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.identity import verify_signature

MAX_OPENING = 5 << 20
"""Bytes of the opening in a file: one cell, or the logits of one token."""


class Opened(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One challenge of an audit and its answer."""

    claim: HopClaim
    request: GenerationRequest
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_POSITIONS)]
    """The answer."""
    trace: TraceCommitment
    challenge: Challenge
    opening: Annotated[bytes, Meta(max_length=MAX_OPENING)]
    """An encoded `Opening`."""

    def problem(self) -> str | None:
        """Why this shows nothing about the node, or None."""
        claim, trace, challenge = self.claim, self.trace, self.challenge
        if not claim.signature_is_good():
            return "the node did not sign the claim as it stands here"
        if claim.request != request_hash(self.request) or claim.model != self.request.model:
            return "the request is another than the claim's"
        if claim.tokens and claim.tokens != tokens_root(self.tokens):
            return "the answer is another than the claim's"
        if len(self.request.prompt) + len(self.tokens) - 1 != claim.positions:
            return "the claim covers another number of positions than prompt and answer have"
        if trace.claim != claim_hash(claim) or not verify_signature(
            claim.node, trace.signed_bytes(), trace.signature
        ):
            return "the node did not sign the trace"
        if (challenge.claim, challenge.trace) != (trace.claim, trace.root):
            return "the challenge is about another trace"
        return None
