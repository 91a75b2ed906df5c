"""The node's side of a light audit: who is answered, and how."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from unisono.errors import PeerCheating, PeerRefused
from unisono.models.config import DecoderConfig
from unisono.models.decoder import Rows
from unisono.models.weights import BlockWeights
from unisono.types import ModelId, canonical
from unisono.verification.light.messages import (
    Challenge,
    Opening,
    Summons,
    TraceCommitment,
    claim_hash,
)
from unisono.verification.light.trace import Trace, incoming_hashes
from unisono.wire.claims import HopClaim
from unisono.wire.identity import Identity
from unisono.wire.mountain_range import rows_root


class Responder:
    """A node that answers one claim's audit. It speaks no network: messages in, bytes out."""

    def __init__(self, claim: HopClaim, trace: Trace, identity: Identity) -> None:
        self._claim, self._trace, self._identity = claim_hash(claim), trace, identity

    @classmethod
    def summoned(
        cls,
        summons: Summons,
        identity: Identity,
        model: ModelId,
        config: DecoderConfig,
        weights: BlockWeights,
        rows: Rows | None = None,
    ) -> Responder:
        """Regenerate what a summons is about; takes seconds.

        Args:
            weights: of the claim's layers.
            rows: the rows that came in, int64 [positions, hidden], unless the block begins the
                model.

        Raises:
            PeerCheating: the claim is not one that this node signed, or the tokens are not those
                that it answered.
            PeerRefused: it is of another model or of other layers than those given here, or what
                came in is not known any more.
        """
        claim = summons.claim
        if claim.node != identity.node_id or not claim.signature_is_good():
            raise PeerCheating("a summons with a claim that this node did not sign")
        if (claim.model, claim.layers) != (model, weights.layers):
            raise PeerRefused(
                f"layers {claim.layers} of model {claim.model[:12]}… are not here", "not_held"
            )
        source: Sequence[int] | Rows | None = rows
        if claim.layers.start == 0:
            source = summons.tokens
            if not all(t < config.vocabulary_size for t in source):
                raise PeerCheating("a summons with a token outside the vocabulary")
        if source is None:
            raise PeerRefused("the rows that came in were not kept", "gone")
        if len(source) != claim.positions or rows_root(incoming_hashes(source)) != claim.rows_in:
            raise PeerCheating("a summons with other tokens, or rows, than those that came in")
        return cls(claim, Trace(config, weights, source), identity)

    def commit(self) -> TraceCommitment:
        """Commit to the trace: the answer to the summons."""
        made = TraceCommitment(self._claim, self._trace.root)
        return msgspec.structs.replace(made, signature=self._identity.sign(made.signed_bytes()))

    def respond(self, challenge: Challenge) -> bytes:
        """Open what a challenge asks for: an encoded `Opening`.

        Raises:
            PeerCheating: the challenge is for another trace, or asks for what is not in it.
        """
        if (challenge.claim, challenge.trace) != (self._claim, self._trace.root):
            raise PeerCheating("a challenge for another trace than the one that was committed to")
        if not self._trace.holds(challenge):
            raise PeerCheating("a challenge asks for cells outside the claim's layers or positions")
        made = Opening(
            self._claim,
            challenge.hash(),
            tuple(self._trace.open_cell(c) for c in challenge.cells),
            tuple(self._trace.open_sample(c) for c in challenge.samples),
            tuple(self._trace.open_head(p) for p in challenge.heads),
        )
        signature = self._identity.sign(made.signed_bytes())
        return canonical(msgspec.structs.replace(made, signature=signature))
