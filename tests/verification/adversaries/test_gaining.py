from __future__ import annotations

import numpy as np
import pytest

from unisono.verification.adversaries.gaining import Deviation, Persistent
from unisono.verification.policy import (
    ADVERSARIES,
    MARGIN,
    Exposure,
    detection,
    deterring_rate,
    loss_per_answer,
    plan,
)
from unisono.wire.verification_messages import MILLION

ROUNDS = 40_000
EXPOSURES = [
    Exposure(100, 100_000),
    Exposure(100, 100_000, escrow=400),
    Exposure(100, 500_000, open_answers=300),
    Exposure(100, 60_000, open_answers=400),
    Exposure(100, 10_000, escrow=2_000, open_answers=50),
    Exposure(100, 0, escrow=5_000, open_answers=20),
]


def mean_and_error(profits: np.ndarray) -> tuple[float, float]:
    return float(profits.mean()), float(profits.std() / len(profits) ** 0.5)


@pytest.mark.parametrize("exposure", EXPOSURES, ids=str)
def test_no_way_of_cheating_pays_at_the_planned_rate(exposure: Exposure) -> None:
    made = plan(exposure)
    found = detection(made.seats, ADVERSARIES)
    chance = np.random.default_rng(1)
    opened = exposure.open_answers
    for count in sorted({1, 2, max(1, opened // 3), opened}):
        if count > opened:
            continue
        mean, error = mean_and_error(
            Deviation(exposure, made.rate, found, count).profits(ROUNDS, chance)
        )
        assert mean + 4 * error < 0
        for last in (count, 3 * count, 1 << 40):
            node = Persistent(exposure, made.rate, found, count, last)
            mean, error = mean_and_error(node.profits(ROUNDS, chance))
            assert mean + 4 * error < 0


@pytest.mark.parametrize("exposure", EXPOSURES, ids=str)
def test_the_loss_that_policy_reckons_with_is_what_the_best_cheat_loses(exposure: Exposure) -> None:
    """At the rate where nothing is left of the margin the best cheat breaks even, and no other
    does better."""
    found = 0.9
    rate = deterring_rate(exposure, found)
    gain = round(loss_per_answer(exposure, rate, found))
    even = Exposure(gain, exposure.stake, exposure.escrow, exposure.open_answers)
    chance = np.random.default_rng(2)
    best = -np.inf
    for count in {1, exposure.open_answers}:
        node = Persistent(even, rate, found, count)
        _, given = node.lives(ROUNDS, chance)
        mean, error = mean_and_error(node.profits(ROUNDS, chance))
        per_answer, error = mean / given.mean(), error / given.mean()
        assert per_answer < 5 * error + 0.02 * gain
        best = max(best, per_answer)
    assert best > -5 * error - 0.02 * gain
    assert gain == pytest.approx(MARGIN * exposure.gain, rel=0.02)


def test_a_node_that_never_stops_loses_less_per_answer_than_one_that_cheats_once_in_a_while() -> (
    None
):
    """Why policy reckons with answers that follow a false one before its verdict."""
    exposure = Exposure(100, 60_000, open_answers=400)
    chance = np.random.default_rng(3)
    batch = Deviation(exposure, 5_000, 0.9, 400).profits(ROUNDS, chance).mean() / 400
    node = Persistent(exposure, 5_000, 0.9, 400)
    always = node.profits(ROUNDS, chance).mean() / node.lives(ROUNDS, chance)[1].mean()
    assert always > batch + 10


def test_more_audits_never_help_a_cheat() -> None:
    exposure = Exposure(100, 60_000, 300, 400)
    losses = [loss_per_answer(exposure, rate, 0.9) for rate in range(0, MILLION + 1, 50_000)]
    assert losses == sorted(losses)
