"""What a transaction offers for gas, and how the offer rises when no block takes it."""

from __future__ import annotations

from dataclasses import dataclass

GWEI = 10**9
_BUMP_NUMERATOR, _BUMP_DENOMINATOR = 9, 8
"""Pools replace a transaction only for 10 % more in both parts of the offer, some for 12.5."""


@dataclass(frozen=True, slots=True)
class Fee:
    """Wei per gas (EIP-1559)."""

    most: int
    """Base fee and tip together never cost more."""
    tip: int


@dataclass(frozen=True, slots=True)
class FeeRule:
    """How much an operator lets gas cost, and how patiently it waits."""

    limit: int = 200 * GWEI
    """No offer is higher, in wei per gas."""
    wait_seconds: float = 30.0
    """Without a block for so long, the offer rises; the wait doubles each time."""
    longest_wait_seconds: float = 600.0
    bumps: int = 10
    """So many times; then the last offer is repeated."""

    def first(self, base_fee: int, tip: int) -> Fee | None:
        """A first offer: good until the base fee has doubled. None while even the base fee is
        above the limit."""
        if base_fee > self.limit:
            return None
        return Fee(min(2 * base_fee + tip, self.limit), min(tip, self.limit - base_fee))

    def higher(self, last: Fee, base_fee: int, tip: int) -> Fee | None:
        """A higher offer that replaces the last one. None if that is above the limit."""
        least_tip, least = _raised(last.tip), _raised(last.most)
        if least > self.limit:
            return None
        higher_tip = max(least_tip, tip)
        most = min(max(least, 2 * base_fee + higher_tip), self.limit)
        return Fee(most, min(higher_tip, most))

    def wait(self, bumps: int) -> float:
        """Seconds to wait for a block after so many rises."""
        return min(self.wait_seconds * 2.0 ** min(bumps, 32), self.longest_wait_seconds)


def _raised(offer: int) -> int:
    return offer * _BUMP_NUMERATOR // _BUMP_DENOMINATOR + 1
