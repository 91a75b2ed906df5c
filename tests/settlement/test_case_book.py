"""Cases at rest: what is open is found again, what is over takes no room."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from unisono.errors import ConfigurationError
from unisono.settlement import case_book
from unisono.settlement.case_book import CaseBook
from unisono.settlement.jury_records import JuryRecords
from unisono.types import NodeId
from unisono.verification.audit_note import AuditNote

NOTE = AuditNote(0, NodeId("ab" * 32), 5, "INVALID", "rows_out", "other rows", 3, 3, ())
CASE = b"\7" * 32


def test_a_case_is_found_after_a_restart_until_it_is_over(tmp_path: Path) -> None:
    path = tmp_path / "cases.sqlite"
    book = CaseBook(path)
    first = book.add("r" * 32, NOTE, b"brief", 3)
    second = book.add("s" * 32, NOTE, b"other", 7)
    opened = book.opened(first, CASE, 11_500_000)
    book.close()
    book = CaseBook(path)
    assert book.unfinished() == [opened, second]
    ended = book.ended(opened, "convicted", 90_000_000)
    assert ended.brief == b""
    assert book.unfinished() == [second]
    assert book.latest(5) == [ended, second]
    book.close()


def test_old_cases_are_forgotten_and_open_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_book, "MOST", 3)
    book = CaseBook(None)
    stays = book.add("a", NOTE, b"brief", 3)
    for number in range(6):
        book.ended(book.add(str(number), NOTE, b"brief", 3), "right", 0)
    assert [r.receipt for r in book.latest(10)] == ["a", "3", "4", "5"]
    assert book.unfinished() == [stays]


def test_a_result_is_kept_as_it_was_first_found(tmp_path: Path) -> None:
    records = JuryRecords(tmp_path / "jury.sqlite")
    assert records.result(CASE) is None
    assert records.keep(CASE, b"\1" * 32) == b"\1" * 32
    assert records.keep(CASE, b"\2" * 32) == b"\1" * 32
    records.first = 77
    records.close()
    again = JuryRecords(tmp_path / "jury.sqlite")
    assert (again.result(CASE), again.first) == (b"\1" * 32, 77)


@pytest.mark.parametrize("kind", [CaseBook, JuryRecords])
def test_a_file_of_another_version_is_left_alone(
    tmp_path: Path, kind: type[CaseBook] | type[JuryRecords]
) -> None:
    path = tmp_path / "file.sqlite"
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(ConfigurationError, match="version 9"):
        kind(path)
    with pytest.raises(ConfigurationError, match="cannot keep"):
        kind(tmp_path)
