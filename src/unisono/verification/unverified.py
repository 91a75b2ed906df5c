"""The receipt of an answer that no node of the network computed: it says so and proves nothing."""

from __future__ import annotations

from typing import Literal

import msgspec

from unisono.types import ModelId, NodeId, canonical, digest
from unisono.wire.identity import Identity, verify_signature


class UnverifiedReceipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a gateway keeps of an answer that it passed on from an endpoint outside the network.

    There are no claims in it, since nobody signed anything; the gateway's signature says only
    that this gateway received this answer from this endpoint.
    """

    version: int
    id: str
    """32 hex digits, as a receipt's."""
    verified: Literal[False]
    source: str
    """The endpoint's address, without credentials."""
    source_model: str
    """The model that the endpoint was asked for, by its name there."""
    model: ModelId
    """The model that the client asked for, which did not answer."""
    request: str
    """64 hex digits: SHA-256 of the body that was sent to the endpoint."""
    answer: str
    """64 hex digits: SHA-256 of the text in UTF-8 as the client got it."""
    finish_reason: str
    gateway: NodeId
    created: int
    """Unix seconds."""
    elapsed_us: int
    """From the first piece of text to the last."""
    first_token_us: int
    """From the request to the first piece of text."""
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        """What the gateway's signature covers: everything else."""
        blank = msgspec.structs.replace(self, signature=b"")
        return digest("unverified-receipt/1", canonical(blank))

    def signed_by(self, identity: Identity) -> UnverifiedReceipt:
        """The same receipt with the gateway's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the gateway that the receipt names signed these contents."""
        return verify_signature(self.gateway, self.signed_bytes(), self.signature)
