"""What a gateway buys of a hop."""

from __future__ import annotations

from dataclasses import dataclass

from unisono.types import SessionId
from unisono.wire.records import NodeRecord

Wallet = tuple[int, str]
"""A chain's id and its channels contract."""


@dataclass(frozen=True, slots=True)
class Sold:
    """What a hop of a session is to be paid for."""

    session: SessionId
    record: NodeRecord
    """With the prices that were chosen, and terms."""
    layer_count: int
    """Of the whole model."""
    prompt: int
    given: int
    """Tokens that are known already: these positions come without waiting for any token."""
    positions: int
    """The most that the session may use."""
