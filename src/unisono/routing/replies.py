"""What the hops of a chain were asked and owe an answer to, and how they fail to give it."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from unisono.errors import PeerCheating, PeerRefused, WireError
from unisono.types import NodeId

T = TypeVar("T")


class HopLost(WireError):
    """The chain cannot go on; `node` is the hop to replace, and `at_fault` unless it only could not
    take its place since another was lost."""

    def __init__(self, message: str, node: NodeId, *, at_fault: bool = True) -> None:
        super().__init__(message)
        self.node = node
        self.at_fault = at_fault


class HopRefused(PeerRefused):
    """A hop said no; `node` is the one."""

    def __init__(self, message: str, code: str, node: NodeId) -> None:
        super().__init__(message, code)
        self.node = node


class Replies:
    """The replies that are due, by hop and kind: the latest of each that was asked for."""

    def __init__(self) -> None:
        self._due: dict[tuple[int, type], asyncio.Future[Any]] = {}

    def expect(self, index: int, kind: type[T], lost: HopLost | None = None) -> asyncio.Future[T]:
        """A reply of this kind is due from a hop; `lost`: it will not come, since a hop is lost."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._due[index, kind] = future
        if lost is not None:
            _fail(future, lost)
        return future

    def waiting(self, index: int, kind: type[T]) -> asyncio.Future[T] | None:
        """Where a reply goes that came; None if nobody waits any more, since some hop was lost.

        Raises:
            PeerCheating: it was not asked for.
        """
        future = self._due.get((index, kind))
        if future is None:
            raise PeerCheating(f"{kind.__name__} was not asked for")
        return None if future.done() else future

    def refuse(self, index: int, kind: type, refused: HopRefused) -> bool:
        """A hop says no; whether somebody waited for this kind of reply."""
        future = self._due.get((index, kind))
        if future is None or future.done():
            return False
        _fail(future, refused)
        return True

    def fail(self, lost: HopLost) -> None:
        """A hop is lost: whoever waits for any of them is told."""
        for future in self._due.values():
            if not future.done():
                _fail(future, lost)

    def cancel(self) -> None:
        """Nobody waits any more; idempotent."""
        for future in self._due.values():
            future.cancel()


def _fail(future: asyncio.Future[Any], error: HopLost | HopRefused) -> None:
    future.set_exception(error)
    future.exception()  # retrieved here: nobody may be waiting, or for another reply first
