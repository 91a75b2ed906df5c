from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import ConfigurationError
from unisono.verification.conduct import Conduct
from unisono.verification.policy import (
    ADVERSARIES,
    DEFAULT_RATE,
    DEFAULT_SEATS,
    MARGIN,
    Exposure,
    Tier,
    adversarial_majority,
    committee_size,
    detection,
    deterring_rate,
    larger_committee,
    loss_per_answer,
    missing_escrow,
    plan,
)
from unisono.wire.verification_messages import MAX_COMMITTEE, MILLION

WELL_KNOWN = Conduct(sound=1000.0)
exposures = st.builds(
    Exposure,
    st.integers(0, 10**9),
    st.integers(0, 10**12),
    st.integers(0, 10**9),
    st.integers(1, 5000),
)


@given(exposures, st.sampled_from(Tier), st.floats(0, 1000), st.floats(0, 5000))
def test_what_is_covered_loses_more_by_cheating_than_it_gains(
    exposure: Exposure, tier: Tier, sound: float, unsound: float
) -> None:
    made = plan(exposure, tier, Conduct(sound, unsound))
    found = detection(made.seats, ADVERSARIES)
    loss = loss_per_answer(exposure, made.rate, found)
    if made.covered:
        assert loss >= exposure.gain * MARGIN * (1 - 1e-6)
    else:
        assert made.rate == MILLION
        assert loss < exposure.gain * MARGIN


@given(exposures, st.integers(1, 5000))
def test_cheating_on_fewer_of_the_open_answers_pays_no_better(
    exposure: Exposure, fewer: int
) -> None:
    made = plan(exposure)
    if not made.covered:
        return
    found = made.rate / MILLION * detection(made.seats, ADVERSARIES)
    count = min(fewer, exposure.open_answers)
    caught = 1 - (1 - found) ** count
    loss = caught * (exposure.stake + count * exposure.escrow)
    assert loss >= count * exposure.gain * (1 - 1e-6)


@given(exposures)
def test_the_escrow_that_is_missing_is_what_it_takes(exposure: Exposure) -> None:
    missing = missing_escrow(exposure, 0.9)
    paid = Exposure(exposure.gain, exposure.stake, exposure.escrow + missing, exposure.open_answers)
    assert missing_escrow(paid, 0.9) == 0
    if missing > 1:
        less = Exposure(
            exposure.gain, exposure.stake, exposure.escrow + missing - 2, exposure.open_answers
        )
        assert missing_escrow(less, 0.9) > 0


def test_a_single_answer_is_the_formula_that_everyone_knows() -> None:
    exposure = Exposure(gain=100, stake=90_000, escrow=10_000)
    rate = deterring_rate(exposure, 0.9)
    assert rate == pytest.approx(MARGIN * 100 / 100_000 / 0.9 * MILLION, rel=1e-3)
    assert rate / MILLION * 0.9 * (90_000 + 10_000) > 100


def test_a_proven_node_is_looked_at_at_the_default_rate_and_a_stranger_more() -> None:
    exposure = Exposure(gain=1, stake=100_000)
    assert (plan(exposure, conduct=WELL_KNOWN).rate, plan(exposure).seats) == (
        DEFAULT_RATE,
        DEFAULT_SEATS,
    )
    assert plan(exposure).rate == 20 * DEFAULT_RATE


@given(exposures, st.sampled_from(Tier), st.floats(0, 1000))
def test_reputation_never_lowers_the_rate_below_what_deters(
    exposure: Exposure, tier: Tier, sound: float
) -> None:
    made = plan(exposure, tier, Conduct(sound))
    assert made.rate >= deterring_rate(exposure, detection(made.seats, ADVERSARIES))
    assert made.rate <= plan(exposure, tier).rate


def test_higher_tiers_look_more_often_and_with_more_eyes() -> None:
    exposure = Exposure(gain=1, stake=10**6)
    plans = [plan(exposure, tier, WELL_KNOWN) for tier in Tier]
    assert sorted(plans, key=lambda p: (p.rate, p.seats)) == plans
    assert plans[-1].rate == MILLION
    assert [p.final for p in plans] == [False, False, False, True]


def test_an_adversarial_majority_is_as_likely_as_drawing_shows() -> None:
    chance = random.Random(1)
    for seats in (1, 3, 5):
        drawn = sum(
            sum(chance.random() < 0.2 for _ in range(seats)) > seats // 2 for _ in range(20_000)
        )
        expected = adversarial_majority(seats, 0.2)
        assert abs(drawn / 20_000 - expected) < 5 * (expected / 20_000) ** 0.5


@given(st.floats(0.01, 0.5), st.floats(0, 0.35))
def test_a_committee_is_odd_and_no_larger_than_its_error_asks(
    error: float, adversaries: float
) -> None:
    try:
        seats = committee_size(error, adversaries)
    except ConfigurationError:
        assert adversarial_majority(MAX_COMMITTEE - 1, adversaries) > error
        return
    assert seats % 2 == 1
    assert adversarial_majority(seats, adversaries) <= error
    assert seats == DEFAULT_SEATS or adversarial_majority(seats - 2, adversaries) > error


def test_a_network_half_of_adversaries_has_no_committee() -> None:
    with pytest.raises(ConfigurationError, match="fraud game"):
        committee_size(0.1, 0.5)


def test_committees_without_a_majority_grow_and_end_in_the_fraud_game() -> None:
    sizes = [DEFAULT_SEATS]
    while (larger := larger_committee(sizes[-1])) is not None:
        sizes.append(larger)
    assert sizes == [3, 7, 15, 31, 63]


def test_amounts_below_zero_are_refused() -> None:
    for bad in (Exposure(-1, 1), Exposure(1, -1), Exposure(1, 1, -1), Exposure(1, 1, 1, 0)):
        with pytest.raises(ConfigurationError):
            plan(bad)


def test_audits_at_the_default_rate_cost_a_network_at_most_a_per_cent() -> None:
    """Even if a replay costs two thirds of the answer, as it does beside a full batch."""
    assert DEFAULT_RATE / MILLION * DEFAULT_SEATS * 2 / 3 <= 0.01


def test_a_committee_grows_where_its_error_would_leave_an_answer_without_cover() -> None:
    small = plan(Exposure(gain=1000, stake=1500))
    assert (small.seats, small.covered) == (DEFAULT_SEATS, True)
    large = plan(Exposure(gain=1000, stake=1270))
    assert large.seats > DEFAULT_SEATS
    assert large.covered
    # none covers less than the gain: then the tier's own has to do
    none = plan(Exposure(gain=1000, stake=1000))
    assert (none.seats, none.covered) == (DEFAULT_SEATS, False)


def test_a_node_that_never_stops_cheating_is_reckoned_with() -> None:
    """Until the verdict on the first false answer that is audited, others follow."""
    alone = Exposure(gain=100, stake=60_000)
    many = Exposure(gain=100, stake=60_000, open_answers=400)
    rate, found = 5_000, 0.9
    q = rate / MILLION * found
    assert loss_per_answer(alone, rate, found) == pytest.approx(q * 60_000)
    assert loss_per_answer(many, rate, found) == pytest.approx(60_000 / (1 / q + 399))
