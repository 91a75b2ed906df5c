"""Messages of a case before a chain's committee: what its members compute from.

    opener → member     JuryTask    the body holds the inputs
    member → opener     JuryTaken   or `Refused`: then the opener comes back, or the member abstains

Seats, commits and reveals are on the chain. Like a `ReplayTask` this never shows what the accused
node claimed.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.types import LayerRange, Sampling, canonical, digest
from unisono.wire.bounds import MAX_ROWS, Hash, MessageBase, Model, Positions
from unisono.wire.verification_messages import check_inputs, token_bytes

CHAIN_SIGNATURE_BYTES = 65


class JuryTask(MessageBase, frozen=True):
    """Opener to member: you sit in this case; compute this block over these inputs, and vote.

    The body is that of a `ReplayTask`. The signature is that of the account that opened the case:
    whoever carries the message, only the opener says what it is about.
    """

    case: Hash
    """By what the contract knows it."""
    model: Model
    layers: LayerRange
    prompt: Positions
    positions: Positions
    """How many rows; token `positions` is drawn after the last."""
    sampling: Sampling | None
    """How the last hop draws tokens; None for blocks that do not end the model."""
    widths: Annotated[bytes, Meta(max_length=MAX_ROWS)]
    """Of the rows in the body; empty if the block begins the model."""
    signature: Annotated[bytes, Meta(max_length=CHAIN_SIGNATURE_BYTES)] = b""

    def __post_init__(self) -> None:
        check_inputs(self)

    def contents(self, body: bytes | memoryview) -> bytes:
        """32 bytes that stand for the task and its inputs, in the place of a struct's hash."""
        blank = msgspec.structs.replace(self, signature=b"")
        return digest("jury-task/1", canonical(blank), hashlib.sha256(body).digest())

    @property
    def token_bytes(self) -> int:
        """Bytes of the body that are tokens."""
        return token_bytes(self)


class JuryTaken(MessageBase, frozen=True):
    """Member to opener: I have what I need for this case."""

    case: Hash


JuryMessage = JuryTask | JuryTaken
