"""Operators: machines, what they cost, and what their owners ask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unisono.market.pricing import HOURS_PER_YEAR
from unisono.simulation.hardware import KINDS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WATTS = {
    "laptop, CPU": 35.0,
    "desktop, CPU": 95.0,
    "Mac, 64 GB unified": 60.0,
    "desktop, 12 GB GPU": 250.0,
    "desktop, 24 GB GPU": 430.0,
    "workstation, 48 GB GPU": 380.0,
    "server, 80 GB GPU": 800.0,
}
"""Of the whole machine at work: board powers of common parts and the rest of a machine, rounded."""
PURCHASE = {
    "laptop, CPU": 900.0,
    "desktop, CPU": 700.0,
    "Mac, 64 GB unified": 2500.0,
    "desktop, 12 GB GPU": 1100.0,
    "desktop, 24 GB GPU": 2400.0,
    "workstation, 48 GB GPU": 7000.0,
    "server, 80 GB GPU": 30_000.0,
}
ACTIVE_GB = 8.6
"""Bytes that a decode step reads: an 8B model at one byte per weight, which most machines hold
whole: the market is then one good, and prices can be compared."""
BATCH = 8
"""Sessions that share a pass, each 0.1 of a step more (see `routing.costs.SESSION_SHARE`)."""


@dataclass(frozen=True, slots=True)
class Operators:
    """Arrays over all operators; money in units, time in hours."""

    kind: Ints
    tokens_per_hour: Floats
    """At full use."""
    power: Floats
    """Units per hour of work for electricity."""
    purchase: Floats
    """What the machine costs."""
    wear: Floats
    """Units per hour, worked or not, of those who bought the machine for this."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.kind)

    @property
    def power_per_token(self) -> Floats:
        """Units of electricity per token."""
        return self.power / self.tokens_per_hour


def make_operators(
    count: int, rng: np.random.Generator, *, electricity: float = 0.22, bought: float = 0.3
) -> Operators:
    """Draw operators with the machines of `KINDS` that hold the model.

    Args:
        electricity: median price per kWh; households spread around it by a factor of 1.6 (log
            standard deviation 0.47), as prices of countries do.
        bought: share of those who bought the machine to earn with it and must earn it back in
            four years; to others it is there anyway.
    """
    able = [k for k in KINDS if k.memory_gb > ACTIVE_GB]
    shares = np.array([k.share for k in able])
    kind = rng.choice(len(able), count, p=shares / shares.sum())
    steps = np.array([ACTIVE_GB / k.read_gb_s for k in able])
    per_hour = 3600 * BATCH / (steps * (1 + 0.1 * (BATCH - 1)))
    watts = np.array([WATTS[k.name] for k in able])
    price = np.array([PURCHASE[k.name] for k in able])
    spread = rng.lognormal(0.0, 0.47, count)
    skill = rng.lognormal(0.0, 0.1, count)
    wear = price[kind] / (4 * HOURS_PER_YEAR) * (rng.random(count) < bought)
    return Operators(
        kind.astype(np.int64),
        per_hour[kind] * skill,
        watts[kind] / 1000 * electricity * spread,
        price[kind],
        wear,
    )
