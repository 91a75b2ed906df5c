"""How a node wants to be paid, as part of its record: with the record's prices this is its bid.

A bid is signed because the record is, expires with it, and is for the block that the record
names: a whole model or a share of its layers. Amounts are integers in millionths of the stable
unit, which are the smallest units of the token that channels hold.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.types import EvmAddress
from unisono.wire.bounds import Natural

TIERS = ("economy", "standard", "assured", "critical")
"""Service levels by number; `verification.policy.Tier` and `market.sla` say what each promises."""
MAX_WINDOW = 4096

AddressText = Annotated[EvmAddress, Meta(pattern=r"^0x[0-9a-fA-F]{40}\Z")]
"""Of a contract or of a key that is paid; whoever uses it checks its EIP-55 checksum."""


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where and in which portions a node is paid, and what it puts up for its word."""

    payee: AddressText
    chain: Natural
    """Chain id."""
    channels: AddressText
    """The contract that holds the payer's deposits."""
    stake: Natural = 0
    """What the node says it has staked; whoever relies on it reads the registry."""
    tier: Annotated[int, Meta(ge=0, lt=len(TIERS))] = 0
    """The highest service level that it promises."""
    window: Annotated[int, Meta(ge=1, le=MAX_WINDOW)] = 64
    """Tokens of an answer that one payment ahead is good for."""
    operator: AddressText | None = None
    """Whose stake in the registry answers for the node; None: the payee's."""
