"""The real program in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

UNISONO = [sys.executable, "-m", "unisono"]


def unisono(*arguments: str | Path, seconds: float = 100) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [*UNISONO, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def answered(*arguments: str | Path) -> dict[str, Any]:
    """The JSON object that a verb which succeeds prints."""
    done = unisono(*arguments, "--json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start it in a process group of its own."""
    return subprocess.Popen(
        [*UNISONO, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def processes_of(session: int) -> list[str]:
    """The command lines of living processes in a session (Linux)."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and int(fields[3]) == session and fields[0] != "Z":
            found.append(f"{entry.name} {command}")
    return found


def signal_group(process: subprocess.Popen[str], number: int) -> None:
    """As a terminal does for Ctrl-C: to every process of the group."""
    os.killpg(process.pid, number)
