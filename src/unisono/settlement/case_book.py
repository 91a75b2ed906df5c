"""The cases that an account opens before a chain's committee, at rest: with what they are about, so
that a process that was killed goes on with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from unisono.database import open_records
from unisono.verification.audit_note import AuditNote

VERSION = 1
MOST = 1024
"""Cases that are over and kept; the oldest go first."""
OPEN = "open"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cases (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    receipt TEXT NOT NULL,
    note BLOB NOT NULL,
    brief BLOB NOT NULL,
    seats INTEGER NOT NULL,
    name BLOB,
    outcome TEXT NOT NULL,
    paid TEXT NOT NULL,
    got TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS cases_outcome ON cases (outcome);
"""
_COLUMNS = "number, receipt, note, brief, seats, name, outcome, paid, got"


@dataclass(frozen=True, slots=True)
class CaseRecord:
    """One case; amounts in units of the coin."""

    number: int
    receipt: str
    note: AuditNote
    """What the audit said."""
    brief: bytes
    """The claim with everything from which it can be computed again; empty once it is over."""
    seats: int
    case: bytes | None
    """By what the contract knows it; None before it was opened."""
    outcome: str
    """`open`, or how it ended."""
    paid: int
    """Bond and fees."""
    got: int
    """All that the contract credited to the opener when it ended."""


class CaseBook:
    """The records of one account. Writes are durable: a case holds a bond."""

    def __init__(self, path: Path | None) -> None:
        """Open the file, or make it; None keeps them in memory.

        Raises:
            ConfigurationError: it cannot be used, or is of another version.
        """
        self._database = open_records(path, _SCHEMA, VERSION, "cases", durable=True)

    def add(self, receipt: str, note: AuditNote, brief: bytes, seats: int) -> CaseRecord:
        """Note a case before it is opened."""
        cursor = self._database.execute(
            "INSERT INTO cases (receipt, note, brief, seats, outcome, paid, got) "
            "VALUES (?, ?, ?, ?, ?, '0', '0')",
            (receipt, msgspec.json.encode(note), brief, seats, OPEN),
        )
        assert cursor.lastrowid is not None
        return CaseRecord(cursor.lastrowid, receipt, note, brief, seats, None, OPEN, 0, 0)

    def opened(self, record: CaseRecord, case: bytes, paid: int) -> CaseRecord:
        """The contract has it."""
        self._database.execute(
            "UPDATE cases SET name = ?, paid = ? WHERE number = ?",
            (case, str(paid), record.number),
        )
        return replace(record, case=case, paid=paid)

    def ended(self, record: CaseRecord, outcome: str, got: int) -> CaseRecord:
        """It is over: what it is about is not needed any more."""
        self._database.execute(
            "UPDATE cases SET outcome = ?, got = ?, brief = x'' WHERE number = ?",
            (outcome, str(got), record.number),
        )
        self._database.execute(
            "DELETE FROM cases WHERE outcome != ? AND number <= "
            "(SELECT max(number) FROM cases) - ?",
            (OPEN, MOST),
        )
        return replace(record, outcome=outcome, got=got, brief=b"")

    def unfinished(self) -> list[CaseRecord]:
        """Those that are not over, oldest first."""
        return self._records("WHERE outcome = ? ORDER BY number", OPEN)

    def latest(self, count: int) -> list[CaseRecord]:
        """The last so many, oldest first."""
        return self._records("ORDER BY number DESC LIMIT ?", count)[::-1]

    def close(self) -> None:
        """Close the file; idempotent."""
        self._database.close()

    def _records(self, which: str, *arguments: object) -> list[CaseRecord]:
        rows: list[tuple[Any, ...]] = self._database.execute(
            f"SELECT {_COLUMNS} FROM cases {which}", arguments
        ).fetchall()
        return [
            CaseRecord(
                number,
                receipt,
                msgspec.json.decode(note, type=AuditNote),
                brief,
                seats,
                case,
                outcome,
                int(paid),
                int(got),
            )
            for number, receipt, note, brief, seats, case, outcome, paid, got in rows
        ]
