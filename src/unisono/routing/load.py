"""How busy a node is, as far as this gateway can know."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from unisono.clock import Clock
from unisono.types import NodeId
from unisono.wire.records import LEASE_SECONDS, NodeRecord

MAX_ENDED = 64
"""Ended sessions that are remembered per node, until a record must know that they ended."""


@dataclass(frozen=True, slots=True)
class Stay:
    """One session of this gateway on one node."""

    opened: float
    positions: int


@dataclass(slots=True)
class _Node:
    running: list[Stay] = field(default_factory=lambda: [])
    ended: deque[tuple[float, Stay]] = field(default_factory=lambda: deque(maxlen=MAX_ENDED))


class Load:
    """Counts this gateway's own sessions, of which a record may not know yet.

    A record is some seconds old. It includes the sessions that ran when it was made, so those
    opened since are added, and those that ran then and have ended since are taken off.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._nodes: dict[NodeId, _Node] = {}

    def open(self, path: Sequence[NodeRecord], positions: int) -> Stay:
        """A session of so many positions is opened on every node of a path; pass what is
        returned to `close`."""
        stay = Stay(self._clock.now(), positions)
        for hop in path:
            self._nodes.setdefault(hop.node, _Node()).running.append(stay)
        return stay

    def close(self, path: Sequence[NodeRecord], stay: Stay) -> None:
        """The session has ended."""
        now = self._clock.now()
        for hop in path:
            node = self._nodes.get(hop.node)
            if node is None or stay not in node.running:
                continue
            node.running.remove(stay)
            node.ended.append((now, stay))
        self._forget(now)

    def own(self, node: NodeId) -> int:
        """Sessions of this gateway that run there now."""
        known = self._nodes.get(node)
        return 0 if known is None else len(known.running)

    def sessions(self, record: NodeRecord) -> int:
        """Sessions that run on the node now, of all gateways, by this record and own counts."""
        node = self._nodes.get(record.node)
        if node is None:
            return record.sessions
        made = record.expires / 1000 - LEASE_SECONDS
        sessions = record.sessions
        for stay in node.running:
            sessions += stay.opened > made
        for at, stay in reversed(node.ended):
            if at <= made:
                break
            sessions -= stay.opened <= made
        return max(len(node.running), sessions)

    def room(self, record: NodeRecord) -> int:
        """Positions that are free on the node now. Those of ended sessions count once its record
        says so."""
        node = self._nodes.get(record.node)
        if node is None:
            return record.free_positions
        made = record.expires / 1000 - LEASE_SECONDS
        taken = sum(stay.positions for stay in node.running if stay.opened > made)
        return record.free_positions - taken

    def _forget(self, now: float) -> None:
        """Drop nodes without sessions whose records have learned of it."""
        if len(self._nodes) < 2 * MAX_ENDED:
            return
        for name, node in list(self._nodes.items()):
            if not node.running and (not node.ended or node.ended[-1][0] < now - LEASE_SECONDS):
                del self._nodes[name]
