"""Rows that overtake the message that opens their session: kept for a moment, within bounds."""

from __future__ import annotations

from collections import deque

from unisono.clock import Clock
from unisono.types import NodeId, SessionId
from unisono.wire.messages import Rows, Tokens

EARLY_SECONDS = 5.0
EARLY_BYTES = 64 << 20
EARLY_MESSAGES = 4096

Early = tuple[NodeId, Rows | Tokens, bytes]


class EarlyMessages:
    """What came for sessions that are not open yet; the oldest goes first when it is too much."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._items: deque[tuple[float, SessionId, Early]] = deque()
        self._bytes = 0

    def put(self, session: SessionId, item: Early) -> None:
        """Keep a message and who sent it."""
        now = self._clock.monotonic()
        self._items.append((now, session, item))
        self._bytes += len(item[2])
        while self._items and (
            self._items[0][0] < now - EARLY_SECONDS
            or self._bytes > EARLY_BYTES
            or len(self._items) > EARLY_MESSAGES
        ):
            self._bytes -= len(self._items.popleft()[2][2])

    def take(self, session: SessionId) -> list[Early]:
        """What came for a session that opens now, in order."""
        found = [item for _, s, item in self._items if s == session]
        if found:
            self._items = deque(i for i in self._items if i[1] != session)
            self._bytes -= sum(len(item[2]) for item in found)
        return found
