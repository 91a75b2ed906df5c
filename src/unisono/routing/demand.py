"""What a client asks of the market beside an answer: a price, a service level, a stake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unisono.wire.records import NodeRecord
from unisono.wire.terms import TIERS

UNIT = 1_000_000
"""Amounts are in millionths of the stable unit, prices in such millionths per million tokens."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A limit to what nodes may ask, and a floor under what they promise."""

    most: int | None = None
    """Millionths of the unit that the whole answer may cost, if it is as long as it may be."""
    tier: int = 0
    """The service level, an index into `TIERS`."""
    stake: int = 0
    """Of every hop, in millionths of the unit."""

    def admits(self, record: NodeRecord) -> bool:
        """Whether a node promises enough. Its price counts only together with its chain's."""
        tier, stake = (record.terms.tier, record.terms.stake) if record.terms else (0, 0)
        return tier >= self.tier and stake >= self.stake

    def shared(self, chains: int) -> Demand:
        """The same demand to each of several chains, the limit divided among them."""
        return self if self.most is None else replace(self, most=self.most // chains)

    def __str__(self) -> str:
        parts: list[str] = []
        if self.most is not None:
            parts.append(f"at most {self.most / UNIT:.6f}")
        if self.tier:
            parts.append(f"service level '{TIERS[self.tier]}'")
        if self.stake:
            parts.append(f"a stake of {self.stake / UNIT:.2f} per hop")
        return ", ".join(parts) or "no conditions"


ANY = Demand()


def price_of(path: Sequence[NodeRecord], layer_count: int, prompt: int, tokens: int) -> int:
    """What a chain asks for so many tokens, in millionths of the unit, rounded up: of each hop's
    prices the share of the layers that it computes."""
    asked = sum((prompt * r.price_in + tokens * r.price_out) * r.layers.count for r in path)
    return -(-asked // (layer_count * UNIT))
