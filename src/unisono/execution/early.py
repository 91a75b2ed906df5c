"""Rows that overtake the message that opens their session: kept for a moment, within bounds."""

from __future__ import annotations

from collections import deque

from unisono.clock import Clock
from unisono.types import NodeId, SessionId
from unisono.wire.messages import Pages, Rows, Tokens

EARLY_SECONDS = 5.0
EARLY_BYTES = 64 << 20
"""Of all peers together. A peer that sends more than its share pushes out its own."""
EARLY_MESSAGES = 4096
"""Of one peer."""

Early = tuple[NodeId, Rows | Pages | Tokens, bytes]


class _Peer:
    """What one peer sent too early."""

    def __init__(self) -> None:
        self.items: deque[tuple[float, SessionId, Early]] = deque()
        self.bytes = 0

    def drop_oldest(self) -> None:
        self.bytes -= len(self.items.popleft()[2][2])


class EarlyMessages:
    """What came for sessions that are not open yet. When it is too much, the oldest of the peer
    that takes the most room goes first: nobody pushes out what others sent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._peers: dict[NodeId, _Peer] = {}

    @property
    def bytes(self) -> int:
        """Memory held, apart from headers."""
        return sum(peer.bytes for peer in self._peers.values())

    def put(self, session: SessionId, item: Early) -> None:
        """Keep a message and who sent it."""
        now = self._clock.monotonic()
        peer = self._peers.setdefault(item[0], _Peer())
        peer.items.append((now, session, item))
        peer.bytes += len(item[2])
        if len(peer.items) > EARLY_MESSAGES:
            peer.drop_oldest()
        for node, each in list(self._peers.items()):
            while each.items and each.items[0][0] < now - EARLY_SECONDS:
                each.drop_oldest()
            if not each.items:
                del self._peers[node]
        while self.bytes > EARLY_BYTES:
            max(self._peers.values(), key=lambda p: p.bytes).drop_oldest()

    def take(self, session: SessionId) -> list[Early]:
        """What came for a session that opens now, in order."""
        found: list[Early] = []
        for peer in self._peers.values():
            mine = [item for _, s, item in peer.items if s == session]
            if mine:
                found += mine
                peer.items = deque(i for i in peer.items if i[1] != session)
                peer.bytes -= sum(len(item[2]) for item in mine)
        return found
