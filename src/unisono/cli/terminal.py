"""What people see: two consoles, progress bars, and text that cannot steer the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

out = Console(highlight=False)
"""Results."""
err = Console(stderr=True, highlight=False)
"""Everything else: progress, notices, errors."""

Report = Callable[[int, int, str], None]
"""Called with (done, in all, what)."""

_CONTROLS = {code: None for code in [*range(32), 127, *range(128, 160)] if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """`text` without control characters: a model's answer is somebody else's text, and a
    terminal obeys escape sequences."""
    return text.translate(_CONTROLS)


def write(text: str) -> None:
    """Part of an answer, at once and as it is."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def dim(text: str, console: Console = out) -> None:
    """A line of lesser weight."""
    console.print(Text(printable(text), style="dim"), soft_wrap=True)


def fail(message: str) -> None:
    """An error: one line on stderr."""
    line = Text.assemble(("error: ", "bold red"), " ".join(printable(message).split()))
    err.print(line, soft_wrap=True)


def note(message: str) -> None:
    """Something that happened: one line on stderr."""
    err.print(Text(printable(message)), soft_wrap=True)


@contextmanager
def progress_bar(title: str) -> Generator[Report]:
    """A bar on stderr that appears with the first report and stays when it is full."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[what]}"),
        console=err,
    )
    task = bar.add_task(title, total=None, visible=False, what="")

    def report(done: int, total: int, what: str) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=total, what=what, visible=True)

    try:
        yield report
        if bar.live.is_started:
            bar.update(task, completed=bar.tasks[0].total, what="")
    finally:
        if bar.live.is_started:
            bar.stop()
