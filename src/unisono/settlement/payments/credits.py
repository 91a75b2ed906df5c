"""Credits for service levels: what was paid for signed answers per window, and what came back.

A credit lowers `charged` on both sides. The vouchers' total stays, so the units are credit again,
which buys the next tokens. For one node and window the total that came back only grows, and only
its growth is taken off: a credit that is asked for or told twice counts once.
"""

from __future__ import annotations

import sqlite3

from unisono.clock import Clock
from unisono.market.sla import window_at
from unisono.settlement.payments.account import Account
from unisono.settlement.payments.books import Books, Place
from unisono.types import EvmAddress, NodeId

EDGE_SECONDS = 10.0
"""What is paid this close to the end of a window may be in the other one by the other side's
clock."""
WINDOWS_KEPT = 32
_SCHEMA = """
CREATE TABLE IF NOT EXISTS credits (
    side TEXT NOT NULL,
    chain INTEGER NOT NULL,
    contract TEXT NOT NULL,
    payer TEXT NOT NULL,
    payee TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    node TEXT NOT NULL,
    window INTEGER NOT NULL,
    paid TEXT NOT NULL,
    sure TEXT NOT NULL,
    given TEXT NOT NULL,
    PRIMARY KEY (side, chain, contract, payer, payee, epoch, node, window)
)
"""
_WHERE = (
    "side = ? AND chain = ? AND contract = ? AND payer = ? AND payee = ? AND epoch = ? "
    "AND node = ? AND window = ?"
)


class Credits:
    """In the file of the accounts, and written together with them."""

    def __init__(self, books: Books, clock: Clock, window_seconds: int) -> None:
        self._books = books
        self._clock = clock
        self._window_ms = window_seconds * 1000
        self._newest = -1
        with books.atomic() as database:
            database.execute(_SCHEMA)

    def earned(self, place: Place, node: NodeId, units: int) -> None:
        """So much was charged for an answer that the hop signed. `node`: at the other end.

        Raises:
            ConfigurationError: the file can no longer be written.
        """
        if units <= 0:
            return
        now_ms = int(self._clock.now() * 1000)
        window = window_at(now_ms, self._window_ms)
        edge = int(EDGE_SECONDS * 1000)
        middle = edge <= now_ms % self._window_ms < self._window_ms - edge
        with self._books.atomic() as database:
            paid, sure, given = _row(database, place, node, window)
            sure += units if middle else 0
            _put(database, place, node, window, paid + units, sure, given)
            if window > self._newest:
                self._newest = window
                database.execute("DELETE FROM credits WHERE window < ?", (window - WINDOWS_KEPT,))

    def paid(self, place: Place, node: NodeId, window: int, *, sure: bool = False) -> int:
        """Units for answers that were signed in a window; `sure`: only those that both sides count
        in it."""
        with self._books.atomic() as database:
            row = _row(database, place, node, window)
        return row[1] if sure else row[0]

    def given(self, place: Place, node: NodeId, window: int) -> int:
        """Units that came back for a window."""
        with self._books.atomic() as database:
            return _row(database, place, node, window)[2]

    def place_of(
        self, peer: NodeId, payer: EvmAddress, payee: EvmAddress, window: int
    ) -> Place | None:
        """The newest account from which a gateway was served in a window, as its payee has it."""
        with self._books.atomic() as database:
            row = database.execute(
                "SELECT side, chain, contract, payer, payee, epoch FROM credits WHERE "
                "side = 'payee' AND node = ? AND payer = ? AND payee = ? AND window = ? "
                "ORDER BY epoch DESC LIMIT 1",
                (peer, payer, payee, window),
            ).fetchone()
        return None if row is None else Place(*row)

    def grant(
        self,
        place: Place,
        account: Account,
        voucher: bytes,
        node: NodeId,
        window: int,
        units: int,
    ) -> int:
        """Let `units` in all come back for a window: no more than was paid in it, nor than is
        charged, and never less than before. Returns what that comes to.

        Raises:
            ConfigurationError: the file can no longer be written.
        """
        charged = account.charged
        try:
            with self._books.atomic() as database:
                paid, sure, given = _row(database, place, node, window)
                more = min(max(0, min(units, paid) - given), account.charged)
                if more:
                    account.charged -= more
                    self._books.save(place, account, voucher)
                    _put(database, place, node, window, paid, sure, given + more)
        except BaseException:
            account.charged = charged
            raise
        return given + more


def _key(place: Place, node: NodeId, window: int) -> tuple[str | int, ...]:
    account = place.side, place.chain, place.contract, place.payer, place.payee, place.epoch
    return *account, node, window


def _row(
    database: sqlite3.Connection, place: Place, node: NodeId, window: int
) -> tuple[int, int, int]:
    row = database.execute(
        f"SELECT paid, sure, given FROM credits WHERE {_WHERE}", _key(place, node, window)
    ).fetchone()
    return (0, 0, 0) if row is None else (int(row[0]), int(row[1]), int(row[2]))


def _put(
    database: sqlite3.Connection, place: Place, node: NodeId, window: int, *numbers: int
) -> None:
    # numbers as text: they may exceed 63 bits
    database.execute(
        "INSERT OR REPLACE INTO credits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*_key(place, node, window), *map(str, numbers)),
    )
