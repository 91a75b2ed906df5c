"""Network namespaces with names, and the processes that run in them."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Sequence
from typing import Any, Self

from bench.netlab.namespaces import add, name_of, remove

_COUNT = itertools.count()
END_SECONDS = 5.0


class Places:
    """A context manager; subclasses say how the places are joined.

    Raises:
        RuntimeError: namespaces cannot be made here; see `missing`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        if not 2 <= len(set(self.names)) == len(self.names) < 250:
            raise ValueError(f"expected 2 to 249 different names; got {list(names)}")
        number = next(_COUNT)
        self.namespaces = {name: name_of(f"{number}-{name.lower()}") for name in self.names}
        self._started: list[subprocess.Popen[Any]] = []

    def join(self) -> None:
        """Join the places, whose namespaces exist."""
        raise NotImplementedError

    def part(self) -> None:
        """Undo what `join` did outside the namespaces; never raises."""

    def __enter__(self) -> Self:
        try:
            add(list(self.namespaces.values()))
            self.join()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def inside(self, name: str, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` at a place."""
        return ["ip", "netns", "exec", self.namespaces[name], *argv]

    def run(self, name: str, argv: Sequence[str], **more: Any) -> subprocess.CompletedProcess[Any]:
        """`subprocess.run` at a place."""
        return subprocess.run(self.inside(name, argv), **more)

    def start(self, name: str, argv: Sequence[str], **more: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` at a place; the process is ended with the places."""
        process = subprocess.Popen(self.inside(name, argv), **more)
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what was started here and remove the namespaces. Idempotent."""
        for process in self._started:
            if process.poll() is None:
                process.terminate()
        for process in self._started:
            end(process)
        self._started.clear()
        self.part()
        remove(list(self.namespaces.values()))


def end(process: subprocess.Popen[Any]) -> None:
    """Wait for a process that was told to end; kill it if it does not."""
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
