"""What a gateway has paid and promised, as it tells its own clients."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class ChannelNote(msgspec.Struct, frozen=True):
    """One channel; amounts in millionths of the coin."""

    payee: str
    deposit: int
    """Paid in, as last read from the chain."""
    promised: int
    """By the last voucher."""
    charged: int
    """For sessions that ended."""
    reserved: int
    """For sessions that run."""


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What `GET /v1/payments` returns."""

    object: str = "payments"
    payer: str
    chain: int
    contract: str
    channels: list[ChannelNote]


StatementSource = Callable[[], Statement]
