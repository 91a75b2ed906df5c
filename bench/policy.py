"""What the best cheat earns under the audits that policy asks for, and where it would break even.

    python -m bench.policy [--names 200000]

Cheats are drawn at random (`verification.adversaries.gaining`); policy's inequalities are not used.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from bench.machine import publish
from unisono.verification.adversaries.gaining import Persistent
from unisono.verification.conduct import Conduct
from unisono.verification.policy import (
    ADVERSARIES,
    Exposure,
    Tier,
    detection,
    loss_per_answer,
    plan,
)
from unisono.wire.verification_messages import MILLION

WELL_KNOWN = Conduct(sound=1000.0)


def table(names: int) -> list[dict[str, object]]:
    """What the best cheat earns at the planned rate, and at the rate where it should break even."""
    chance = np.random.default_rng(5)
    rows: list[dict[str, object]] = []
    for tier, exposure in (
        (Tier.ECONOMY, Exposure(100, 200_000)),
        (Tier.STANDARD, Exposure(100, 100_000)),
        (Tier.STANDARD, Exposure(100, 100_000, escrow=400, open_answers=100)),
        (Tier.STANDARD, Exposure(100, 200_000, open_answers=400)),
        (Tier.ASSURED, Exposure(100, 10_000, escrow=1_000, open_answers=20)),
        (Tier.CRITICAL, Exposure(10_000, 0, escrow=15_000, open_answers=50)),
    ):
        made = plan(exposure, tier, WELL_KNOWN)
        found = detection(made.seats, ADVERSARIES)
        best = max(
            earned(exposure, made.rate, found, count, names, chance)
            for count in {1, exposure.open_answers}
        )
        even = break_even(exposure, found)
        at_even = max(
            earned(exposure, even, found, count, names, chance)
            for count in {1, exposure.open_answers}
        )
        rows.append(
            {
                "tier": tier.name.lower(),
                "gain": exposure.gain,
                "stake": exposure.stake,
                "escrow": exposure.escrow,
                "open": exposure.open_answers,
                "rate %": made.rate / 10_000,
                "seats": made.seats,
                "best cheat earns, in gains": f"{best[0]:+.3f} ± {best[1]:.3f}",
                "break-even rate %": even / 10_000,
                "earns there": f"{at_even[0]:+.3f} ± {at_even[1]:.3f}",
            }
        )
    return rows


def earned(
    exposure: Exposure,
    rate: int,
    found: float,
    count: int,
    names: int,
    chance: np.random.Generator,
) -> tuple[float, float]:
    """Per false answer, in gains, with its 95 % error."""
    node = Persistent(exposure, rate, found, count)
    seed = int(chance.integers(1 << 32))
    profits = node.profits(names, np.random.default_rng(seed))
    _, given = node.lives(names, np.random.default_rng(seed))
    unit = float(given.mean()) * exposure.gain
    return float(profits.mean()) / unit, 1.96 * float(profits.std()) / math.sqrt(names) / unit


def break_even(exposure: Exposure, found: float) -> int:
    """The rate per million at which policy reckons that nothing is gained or lost."""
    return next(
        (
            rate
            for rate in range(0, MILLION, 10)
            if loss_per_answer(exposure, rate, found) >= exposure.gain
        ),
        MILLION,
    )


def main() -> None:
    """Draw, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=200_000, help="cheats per line")
    publish("policy", table(parser.parse_args().names))


if __name__ == "__main__":
    main()
