"""Accounts survive the end of a process; what was reserved is then charged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unisono.errors import ConfigurationError
from unisono.settlement.payments.account import Account, Tariff
from unisono.settlement.payments.books import Books, Place
from unisono.types import EvmAddress, SessionId

PAYER, PAYEE, CONTRACT = (EvmAddress("0x" + digit * 40) for digit in "123")
PLACE = Place("payee", 31337, CONTRACT, PAYER, PAYEE, 0)


def running() -> Account:
    account = Account(promised=10**30, charged=7)
    account.open(SessionId("s"), Tariff(10**6, 0, 1, 1), 5)
    assert account.reserve(SessionId("s"), 5)
    return account


def test_an_account_comes_back_with_its_reservation_charged(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "books"
    books = Books(path)
    books.save(PLACE, running(), b"voucher")
    books.close()
    books = Books(path)
    assert books.load(PLACE) == (Account(promised=10**30, charged=12), b"voucher")
    assert books.load(Place("payer", 31337, CONTRACT, PAYER, PAYEE, 0)) == (Account(), b"")
    assert books.places("payee") == [PLACE]
    assert books.places("payer") == []
    assert path.stat().st_mode & 0o077 == 0
    books.close()


def test_what_was_saved_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "books"
    program = f"""
import sys, time
from tests.settlement.payments.test_books import PLACE, running
from unisono.settlement.payments.books import Books
books = Books({str(path)!r})
for number in range(100_000):
    account = running()
    account.charged = number
    books.save(PLACE, account, str(number).encode())
    print(number, flush=True)
"""
    running_program = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert running_program.stdout is not None
    for _ in range(200):
        running_program.stdout.readline()
    os.kill(running_program.pid, signal.SIGKILL)
    said = [int(line) for line in running_program.stdout.read().split()]
    running_program.wait()
    account, voucher = Books(path).load(PLACE)
    assert account.charged - 5 == int(voucher)
    assert int(voucher) >= max(said, default=199)


def test_files_that_are_no_books(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at" * 50)
    with pytest.raises(ConfigurationError, match="cannot keep accounts"):
        Books(tmp_path / "text")
    first = Books(tmp_path / "used")
    first.save(PLACE, running(), b"")
    with pytest.raises(ConfigurationError, match="no other program uses"):
        Books(tmp_path / "used").load(PLACE)
