"""The rule of credits: pure, monotone, bounded."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.market.sla import (
    PROMISES,
    WHOLE,
    credit,
    credit_share,
    is_doubtful,
    uptime,
    window_at,
)
from unisono.wire.terms import TIERS

DAY = 86_400_000
tiers = st.integers(0, len(TIERS) - 1)
downs = st.integers(0, 2 * DAY)


def test_every_tier_has_a_promise_and_higher_ones_promise_more() -> None:
    assert len(PROMISES) == len(TIERS)
    for low, high in pairwise(PROMISES):
        assert low.uptime < high.uptime
        assert low.slope < high.slope


@given(tiers, downs, downs)
def test_more_time_down_never_costs_less(tier: int, a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert credit_share(tier, low, DAY) <= credit_share(tier, high, DAY)


@given(tiers, downs, st.integers(0, 1 << 80), st.booleans())
def test_no_more_comes_back_than_was_paid(tier: int, down: int, paid: int, guilty: bool) -> None:
    share = credit_share(tier, down, DAY, convicted=guilty)
    assert 0 <= share <= WHOLE
    assert 0 <= credit(paid, share) <= paid


@given(tiers, downs)
def test_nothing_is_owed_exactly_while_the_promise_is_kept(tier: int, down: int) -> None:
    kept = (DAY - min(down, DAY)) * WHOLE >= PROMISES[tier].uptime * DAY
    assert (credit_share(tier, down, DAY) == 0) == kept


@given(downs)
def test_a_higher_tier_owes_no_less(down: int) -> None:
    shares = [credit_share(tier, down, DAY) for tier in range(len(TIERS))]
    assert shares == sorted(shares)


@given(tiers, downs)
def test_a_conviction_costs_everything_whatever_the_tier(tier: int, down: int) -> None:
    assert credit_share(tier, down, DAY, convicted=True) == WHOLE


@pytest.mark.parametrize(
    ("tier", "percent_down", "share"),
    [(0, 100, 0), (1, 5, 0), (1, 6, 50), (1, 25, 1000), (2, 5, 400), (2, 1, 0), (3, 1, 160)],
)
def test_shares_that_the_documentation_names(tier: int, percent_down: int, share: int) -> None:
    assert credit_share(tier, DAY * percent_down // 100, DAY) == share


@given(st.integers(0, 1 << 50), st.integers(1, 1 << 32))
def test_windows_tile_time(moment: int, length: int) -> None:
    number = window_at(moment, length)
    assert number * length <= moment < (number + 1) * length


def test_uptime_is_rounded_against_the_node() -> None:
    assert uptime(0, DAY) == 1000
    assert uptime(1, DAY) == 999
    assert uptime(DAY + 5, DAY) == 0


def test_three_audits_without_result_raise_no_doubt_and_of_many_a_tenth_does_not() -> None:
    assert not is_doubtful(3, 3)
    assert is_doubtful(4, 4)
    assert not is_doubtful(100, 10)
    assert is_doubtful(100, 11)
