"""Receipts at rest: a SQLite file that forgets the oldest."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from unisono.clock import Clock, SystemClock
from unisono.database import open_database
from unisono.errors import ConfigurationError, ReceiptError
from unisono.verification.audit_note import AuditNote
from unisono.verification.receipt import Receipt, to_json
from unisono.verification.unverified import UnverifiedReceipt

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS receipts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    stored INTEGER NOT NULL,
    json BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS receipts_stored ON receipts (stored);
CREATE TABLE IF NOT EXISTS audits (
    receipt TEXT NOT NULL,
    hop INTEGER NOT NULL,
    json BLOB NOT NULL,
    PRIMARY KEY (receipt, hop)
);
"""
DAY = 86_400

Result = TypeVar("Result")


class ReceiptStore:
    """Keeps receipts by id, up to a number and an age, across restarts.

    One thread owns the connection: SQLite has one writer anyway, and the event loop never
    waits for a disk. A receipt holds the prompt's tokens, so the file is for its owner only.
    """

    def __init__(
        self,
        path: Path | str | None,
        *,
        max_count: int = 100_000,
        max_age_seconds: int = 30 * DAY,
        clock: Clock | None = None,
    ) -> None:
        """Open the file at `path`, or make it; None keeps receipts in memory.

        Raises:
            ConfigurationError: the file cannot be used, or was written by another version.
        """
        if max_count < 1 or max_age_seconds < 1:
            raise ConfigurationError("a receipt store keeps at least one receipt for one second")
        self._max_count = max_count
        self._max_age = max_age_seconds
        self._clock = clock or SystemClock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="receipts")
        self._closed = False
        self._count = 0
        try:
            self._database = self._thread.submit(_open, path).result()
            self._thread.submit(self._recount).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise ConfigurationError(
                f"cannot keep receipts in {path}: {error}; name a file that this user may "
                "write and that no other program uses"
            ) from error
        except ConfigurationError:
            self._thread.shutdown()
            raise

    @property
    def count(self) -> int:
        """How many receipts are stored."""
        return self._count

    async def put(self, receipt: Receipt | UnverifiedReceipt) -> str:
        """Store a receipt and return its id, once it will survive the end of this process.

        Raises:
            ReceiptError: the file cannot be written, or the store is closed.
        """
        data, name = to_json(receipt), receipt.id

        def write() -> None:
            with self._database as database:
                added = database.execute(
                    "INSERT OR IGNORE INTO receipts (id, stored, json) VALUES (?, ?, ?)",
                    (name, int(self._clock.now()), data),
                ).rowcount
                self._prune(self._count + added)

        await self._run(write)
        return name

    async def get(self, name: str) -> bytes | None:
        """The JSON of the receipt with this id, and of what audits found; None if it is unknown or
        forgotten.

        Raises:
            ReceiptError: the file cannot be read, or the store is closed.
        """

        def read() -> bytes | None:
            row = self._database.execute(
                "SELECT json FROM receipts WHERE id = ? AND stored >= ?",
                (name, int(self._clock.now()) - self._max_age),
            ).fetchone()
            if row is None:
                return None
            notes = self._database.execute(
                "SELECT json FROM audits WHERE receipt = ? ORDER BY hop", (name,)
            ).fetchall()
            return _with_audits(bytes(row[0]), [bytes(note[0]) for note in notes])

        return await self._run(read)

    async def note(self, name: str, audit: AuditNote) -> None:
        """Keep what an audit found of a hop, as long as the receipt, in place of an earlier one.

        Raises:
            ReceiptError: the file cannot be written, or the store is closed.
        """
        data = msgspec.json.encode(audit)

        def write() -> None:
            with self._database as database:
                database.execute(
                    "INSERT OR REPLACE INTO audits (receipt, hop, json) "
                    "SELECT id, ?, ? FROM receipts WHERE id = ?",
                    (audit.hop, data, name),
                )

        await self._run(write)

    def close(self) -> None:
        """Finish what is being written and close the file; idempotent."""
        if not self._closed:
            self._closed = True
            self._thread.submit(self._database.close).result()
            self._thread.shutdown()

    def _recount(self) -> None:
        with self._database as database:
            self._prune(database.execute("SELECT count(*) FROM receipts").fetchone()[0])

    def _prune(self, count: int) -> None:
        """Forget what is too old or too much of `count` receipts. Only the thread may count."""
        before = count
        count -= self._database.execute(
            "DELETE FROM receipts WHERE stored < ?", (int(self._clock.now()) - self._max_age,)
        ).rowcount
        if count > self._max_count:
            count -= self._database.execute(
                "DELETE FROM receipts WHERE number IN "
                "(SELECT number FROM receipts ORDER BY number LIMIT ?)",
                (count - self._max_count,),
            ).rowcount
        if count < before:
            self._database.execute(
                "DELETE FROM audits WHERE receipt NOT IN (SELECT id FROM receipts)"
            )
        self._count = count

    async def _run(self, work: Callable[[], Result]) -> Result:
        if self._closed:
            raise ReceiptError("the receipt store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise ReceiptError(f"the receipt store failed: {error}; is its disk full?") from error


def _with_audits(receipt: bytes, notes: Sequence[bytes]) -> bytes:
    """The JSON of a receipt with a last field of audits, if there are any."""
    if not notes:
        return receipt
    return receipt.removesuffix(b"}") + b',"audits":[' + b",".join(notes) + b"]}"


def _open(path: Path | str | None) -> sqlite3.Connection:
    return open_database(
        path,
        SCHEMA,
        SCHEMA_VERSION,
        lambda found: (
            f"{path} was written by another version of the receipt store ({found}); this "
            f"program reads version {SCHEMA_VERSION}: move the file away to start a new one"
        ),
    )
