"""Virtual time: what happens next, in one order that a seed fixes."""

from __future__ import annotations

import heapq
from collections.abc import Callable

SECOND = 1_000_000
"""Times are whole microseconds: sums of floats would depend on the order of adding."""
EPOCH_SECONDS = 1_700_006_400
"""The start of a run as the records see it: Unix seconds, midnight UTC of 15 November 2023."""


class EventQueue:
    """Runs callbacks in order of their time; those of the same time in the order they came."""

    def __init__(self, start: int = 0) -> None:
        """`start`: microseconds since midnight UTC."""
        self.now = start
        """Microseconds since midnight UTC."""
        self.ran = 0
        """Events that have run."""
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: int, action: Callable[[], None]) -> None:
        """Run `action` at `time`, or as soon as possible if that has passed."""
        self._count += 1
        heapq.heappush(self._heap, (max(time, self.now), self._count, action))

    def after(self, delay: int, action: Callable[[], None]) -> None:
        """Run `action` `delay` microseconds from now."""
        self.at(self.now + delay, action)

    def run_until(self, end: int) -> None:
        """Run everything that is due up to `end`, included; then it is `end`."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, action = heapq.heappop(heap)
            self.ran += 1
            action()
        self.now = max(self.now, end)

    @property
    def unix_ms(self) -> int:
        """Now as records write it: Unix milliseconds."""
        return EPOCH_SECONDS * 1000 + self.now // 1000


class SimulatedClock:
    """The queue's time as routing code reads it (`unisono.clock.Clock`)."""

    def __init__(self, events: EventQueue) -> None:
        self._events = events

    def now(self) -> float:
        return EPOCH_SECONDS + self._events.now / SECOND

    def monotonic(self) -> float:
        return self._events.now / SECOND

    async def sleep(self, seconds: float) -> None:
        """Not part of a simulation: nothing in it waits, everything is an event."""
        raise NotImplementedError("the simulation schedules events; it never sleeps")
