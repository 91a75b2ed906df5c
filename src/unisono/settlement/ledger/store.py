"""The embedded chain at rest: a key/value table in SQLite, written one block at a time."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from eth.db.backends.base import BaseDB
from filelock import FileLock, Timeout

from unisono.database import open_database
from unisono.errors import ConfigurationError

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
_CACHED_ENTRIES = 200_000


class ChainStore(BaseDB):
    """What py-evm reads and writes. Writes are kept in memory until `commit`, which makes all of
    them durable together (WAL, synchronous FULL) or, when the process dies, none.

    One process owns the file: a lock beside it says so. Not safe for several threads at once.
    """

    def __init__(self, path: Path | str | None) -> None:
        """Open the file at `path`, or make it for its owner only; None keeps it in memory.

        Raises:
            ConfigurationError: the file cannot be used, belongs to a running chain, or was
                written by another version.
        """
        self._lock: FileLock | None = None
        self._cache: dict[bytes, bytes | None] = {}
        self._dirty: dict[bytes, bytes | None] = {}
        if path is None:
            self._database = _prepared(None)
            return
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = FileLock(path.with_name(path.name + ".lock"), timeout=0, mode=0o600)
            self._lock.acquire()
            self._database = _prepared(path)
        except Timeout as error:
            raise ConfigurationError(
                f"another process runs the chain in {path}: use its address, or stop it first"
            ) from error
        except (sqlite3.Error, OSError) as error:
            self._release()
            raise ConfigurationError(
                f"cannot keep a chain in {path}: {error}; name a file that this user may write"
            ) from error
        except ConfigurationError:
            self._release()
            raise

    def __getitem__(self, key: bytes) -> bytes:
        try:
            value = self._cache[key]
        except KeyError:
            row = self._database.execute(
                "SELECT value FROM entries WHERE key = ?", (key,)
            ).fetchone()
            value = self._cache[key] = None if row is None else bytes(row[0])
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._cache[key] = self._dirty[key] = value

    def __delitem__(self, key: bytes) -> None:
        self[key]  # raises KeyError, as a dictionary does
        self._cache[key] = self._dirty[key] = None

    def _exists(self, key: bytes) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def commit(self) -> None:
        """Make everything that was written durable, in one step.

        Raises:
            sqlite3.Error: nothing was written, for instance since the disk is full.
        """
        if not self._dirty:
            return
        kept = [(key, value) for key, value in self._dirty.items() if value is not None]
        gone = [(key,) for key, value in self._dirty.items() if value is None]
        with self._database as database:
            database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", kept)
            database.executemany("DELETE FROM entries WHERE key = ?", gone)
        self._dirty.clear()
        if len(self._cache) > _CACHED_ENTRIES:
            self._cache.clear()

    def discard(self) -> None:
        """Forget what was written since the last `commit`."""
        for key in self._dirty:
            self._cache.pop(key, None)
        self._dirty.clear()

    def fact(self, name: str) -> bytes | None:
        """A value that is about the chain and not in it."""
        row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_facts(self, facts: dict[str, bytes]) -> None:
        """Store facts together with what was written since the last `commit`."""
        with self._database as database:
            database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(facts.items()))
            database.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?)",
                [(key, value) for key, value in self._dirty.items() if value is not None],
            )
        self._dirty.clear()

    def close(self) -> None:
        """Close the file and give up the lock; idempotent."""
        self._database.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _prepared(path: Path | None) -> sqlite3.Connection:
    return open_database(
        path,
        SCHEMA,
        SCHEMA_VERSION,
        lambda found: (
            f"{path} was written by another version of the chain store ({found}); this "
            f"program reads version {SCHEMA_VERSION}: move the file away to start a new chain"
        ),
        durable=True,  # a confirmed transaction is money: it must survive a power cut
        any_thread=True,
        folder_mode=0o700,
    )
