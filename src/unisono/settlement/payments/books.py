"""Accounts at rest: a SQLite file that a killed process finds as it left it.

What was reserved when a process ended is charged when it begins again: its sessions are gone, and
the other side, whose link broke, charges the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unisono.database import open_records
from unisono.errors import ConfigurationError
from unisono.settlement.payments.account import Account
from unisono.types import EvmAddress

VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    side TEXT NOT NULL,
    chain INTEGER NOT NULL,
    contract TEXT NOT NULL,
    payer TEXT NOT NULL,
    payee TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    promised TEXT NOT NULL,
    charged TEXT NOT NULL,
    reserved TEXT NOT NULL,
    voucher BLOB NOT NULL,
    PRIMARY KEY (side, chain, contract, payer, payee, epoch)
)
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Which account: a channel in one of its epochs, seen from one side."""

    side: Literal["payer", "payee"]
    chain: int
    contract: EvmAddress
    payer: EvmAddress
    payee: EvmAddress
    epoch: int


class Books:
    """The accounts of one process. Writes take some tens of microseconds: with a write-ahead log
    they survive the end of the process at once, and a power failure up to the last checkpoints."""

    def __init__(self, path: Path | str | None) -> None:
        """Open the file, or make it; None keeps accounts in memory.

        Raises:
            ConfigurationError: it cannot be used, or is of another version.
        """
        self._database = open_records(path, _SCHEMA, VERSION, "accounts", exclusive=True)

    def load(self, place: Place) -> tuple[Account, bytes]:
        """An account and the last voucher's bytes; empty ones if there are none yet. What was
        reserved is charged."""
        row = self._database.execute(
            "SELECT promised, charged, reserved, voucher FROM accounts WHERE side = ? "
            "AND chain = ? AND contract = ? AND payer = ? AND payee = ? AND epoch = ?",
            _key(place),
        ).fetchone()
        if row is None:
            return Account(), b""
        promised, charged, reserved = (int(x) for x in row[:3])
        return Account(promised, charged + reserved), bytes(row[3])

    def save(self, place: Place, account: Account, voucher: bytes) -> None:
        """Keep an account as it is.

        Raises:
            ConfigurationError: the file can no longer be written.
        """
        # numbers as text: they may exceed 63 bits
        totals = str(account.promised), str(account.charged), str(account.reserved)
        try:
            self._database.execute(
                "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*_key(place), *totals, voucher),
            )
        except sqlite3.Error as error:
            raise ConfigurationError(f"cannot write accounts: {error}") from error

    @contextmanager
    def atomic(self) -> Generator[sqlite3.Connection]:
        """What is written inside is written together, or not at all.

        Raises:
            ConfigurationError: the file can no longer be written.
        """
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise ConfigurationError(f"cannot write accounts: {error}") from error

    def places(self, side: Literal["payer", "payee"]) -> list[Place]:
        """All accounts of a side."""
        rows = self._database.execute(
            "SELECT side, chain, contract, payer, payee, epoch FROM accounts WHERE side = ?",
            (side,),
        ).fetchall()
        return [Place(*row) for row in rows]

    def close(self) -> None:
        """Close the file; idempotent."""
        self._database.close()


def _key(place: Place) -> tuple[str | int, ...]:
    return place.side, place.chain, place.contract, place.payer, place.payee, place.epoch
