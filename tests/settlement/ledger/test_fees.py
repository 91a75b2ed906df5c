"""Offers rise enough to replace each other and never above the limit; shortfalls are exact."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from unisono.settlement.ledger.fees import GWEI, FeeRule
from unisono.settlement.ledger.shortfall import amount_text, shortfall

OFFERS = st.integers(0, 10**13)


@given(OFFERS, OFFERS, st.integers(1, 10**13))
def test_a_first_offer_is_within_the_limit_and_pays_the_base_fee(
    base: int, tip: int, limit: int
) -> None:
    fee = FeeRule(limit=limit).first(base, tip)
    if base > limit:
        assert fee is None
        return
    assert fee is not None
    assert 0 <= fee.tip <= fee.most <= limit
    assert fee.most >= base


@given(OFFERS, OFFERS, OFFERS, OFFERS, st.integers(1, 10**14))
def test_a_higher_offer_replaces_the_last_one(
    base: int, tip: int, later: int, later_tip: int, limit: int
) -> None:
    rule = FeeRule(limit=limit)
    last = rule.first(base, tip)
    while last is not None:
        higher = rule.higher(last, later, later_tip)
        if higher is not None:
            assert higher.most * 8 >= last.most * 9
            assert higher.most <= limit
            assert higher.tip <= higher.most
            assert higher.tip * 8 >= last.tip * 9
        last = higher


def test_waits_double_up_to_the_longest() -> None:
    rule = FeeRule(wait_seconds=30, longest_wait_seconds=100)
    assert [rule.wait(n) for n in range(4)] == [30, 60, 100, 100]
    assert rule.wait(10**9) == 100
    assert rule.limit == 200 * GWEI


def test_a_shortfall_says_what_there_is_what_is_needed_and_what_to_do() -> None:
    error = shortfall(
        1_200_000,
        1_350_000,
        what="deposit",
        purpose="3,000 tokens",
        remedy="top up {missing} with `unisono pay`",
        decimals=6,
        unit="USD",
    )
    assert str(error) == (
        "deposit 1.20 USD, needed 1.35 USD for 3,000 tokens: top up 0.15 USD with `unisono pay`"
    )
    assert (error.have, error.need) == (1_200_000, 1_350_000)


@given(st.integers(-(10**40), 10**40), st.integers(0, 30))
def test_an_amount_is_written_exactly(amount: int, decimals: int) -> None:
    text = amount_text(amount, decimals)
    assert Fraction(text.replace(",", "")) * 10**decimals == amount
