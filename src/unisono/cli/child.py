"""Work in a process of its own, so that this one never loads torch."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from unisono import errors
from unisono.errors import UnisonoError

Report = Callable[[int, int, str], None]
Job = Callable[[Report, str], str]
"""Work on one text that gives one text; defined at the top of a module."""

_END_SECONDS = 5.0


def start_servers() -> None:
    """Let the process that others are forked from load its libraries, beginning now.

    It would be interrupted by Ctrl-C while it loads: it inherits from a moment in which this
    process ignores the signal.
    """
    from unisono.compose.local import start_early

    atexit.register(_stop_servers)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        start_early()
    finally:
        signal.signal(signal.SIGINT, before)


def _stop_servers() -> None:
    """End the fork server: left alone, it would finish loading before it sees that we are gone."""
    from multiprocessing import forkserver

    server: Any = getattr(forkserver, "_forkserver", None)
    pid = getattr(server, "_forkserver_pid", None)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        server._stop()


def in_child(job: Job, argument: str, report: Report) -> str:
    """Run `job(report, argument)` in a process of its own and return what it returns.

    Raises:
        UnisonoError: what the job raised, or that its process died.
    """
    from unisono.compose.local import process_context

    start_servers()
    context = process_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, job, argument), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            try:
                kind, values = ours.recv()
            except (EOFError, ConnectionResetError):
                process.join(_END_SECONDS)
                raise UnisonoError(
                    f"a process for {job.__name__} ended with exit code {process.exitcode}; "
                    "is there enough memory?"
                ) from None
            if kind == "progress":
                report(*values)
            elif kind == "failed":
                _raise(*values)
            else:
                return str(values)
    finally:
        process.terminate()
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()
        ours.close()


def _raise(name: str, message: str) -> NoReturn:
    raise getattr(errors, name, UnisonoError)(message)


def _serve(pipe: Connection, job: Job, argument: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    signal.signal(signal.SIGTERM, _end)  # so that what is half done is cleaned up

    def report(done: int, total: int, what: str) -> None:
        pipe.send(("progress", (done, total, what)))

    outcome: tuple[str, Any]
    try:
        outcome = "done", job(report, argument)
    except UnisonoError as error:
        outcome = "failed", (type(error).__name__, str(error))
    except BrokenPipeError:
        return  # the parent is gone
    try:
        pipe.send(outcome)
    except BrokenPipeError:
        return


def _end(number: int, frame: object) -> NoReturn:
    del number, frame
    sys.exit(1)
