"""Prices: operators bid, clients buy where the score is best, and bids follow success.

Hour by hour. An operator never bids below its electricity; one whose machine idles asks less, one
who is sold out asks more (a simple learning rule; each knows only its own sales). Demand comes in
sessions of one size with a limit each, over a day's curve. Each session's gateway sees a random
part of the bids and buys at the least price + waiting, as `docs/market.md` has it; full operators
sell nothing more in that hour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unisono.simulation.market.operators import Floats, Operators

SESSION_TOKENS = 50_000.0
"""One buyer's hour: its sessions go the same way, so they are counted together."""
VIEW = 24
"""Bids that a buyer compares, drawn at random: a part of what a gateway knows."""
RAISE, CUT = 1.04, 0.96
GOAL = 0.85
"""Share of the capacity from which on an operator asks more."""
WAIT_WORTH = 0.15
"""How much dearer a bid looks when its node is full: waiting, as a share of the price."""
LIMIT = 0.30
"""Median of what buyers pay at most, per million tokens: a centralized price of the same model."""


@dataclass(frozen=True, slots=True)
class Trade:
    """One setting's outcome, over its last days."""

    price: float
    """Paid per million tokens, mean over tokens."""
    electricity: float
    """Per million tokens, of those who sold."""
    sold: float
    """Share of the capacity."""
    served: float
    """Share of the demand."""
    profit: float
    """Units per operator and day, electricity and wear taken off."""
    idle: float
    """Share of operators that sell less than a hundredth of their capacity."""


def trade(
    operators: Operators,
    rng: np.random.Generator,
    *,
    days: int = 20,
    load: float = 0.5,
    limit: float = LIMIT,
) -> Trade:
    """Let operators and buyers trade; the last third of the days counts.

    Args:
        load: mean demand over all operators' capacity.
        limit: median of what buyers pay at most per million tokens.
    """
    count, floor = operators.count, operators.power_per_token * 1e6
    bids = floor * rng.uniform(1.1, 2.0, count)
    capacity = operators.tokens_per_hour
    whole = float(np.sum(capacity))
    mean_demand = load * whole
    sums = np.zeros(5)
    sales = np.zeros(count)
    counted = 0
    for hour in range(24 * days):
        wave = 1 + 0.45 * np.sin(2 * np.pi * (hour % 24 - 9) / 24)
        expected: float = mean_demand * float(wave) / SESSION_TOKENS
        buyers = int(rng.poisson(expected))
        sold, paid = _hour(bids, capacity, buyers, limit, rng)
        used = sold / capacity
        bids = np.maximum(floor, bids * np.where(used > GOAL, RAISE, np.where(used < 0.5, CUT, 1)))
        if hour < 16 * days:
            continue
        counted += 1
        sales += sold
        cost = (sold * operators.power_per_token).sum()
        profit = paid - cost - operators.wear.sum()
        sums += (paid, cost, sold.sum(), buyers * SESSION_TOKENS, profit)
    paid, cost, tokens, asked, profit = (float(sums[i]) for i in range(5))
    return Trade(
        price=paid / tokens * 1e6,
        electricity=cost / tokens * 1e6,
        sold=tokens / (counted * whole),
        served=tokens / asked,
        profit=profit / counted * 24 / count,
        idle=float(np.mean(sales < 0.01 * counted * capacity)),
    )


def _hour(
    bids: Floats, capacity: Floats, buyers: int, limit: float, rng: np.random.Generator
) -> tuple[Floats, float]:
    """Tokens that each operator sells in one hour, and units paid for all."""
    sold = np.zeros(len(bids))
    limits = limit * rng.lognormal(0.0, 0.5, buyers)
    batch = max(1, buyers // 24)  # who comes later in the hour sees what is full by then
    for start in range(0, buyers, batch):
        some = limits[start : start + batch]
        seen = rng.integers(0, len(bids), (len(some), VIEW))
        used = sold[seen] / capacity[seen]
        score = np.where(used < 1, bids[seen] * (1 + WAIT_WORTH * used), np.inf)
        best = seen[np.arange(len(some)), score.argmin(axis=1)]
        takes = np.isfinite(score.min(axis=1)) & (bids[best] <= some)
        wanted = SESSION_TOKENS * np.bincount(best[takes], minlength=len(bids))
        sold = np.minimum(capacity, sold + wanted)
    return sold, float((sold * bids).sum() / 1e6)
