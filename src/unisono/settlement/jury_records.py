"""What a member of a chain's committee found, at rest: it must be able to open its commits."""

from __future__ import annotations

from pathlib import Path

from unisono.database import open_records

VERSION = 1
MOST = 4096
"""Results that are kept; the oldest go first."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name BLOB NOT NULL UNIQUE,
    result BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_FIRST = "first"


class JuryRecords:
    """The results of one account, by case, and the block from which its cases are looked for.
    Writes are durable: a commit that cannot be opened costs a fine."""

    def __init__(self, path: Path | None) -> None:
        """Open the file, or make it; None keeps them in memory.

        Raises:
            ConfigurationError: it cannot be used, or is of another version.
        """
        self._database = open_records(path, _SCHEMA, VERSION, "results", durable=True)

    def result(self, case: bytes) -> bytes | None:
        """What was found of a case."""
        row = self._database.execute(
            "SELECT result FROM results WHERE name = ?", (case,)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def keep(self, case: bytes, result: bytes) -> bytes:
        """Keep a result, unless there is one; returns the one that is kept."""
        self._database.execute(
            "INSERT OR IGNORE INTO results (name, result) VALUES (?, ?)", (case, result)
        )
        self._database.execute(
            "DELETE FROM results WHERE number <= (SELECT max(number) FROM results) - ?", (MOST,)
        )
        return self.result(case) or result

    @property
    def first(self) -> int:
        """The block from which on cases may be open; 0: none was noted."""
        row = self._database.execute("SELECT value FROM facts WHERE name = ?", (_FIRST,)).fetchone()
        return 0 if row is None else int(row[0])

    @first.setter
    def first(self, block: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (_FIRST, block))

    def close(self) -> None:
        """Close the file; idempotent."""
        self._database.close()
