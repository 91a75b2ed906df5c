"""What an account means to do on a chain, at rest: the outbox's table in SQLite.

An intent goes queued → signed → sent → mined → final. Everything is written before it is done, so
that a process that dies at any moment finds on its return what it may have done.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NewType

import msgspec

from unisono.database import open_database
from unisono.errors import ConfigurationError
from unisono.settlement.ledger.fees import Fee
from unisono.settlement.ledger.ledger import ChainReceipt, TxHash
from unisono.types import EvmAddress, canonical, digest

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS intents (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    content BLOB NOT NULL,
    state TEXT NOT NULL,
    nonce INTEGER UNIQUE,
    problem TEXT NOT NULL DEFAULT '',
    receipt BLOB,
    changed INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS intents_state ON intents (state);
CREATE TABLE IF NOT EXISTS attempts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    hash TEXT NOT NULL UNIQUE,
    intent INTEGER NOT NULL REFERENCES intents (number),
    raw BLOB NOT NULL,
    gas INTEGER NOT NULL,
    fee BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

IntentId = NewType("IntentId", str)
"""64 lowercase hex digits: the hash of chain, account and content."""


class Intent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message that shall reach a contract once."""

    to: EvmAddress | None
    """None creates a contract."""
    data: bytes = b""
    value: bytes = b""
    """Wei that go along, as a big-endian integer of at most 32 bytes (see `paying`)."""
    key: str = ""
    """Tells apart what is meant twice: two intents with the same content and key are one."""
    purpose: str = ""
    """For people: appears in errors, and is no part of the id."""

    @property
    def wei(self) -> int:
        """`value` as an integer."""
        return int.from_bytes(self.value, "big")

    def paying(self, wei: int) -> Intent:
        """The same, with coins of the chain going along."""
        return msgspec.structs.replace(self, value=wei.to_bytes(32, "big").lstrip(b"\0"))

    def id(self, chain_id: int, sender: EvmAddress) -> IntentId:
        """The name of this intent of an account on a chain."""
        content = canonical((chain_id, sender, self.to, self.data, self.value, self.key))
        return IntentId(digest("intent/1", content).hex())


class State(StrEnum):
    """How far an intent is."""

    queued = "queued"
    """Waits for its turn; nothing was signed."""
    signed = "signed"
    """Has a nonce and a signed transaction, which the chain may or may not have."""
    sent = "sent"
    """The chain has taken the transaction and not put it into a block."""
    mined = "mined"
    """In a block that may still be replaced."""
    final = "final"
    """In a block with enough blocks on top; it succeeded."""
    failed = "failed"
    """In such a block, and the contract reverted."""
    refused = "refused"
    """The contract would revert, so nothing was signed. Submitting it again tries again."""
    cancelled = "cancelled"
    """Taken back before anything was signed. Submitting it again tries again."""


OPEN = (State.queued, State.signed, State.sent, State.mined)
_AGAIN = (State.refused, State.cancelled)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One signed transaction of an intent; all of one intent share the nonce."""

    hash: TxHash
    raw: bytes
    gas: int
    fee: Fee

    def __repr__(self) -> str:
        return f"Attempt({self.hash})"


@dataclass(frozen=True, slots=True)
class Entry:
    """An intent and what became of it."""

    number: int
    id: IntentId
    intent: Intent
    state: State
    nonce: int | None
    problem: str
    receipt: ChainReceipt | None
    attempts: tuple[Attempt, ...]
    """Oldest first."""


class IntentStore:
    """The table. Every method is one transaction, durable when it returns (WAL, synchronous
    FULL). Methods raise `sqlite3.Error`; for one thread at a time."""

    def __init__(self, path: Path | str | None) -> None:
        """Open the file at `path`, or make it for its owner only; None keeps it in memory.

        Raises:
            ConfigurationError: the file cannot be used, or was written by another version.
        """
        try:
            self._database = _open(path)
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"cannot keep an outbox in {path}: {error}; name a file that this user may write"
            ) from error

    def bind(self, facts: dict[str, str]) -> dict[str, tuple[str, str]]:
        """Note what this outbox is for, the first time. Returns what differs: name → (noted,
        given)."""
        with self._database as database:
            rows = dict(database.execute("SELECT name, value FROM facts").fetchall())
            missing = [(k, v) for k, v in facts.items() if k not in rows]
            database.executemany("INSERT INTO facts VALUES (?, ?)", missing)
        return {k: (rows[k], v) for k, v in facts.items() if rows.get(k, v) != v}

    def put(self, name: IntentId, intent: Intent, now: int) -> None:
        """Queue an intent; does nothing if it is known, unless it was refused or cancelled."""
        with self._database as database:
            database.execute(
                "INSERT OR IGNORE INTO intents (id, content, state, changed) VALUES (?, ?, ?, ?)",
                (name, canonical(intent), State.queued, now),
            )
            database.execute(
                "UPDATE intents SET state = ?, problem = '', changed = ? "
                "WHERE id = ? AND state IN (?, ?)",
                (State.queued, now, name, *_AGAIN),
            )

    def get(self, name: IntentId) -> Entry | None:
        """An intent by its id."""
        rows = self._database.execute(f"{_SELECT} WHERE id = ?", (name,)).fetchall()
        return next(iter(self._entries(rows)), None)

    def open_entries(self) -> tuple[Entry, ...]:
        """All that are not over: those with a nonce by nonce, then the others as they came."""
        rows = self._database.execute(
            f"{_SELECT} WHERE state IN (?, ?, ?, ?) ORDER BY nonce IS NULL, nonce, number", OPEN
        ).fetchall()
        return self._entries(rows)

    def next_nonce(self) -> int:
        """One more than the highest nonce that was ever signed."""
        row = self._database.execute("SELECT max(nonce) FROM intents").fetchone()
        return 0 if row[0] is None else int(row[0]) + 1

    def sign(self, entry: Entry, nonce: int, attempt: Attempt, now: int) -> bool:
        """Give a queued intent its nonce and first transaction; False if it was cancelled."""
        with self._database as database:
            changed = database.execute(
                "UPDATE intents SET state = ?, nonce = ?, problem = '', changed = ? "
                "WHERE number = ? AND state = ?",
                (State.signed, nonce, now, entry.number, State.queued),
            ).rowcount
            if changed:
                self._attempt(entry, attempt)
        return changed == 1

    def bump(self, entry: Entry, attempt: Attempt, now: int) -> None:
        """Add a transaction with a higher fee."""
        with self._database:
            self._attempt(entry, attempt)
            self._state(entry, State.signed, now, "")

    def note(self, entry: Entry, state: State, now: int, problem: str = "") -> None:
        """Write down how far an intent is, without a receipt."""
        with self._database:
            self._state(entry, state, now, problem)

    def mined(
        self, entry: Entry, state: State, receipt: ChainReceipt, now: int, problem: str
    ) -> None:
        """Write down a receipt; when it is final, signed transactions are no longer needed."""
        with self._database as database:
            database.execute(
                "UPDATE intents SET state = ?, receipt = ?, problem = ?, changed = ? "
                "WHERE number = ?",
                (state, msgspec.msgpack.encode(receipt), problem, now, entry.number),
            )
            if state in (State.final, State.failed):
                database.execute("DELETE FROM attempts WHERE intent = ?", (entry.number,))

    def requeue(self, entry: Entry, now: int) -> None:
        """Begin anew: another transaction took the nonce for good."""
        with self._database as database:
            database.execute("DELETE FROM attempts WHERE intent = ?", (entry.number,))
            database.execute(
                "UPDATE intents SET state = ?, nonce = NULL, receipt = NULL, changed = ? "
                "WHERE number = ?",
                (State.queued, now, entry.number),
            )

    def cancel(self, name: IntentId, now: int) -> bool:
        """Take an intent back if nothing was signed for it."""
        with self._database as database:
            changed = database.execute(
                "UPDATE intents SET state = ?, changed = ? WHERE id = ? AND state = ?",
                (State.cancelled, now, name, State.queued),
            ).rowcount
        return changed == 1

    def forget(self, before: int) -> int:
        """Delete what is over and did not change since a time, but the highest nonce. Returns how
        many. Such an intent would be sent again if it were submitted again."""
        over = (State.final, State.failed, *_AGAIN)
        with self._database as database:
            return database.execute(
                "DELETE FROM intents WHERE state IN (?, ?, ?, ?) AND changed < ? "
                "AND nonce IS NOT (SELECT max(nonce) FROM intents)",
                (*over, before),
            ).rowcount

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _attempt(self, entry: Entry, attempt: Attempt) -> None:
        self._database.execute(
            "INSERT INTO attempts (hash, intent, raw, gas, fee) VALUES (?, ?, ?, ?, ?)",
            (attempt.hash, entry.number, attempt.raw, attempt.gas, _fee_bytes(attempt.fee)),
        )

    def _state(self, entry: Entry, state: State, now: int, problem: str) -> None:
        self._database.execute(
            "UPDATE intents SET state = ?, problem = ?, changed = ? WHERE number = ?",
            (state, problem, now, entry.number),
        )

    def _entries(self, rows: Iterable[tuple[object, ...]]) -> tuple[Entry, ...]:
        return tuple(self._entry(*row) for row in rows)

    def _entry(
        self,
        number: object,
        name: object,
        content: object,
        state: object,
        nonce: object,
        problem: object,
        receipt: object,
    ) -> Entry:
        attempts = self._database.execute(
            "SELECT hash, raw, gas, fee FROM attempts WHERE intent = ? ORDER BY number", (number,)
        ).fetchall()
        return Entry(
            number=msgspec.convert(number, int),
            id=IntentId(str(name)),
            intent=msgspec.msgpack.decode(msgspec.convert(content, bytes), type=Intent),
            state=State(str(state)),
            nonce=msgspec.convert(nonce, int | None),
            problem=str(problem),
            receipt=None
            if receipt is None
            else msgspec.msgpack.decode(msgspec.convert(receipt, bytes), type=ChainReceipt),
            attempts=tuple(
                Attempt(TxHash(h), bytes(raw), int(gas), _fee(bytes(fee)))
                for h, raw, gas, fee in attempts
            ),
        )


_SELECT = "SELECT number, id, content, state, nonce, problem, receipt FROM intents"


def _fee_bytes(fee: Fee) -> bytes:
    return fee.most.to_bytes(16, "big") + fee.tip.to_bytes(16, "big")


def _fee(data: bytes) -> Fee:
    return Fee(int.from_bytes(data[:16], "big"), int.from_bytes(data[16:], "big"))


def _open(path: Path | str | None) -> sqlite3.Connection:
    return open_database(
        path,
        SCHEMA,
        SCHEMA_VERSION,
        lambda found: (
            f"{path} was written by another version of the outbox ({found}); this program "
            f"reads version {SCHEMA_VERSION}: let the other version finish what is open in it"
        ),
        durable=True,  # what was signed must be known before it is sent, power cut or not
        any_thread=True,
        folder_mode=0o700,
    )
