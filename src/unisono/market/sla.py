"""Service levels: what each tier promises per window, and what a miss costs.

Pure functions of what was observed, all integers: whoever observed the same computes the same
credit. `docs/market.md` has the definitions in words.
"""

from __future__ import annotations

from dataclasses import dataclass

WHOLE = 1000
"""Shares are in thousandths."""
WINDOW_SECONDS = 86_400
"""Windows are days of UTC, unless a network agrees on another length."""
SETTLE_SECONDS = 60.0
"""A window is judged this long after its end, when everybody's heartbeats have arrived."""
DOUBTS_FREE = 3
DOUBTS = 100
"""Audits without a result that raise no doubt: three, and of many a tenth."""


@dataclass(frozen=True, slots=True)
class Promise:
    """Of one tier. Correctness is promised by all: no answer that is proven false."""

    uptime: int
    """Least share of a window, in thousandths, in which the node's heartbeats run; 0: none."""
    slope: int
    """Thousandths of what was paid in the window that are given back per thousandth missing."""


PROMISES = (Promise(0, 0), Promise(950, 5), Promise(990, 10), Promise(998, 20))
"""By tier, an index into `wire.terms.TIERS`."""


def window_at(milliseconds: int, window_ms: int) -> int:
    """The number of the window of a moment, in Unix milliseconds."""
    return milliseconds // window_ms


def uptime(down_ms: int, window_ms: int) -> int:
    """Thousandths of a window that are not counted as down, rounded down."""
    return (window_ms - min(max(0, down_ms), window_ms)) * WHOLE // window_ms


def credit_share(tier: int, down_ms: int, window_ms: int, *, convicted: bool = False) -> int:
    """Thousandths of what was paid in a window that go back to the payer.

    Linear from the promise down, so that no second of an outage is worth more than another: a
    threshold would pay a node that is just below it for doing nothing about it. Everything goes
    back for a window in which the node signed something that is proven false.
    """
    if convicted:
        return WHOLE
    promise = PROMISES[tier]
    missing = max(0, promise.uptime - uptime(down_ms, window_ms))
    return min(WHOLE, promise.slope * missing)


def credit(paid: int, share: int) -> int:
    """Units that go back, rounded down."""
    return paid * share // WHOLE


def is_doubtful(audits: int, inconclusive: int) -> bool:
    """Whether too many of a node's audits had no result. Nobody can show whose fault that is, so
    it is reported and earns no credit."""
    return inconclusive > max(DOUBTS_FREE, audits * DOUBTS // WHOLE)
