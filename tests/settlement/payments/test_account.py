"""Two sides that apply the same rules count alike, and nobody is bound beyond what was promised."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.settlement.payments.account import Account, Tariff
from unisono.types import SessionId

TARIFF = Tariff(price_in=2_000_000, price_out=6_000_000, layers=6, layer_count=18)
S = [SessionId(str(i)) for i in range(3)]

prices = st.integers(0, 10**9)
tariffs = st.builds(Tariff, prices, prices, st.integers(1, 18), st.just(18))


def test_a_hand_computed_amount() -> None:
    # 2 and 6 units per token through 18 layers; a third of that for 6 of them
    assert TARIFF.amount(3, 3) == 8
    assert TARIFF.amount(1, 0) == 1
    assert TARIFF.amount(0, 0) == 0
    assert TARIFF.upto(10, 4) == TARIFF.amount(4, 0)
    assert TARIFF.upto(10, 14) == TARIFF.amount(10, 4)


@given(tariff=tariffs, prompt=st.integers(0, 1000), tokens=st.integers(0, 1000))
def test_amounts_grow_with_tokens_and_are_never_below_the_exact_price(
    tariff: Tariff, prompt: int, tokens: int
) -> None:
    amount = tariff.amount(prompt, tokens)
    exact = (prompt * tariff.price_in + tokens * tariff.price_out) * tariff.layers / 18e6
    assert exact - 1e-3 <= amount < exact + 1.001
    assert tariff.amount(prompt + 1, tokens) >= amount
    assert tariff.upto(prompt, prompt + tokens) == amount


moves = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from(S), st.integers(1, 50)),
        st.tuples(st.just("pay"), st.sampled_from(S), st.integers(1, 200)),
        st.tuples(st.just("finish"), st.sampled_from(S), st.integers(0, 120)),
        st.tuples(st.just("drop"), st.sampled_from(S), st.just(0)),
    ),
    max_size=40,
)


@given(tariff=tariffs, done=moves)
@settings(max_examples=200)
def test_both_sides_agree_whatever_happens(
    tariff: Tariff, done: list[tuple[str, SessionId, int]]
) -> None:
    payer, payee = Account(), Account()
    before = 0
    for what, session, number in done:
        if what == "open" and session not in payer.stays:
            payer.open(session, tariff, number)
            payee.open(session, tariff, number)
        elif session not in payer.stays:
            continue
        elif what == "pay":
            lacking = payer.lacking(session, number)
            payer.promised += lacking
            assert payer.reserve(session, number)
            payee.promised = payer.promised  # the voucher arrives
            assert payee.reserve(session, number)
        elif what == "finish":
            payer.finish(session, number)
            payee.finish(session, number)
        elif what == "drop":
            payer.drop(session)
            payee.drop(session)
        assert payer == payee
        assert payer.credit >= 0
        assert payer.reserved == sum(stay.reserved for stay in payer.stays.values())
        assert payer.charged + payer.reserved <= payer.promised
        assert payer.promised >= before
        before = payer.promised


def test_a_payee_does_not_take_a_reservation_without_a_promise() -> None:
    account = Account(promised=5)
    account.open(S[0], TARIFF, 3)
    assert account.lacking(S[0], 6) == 3
    assert not account.reserve(S[0], 6)
    assert account.credit == 5
    assert account.reserve(S[0], 3)
    assert account.credit == 3


def test_what_was_not_paid_is_not_charged_at_the_end() -> None:
    account = Account(promised=2)
    account.open(S[0], TARIFF, 3)
    assert account.reserve(S[0], 3)
    account.finish(S[0], 100)
    assert (account.charged, account.reserved) == (2, 0)
