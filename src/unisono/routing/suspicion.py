"""Which nodes do not answer, although their lease runs."""

from __future__ import annotations

from unisono.types import NodeId

STRIKES = 2
"""Attempts in a row that a node leaves unanswered before it is a suspect."""
APART_SECONDS = 0.5
"""Attempts that fail closer together than this are one: whatever broke may be over soon."""
NEWER_RECORDS = 2
"""So many newer records clear a suspect: one may have been under way when the node fell silent,
two were not."""


class Suspicion:
    """A member's own experience; it is never passed on, for others could not check it."""

    def __init__(self) -> None:
        self._suspects: dict[NodeId, int] = {}
        self._strikes: dict[NodeId, tuple[int, float]] = {}

    def __contains__(self, node: NodeId) -> bool:
        return node in self._suspects

    def __bool__(self) -> bool:
        return bool(self._suspects)

    def heard(self, node: NodeId) -> None:
        """The node answered, or is of no interest any more."""
        self._suspects.pop(node, None)
        self._strikes.pop(node, None)

    def missed(self, node: NodeId, now: float) -> bool:
        """The node did not answer at `now` (monotonic seconds); whether that makes it a suspect."""
        count, last = self._strikes.get(node, (0, -APART_SECONDS))
        if now - last >= APART_SECONDS:
            count, last = count + 1, now
        self._strikes[node] = count, last
        return count >= STRIKES

    def suspect(self, node: NodeId) -> bool:
        """From now on the node is a suspect; whether it was none before."""
        new = node not in self._suspects
        self._suspects[node] = NEWER_RECORDS
        return new

    def renewed(self, node: NodeId) -> None:
        """Others brought a newer record of the node."""
        if node in self._suspects:
            self._suspects[node] -= 1
            if self._suspects[node] <= 0:
                self.heard(node)
