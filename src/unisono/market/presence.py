"""Up or down, from signed heartbeats: what counts against a node, and when nothing does.

A heartbeat is a record that the node signed; whoever passes it on, its lease proves that the node
was up when it was signed. So others cannot make a node look down by what they say, only by what
they all withhold. A gap between the end of one lease and the signing of the next record is time
down, unless

- the last record before it announced the node's leave;
- the observer itself was off, or cut off: less than half of the nodes that it knows had a lease.

Times are Unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from unisono.market.sla import window_at

OFF_MS = 10_000
"""An observer that did not look this long was off."""
RECENT_MS = 600_000
"""Nodes without a lease count towards those who are missing this long."""
MAX_SPANS = 512

Span = tuple[int, int]


class Seen(msgspec.Struct):
    """What is remembered of one node's heartbeats."""

    until: int
    """Where its lease ends."""
    leaving: bool
    tier: int
    """As its newest record has it."""
    counted: int = 0
    """Time before is in the figures already."""


def downs(start: int, stop: int, excused: Iterable[Span], window_ms: int) -> dict[int, int]:
    """Milliseconds of [start, stop) per window, without those in `excused` spans, which do not
    overlap."""
    found: dict[int, int] = {}
    while start < stop:
        window = window_at(start, window_ms)
        end = min(stop, (window + 1) * window_ms)
        free = sum(max(0, min(end, b) - max(start, a)) for a, b in excused)
        if end - start > free:
            found[window] = end - start - free
        start = end
    return found


class Sight(msgspec.Struct):
    """How well an observer sees: the spans in which it saw nothing that counts."""

    looked: int
    """When it looked last."""
    clear: int
    """When at least half of the nodes had a lease, at last."""
    spans: list[Span]
    """In which it was off or cut off; ascending, apart."""

    def look(self, now: int, leases: Iterable[int], lease_ms: int) -> None:
        """The observer looks; `leases`: where those of the nodes end that are not leaving."""
        recent = [until for until in leases if now - until < RECENT_MS]
        up = sum(until > now for until in recent)
        if now - self.looked > OFF_MS:
            self._add(self.looked, now)
        # of a single node nobody can tell whether it or the observer is cut off
        if len(recent) < 2 or 2 * up >= len(recent):
            self.clear = now
        else:
            self._add(self.clear - lease_ms, now)
        self.looked = now

    def forget(self, before: int) -> None:
        """Spans that ended before."""
        self.spans = [s for s in self.spans if s[1] > before][-MAX_SPANS:]

    def _add(self, start: int, stop: int) -> None:
        while self.spans and self.spans[-1][1] >= start:
            last = self.spans.pop()
            start, stop = min(start, last[0]), max(stop, last[1])
        if stop > start:
            self.spans.append((start, stop))
