"""Whether stakes concentrate: operators put what they earn into more machines and more stake."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unisono.market.pricing import HOURS_PER_YEAR
from unisono.simulation.market.operators import Floats, Operators

MONTHS = 36
KEPT = 0.5
"""Share of profits that is invested again."""
STAKE_SHARE = 0.1
"""Stake of a machine over its price."""


@dataclass(frozen=True, slots=True)
class Wealth:
    """Per month, from the first on."""

    gini: list[float]
    """Of stakes: 0 if all have the same, 1 if one has all."""
    top: list[float]
    """Share of the stake that the richest hundredth holds."""


def grow(
    operators: Operators,
    rng: np.random.Generator,
    *,
    by_stake: bool = False,
    margin: float = 0.25,
    months: int = MONTHS,
) -> Wealth:
    """Let operators earn and reinvest.

    Paid by work, as here: income is in proportion to the tokens computed, `margin` above
    electricity at half use; what is kept buys machines of the same kind, each with a stake of a
    tenth of its price. Paid by stake, as block rewards are: the same sum is shared in proportion
    to stakes, and what is kept becomes stake. Luck differs by a factor of e^0.3 between months.
    """
    price = operators.purchase
    machines = np.ones(operators.count)
    stake = STAKE_SHARE * price
    month = operators.power * HOURS_PER_YEAR / 12 * 0.5
    gini, top = [_gini(stake)], [_top(stake)]
    for _ in range(months):
        luck = rng.lognormal(0.0, 0.3, operators.count)
        profits = margin * month * machines * luck
        if by_stake:
            weights = stake * luck
            stake = stake + KEPT * profits.sum() * weights / weights.sum()
        else:
            machines = machines + KEPT * profits / price
            stake = STAKE_SHARE * price * machines
        gini.append(_gini(stake))
        top.append(_top(stake))
    return Wealth(gini, top)


def _gini(values: Floats) -> float:
    """Corrado Gini's coefficient (1912), by the sorted form."""
    ordered = np.sort(values)
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def _top(values: Floats) -> float:
    count = max(1, len(values) // 100)
    return float(np.sort(values)[-count:].sum() / values.sum())
