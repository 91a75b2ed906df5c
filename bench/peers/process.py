"""Finding, starting and stopping the programs of another engine."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

STOP_SECONDS = 10.0
"""How long a program may take to end by itself before it is killed."""


class PeerMissingError(RuntimeError):
    """A program or a file of the other engine is not where it was said to be."""


class PeerFailedError(RuntimeError):
    """A program of the other engine ended, kept silent or answered with an error."""


def program(variable: str, name: str) -> Path:
    """The program `name` in the folder that the environment variable names.

    Raises PeerMissingError if the variable is not set or the folder lacks the program.
    """
    folder = os.environ.get(variable)
    if not folder:
        raise PeerMissingError(
            f"{variable} is not set; expected the folder that holds {name}. "
            f"Build or install it, then: export {variable}=FOLDER"
        )
    path = Path(folder).expanduser() / name
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise PeerMissingError(
            f"{path} is not a program; {variable} must name the folder that holds {name}. "
            f"Build or install it there, or correct {variable}"
        )
    return path.absolute()


def existing(path: Path, what: str) -> Path:
    """`path` made absolute. Raises PeerMissingError if it does not exist."""
    if not path.exists():
        raise PeerMissingError(f"{path} does not exist; expected {what}. Give its path")
    return path.absolute()


def free_port() -> int:
    """A TCP port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Whether someone accepts connections on this port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def output_of(command: Sequence[str | Path], seconds: float) -> str:
    """What a program prints. Raises PeerFailedError if it fails or takes longer than `seconds`."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise PeerFailedError(
            f"{name} did not end within {seconds:.0f} s; measure fewer tokens or on an idle machine"
        ) from None
    if done.returncode:
        raise PeerFailedError(
            f"{name} ended with status {done.returncode}, expected 0; it said last:\n"
            + done.stderr[-2000:]
        )
    return done.stdout


@contextmanager
def running(
    command: Sequence[str | Path],
    ready: Callable[[], bool],
    seconds: float = 120,
    environment: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Keep a program running while the block does, from the moment that `ready()` is true.

    Raises PeerFailedError, with the end of what the program printed, if it ends before it is
    ready or is not ready after `seconds`.
    """
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        try:
            _wait(process, ready, seconds, printed)
            yield
        finally:
            _stop(process)


def _wait(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], seconds: float, printed: IO[bytes]
) -> None:
    name = Path(str(process.args[0])).name  # type: ignore[index]
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if ready():
            return
        if time.monotonic() > deadline:
            raise PeerFailedError(f"{name} is not ready after {seconds:.0f} s; {_last(printed)}")
        time.sleep(0.05)
    raise PeerFailedError(
        f"{name} ended with status {process.returncode} before it was ready; {_last(printed)}"
    )


def _last(printed: IO[bytes]) -> str:
    printed.seek(0)
    return "it said last:\n" + printed.read()[-2000:].decode(errors="replace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
