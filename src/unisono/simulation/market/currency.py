"""Paid in a volatile coin or a stable one: what a margin has to bear.

An operator pays electricity in money, and is paid in a coin at a price fixed when it bids; between
bid and sale of the coin lie `lag` days. The coin's price moves as geometric Brownian motion. The
margin that leaves a month's loss to one in twenty grows with volatility.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DAYS = 30


@dataclass(frozen=True, slots=True)
class Exchange:
    """One volatility's outcome."""

    volatility: float
    """Standard deviation of the logarithm of the price over a year."""
    losing: float
    """Share of months that end with a loss at the margin that was asked about."""
    margin: float
    """That is needed so that one month in twenty does."""


def exchange(
    volatility: float,
    rng: np.random.Generator,
    *,
    lag: int = 14,
    margin: float = 0.2,
    months: int = 20_000,
) -> Exchange:
    """Draw months of daily income, each day's sold `lag` days after its bid."""
    step = volatility / np.sqrt(365)
    moves = rng.normal(-(step**2) / 2, step, (months, DAYS + lag))
    path = np.cumsum(moves, axis=1)
    bid = np.concatenate([np.zeros((months, 1)), path[:, : DAYS - 1]], axis=1)
    sale = path[:, lag : lag + DAYS]
    worth = np.exp(sale - bid).mean(axis=1)
    return Exchange(
        volatility,
        float(np.count_nonzero((1 + margin) * worth < 1)) / months,
        1 / float(np.sort(worth)[months // 20]) - 1,
    )
