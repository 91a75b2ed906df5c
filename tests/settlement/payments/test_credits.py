"""What comes back for a window: bounded by what was paid, once, and as safe as the accounts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.settlement.payments.counter import Counter
from unisono.clock import VirtualClock
from unisono.errors import ConfigurationError, PeerRefused
from unisono.settlement.payments.account import Account
from unisono.settlement.payments.books import Books, Place
from unisono.settlement.payments.channels import ChannelState
from unisono.settlement.payments.credits import EDGE_SECONDS, WINDOWS_KEPT, Credits
from unisono.settlement.payments.till import Till
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress, NodeId

PAYER, PAYEE, CONTRACT = (EvmAddress("0x" + digit * 40) for digit in "123")
PLACE = Place("payee", 31337, CONTRACT, PAYER, PAYEE, 0)
GATEWAY, OTHER = NodeId("a" * 64), NodeId("b" * 64)
WINDOW = 3600
START = 1_700_000_000 // WINDOW * WINDOW + 100


def opened(books: Books, clock: VirtualClock | None = None) -> Credits:
    return Credits(books, clock or VirtualClock(START), WINDOW)


@given(st.lists(st.integers(-5, 2000), max_size=12), st.integers(0, 1500), st.integers(0, 1500))
def test_in_all_no_more_comes_back_than_was_paid_and_charged(
    asked: list[int], paid: int, charged: int
) -> None:
    books = Books(None)
    credits = opened(books)
    number = START // WINDOW
    account = Account(promised=3000, charged=charged)
    credits.earned(PLACE, GATEWAY, paid)
    total = 0
    for units in asked:
        came = credits.grant(PLACE, account, b"", GATEWAY, number, units)
        assert came >= total
        total = came
        assert account.charged == charged - total >= 0
    assert total == max([0, *(min(u, paid, charged) for u in asked)])
    assert account.credit == 3000 - charged + total
    books.close()


def test_a_credit_and_its_account_are_kept_together(tmp_path: Path) -> None:
    path = tmp_path / "books"
    books = Books(path)
    account = Account(promised=1000, charged=600)
    credits = opened(books)
    credits.earned(PLACE, GATEWAY, 500)
    assert credits.grant(PLACE, account, b"v", GATEWAY, START // WINDOW, 200) == 200
    books.close()
    books = Books(path)
    credits = opened(books)
    assert books.load(PLACE) == (Account(promised=1000, charged=400), b"v")
    assert credits.given(PLACE, GATEWAY, START // WINDOW) == 200
    account, _ = books.load(PLACE)
    assert credits.grant(PLACE, account, b"v", GATEWAY, START // WINDOW, 200) == 200
    assert account.charged == 400
    books.close()


def test_an_account_that_cannot_be_written_gives_nothing() -> None:
    books = Books(None)
    credits = opened(books)
    credits.earned(PLACE, GATEWAY, 500)
    account = Account(promised=1000, charged=600)
    books.close()
    with pytest.raises(ConfigurationError):
        credits.grant(PLACE, account, b"", GATEWAY, START // WINDOW, 200)
    assert account.charged == 600


def test_only_what_is_far_from_an_edge_is_sure() -> None:
    books = Books(None)
    clock = VirtualClock(START // WINDOW * WINDOW + EDGE_SECONDS - 1)
    credits = opened(books, clock)
    number = START // WINDOW
    credits.earned(PLACE, GATEWAY, 5)
    assert credits.paid(PLACE, GATEWAY, number) == 5
    assert credits.paid(PLACE, GATEWAY, number, sure=True) == 0
    credits = opened(books, VirtualClock(START))
    credits.earned(PLACE, GATEWAY, 7)
    assert credits.paid(PLACE, GATEWAY, number) == 12
    assert credits.paid(PLACE, GATEWAY, number, sure=True) == 7


async def test_old_windows_are_forgotten() -> None:
    books = Books(None)
    clock = VirtualClock(START)
    credits = opened(books, clock)
    credits.earned(PLACE, GATEWAY, 5)
    await clock.advance(WINDOW * (WINDOWS_KEPT + 1))
    credits.earned(PLACE, GATEWAY, 5)
    assert credits.paid(PLACE, GATEWAY, START // WINDOW) == 0


class Desk:
    """A node's till, and what its books say of one payer."""

    def __init__(self) -> None:
        self.key, self.node = SettlementKey.generate(), SettlementKey.generate()
        self.counter = Counter()
        self.books = Books(None)
        self.clock = VirtualClock(START)
        self.till = Till(
            self.node.address,
            self.counter.at(self.node.address),
            self.books,
            self.clock,
            4,
            window_seconds=WINDOW,
        )
        domain = self.till.terms
        self.place = Place(
            "payee", domain.chain, domain.channels, self.key.address, self.node.address, 0
        )
        self.counter.states[self.key.address, self.node.address] = ChannelState(1000, 0, 0, 0)

    def paid(self, units: int) -> None:
        self.books.save(self.place, Account(promised=units, charged=units), b"")
        self.till.credits.earned(self.place, GATEWAY, units)


async def test_a_till_gives_a_window_back_once() -> None:
    desk = Desk()
    desk.paid(800)
    number = START // WINDOW
    for _ in range(3):
        assert await desk.till.credit(GATEWAY, desk.key.address, number, 250) == 200
    account, _ = desk.books.load(desk.place)
    assert account.charged == 600
    # more is due when a conviction follows
    assert await desk.till.credit(GATEWAY, desk.key.address, number, 1000) == 800
    # and less is never taken back
    assert await desk.till.credit(GATEWAY, desk.key.address, number, 1) == 800


async def test_a_till_gives_nothing_to_others_nor_for_other_windows() -> None:
    desk = Desk()
    desk.paid(800)
    number = START // WINDOW
    for peer, payer, window in (
        (OTHER, desk.key.address, number),
        (GATEWAY, PAYER, number),
        (GATEWAY, desk.key.address, number - 1),
        (GATEWAY, desk.key.address, number + 1),
    ):
        with pytest.raises(PeerRefused) as refusal:
            await desk.till.credit(peer, payer, window, 1000)
        assert refusal.value.code == "credit_unpaid"
    account, _ = desk.books.load(desk.place)
    assert account.charged == 800


async def test_a_channel_that_was_closed_has_nothing_to_give() -> None:
    desk = Desk()
    desk.paid(800)
    key = desk.key.address, desk.node.address
    desk.counter.states[key] = replace(desk.counter.states[key], epoch=1)
    with pytest.raises(PeerRefused, match="closed"):
        await desk.till.credit(GATEWAY, desk.key.address, START // WINDOW, 1000)
