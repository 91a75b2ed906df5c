"""`unisono keys`: addresses are shown, secrets never."""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from unisono.cli.app import app

SECRET = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
ADDRESS = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"


def unisono(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def answered(*arguments: str | Path) -> dict[str, Any]:
    done = unisono(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def weak_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNISONO_TEST_KEY_STRENGTH", "2")
    monkeypatch.setenv("UNISONO_PASSPHRASE", "open sesame")


def test_a_new_key_is_listed_and_opens(tmp_path: Path) -> None:
    made = answered("keys", "new")
    assert answered("keys", "list")["keys"] == [made["address"]]
    assert made["folder"] == str(tmp_path / "state" / "keystore")
    assert answered("keys", "address")["address"] == made["address"]


def test_an_imported_key_is_the_same_and_its_secret_is_in_no_output(tmp_path: Path) -> None:
    source = tmp_path / "key.txt"
    source.write_text(SECRET + "\n")
    done = unisono("keys", "import", source)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == ADDRESS
    again = unisono("keys", "import", source)
    assert again.exit_code == 1
    assert "already" in again.stderr
    folder = tmp_path / "state" / "keystore"
    moved = unisono("keys", "import", folder / f"{ADDRESS}.json", "--keystore", tmp_path / "other")
    assert moved.stdout.strip() == ADDRESS
    for output in (done, again, moved):
        assert SECRET[:16] not in output.stdout + output.stderr
        assert "open sesame" not in output.stdout + output.stderr


def at_a_terminal(answers: list[str], *arguments: str) -> tuple[str, int]:
    """What a command shows on a terminal where these lines are typed, and its exit code."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "unisono", *arguments])
    shown = ""
    try:
        while True:
            shown += os.read(terminal, 4096).decode()
            if answers and shown.endswith(": "):
                os.write(terminal, f"{answers.pop(0)}\n".encode())
    except OSError:  # Linux's way to say that the child has closed its end
        pass
    os.close(terminal)
    return shown, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_at_a_terminal_a_passphrase_is_asked_for_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("UNISONO_PASSPHRASE")
    shown, code = at_a_terminal(["secret words", "secret word"], "keys", "new")
    assert (code, "differ" in shown) == (1, True), shown
    shown, code = at_a_terminal(["secret words"] * 2, "keys", "new")
    assert (code, "secret" in shown) == (0, False), shown
    address = shown.split()[-1]
    shown, code = at_a_terminal(["secret words"], "keys", "address")
    assert (code, shown.split()[-1]) == (0, address)
    shown, code = at_a_terminal(["other words"], "keys", "address")
    assert code == 1, shown
    assert f"Passphrase of {address}" in shown


def test_wrong_and_missing_passphrases_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered("keys", "new")
    monkeypatch.setenv("UNISONO_PASSPHRASE", "wrong")
    done = unisono("keys", "address")
    assert done.exit_code == 1
    assert "the passphrase does not open" in done.stderr
    monkeypatch.delenv("UNISONO_PASSPHRASE")
    done = unisono("keys", "address")
    assert done.exit_code == 1
    assert "--passphrase-file" in done.stderr
    file = tmp_path / "passphrase"
    file.write_text("open sesame\n")
    file.chmod(0o600)
    assert answered("keys", "address", "--passphrase-file", file)["address"].startswith("0x")


@pytest.mark.parametrize("text", ["", "abc", "{}", json.dumps({"version": 3}), SECRET + "00"])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, text: str) -> None:
    source = tmp_path / "file"
    source.write_text(text)
    done = unisono("keys", "import", source)
    assert done.exit_code == 1
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr
