"""Which nodes belong to which of several chains that may have none in common."""

from __future__ import annotations

from collections.abc import Iterable

from unisono.types import NodeId
from unisono.wire.records import NodeRecord


class Territory:
    """The nodes of one answer's chains. Alone it excludes nobody; `divided` makes several that
    exclude each other.

    A node is chosen and taken in one step of the event loop, so that answers that open and mend
    their chains side by side never share one. A node that was part of an answer stays taken: what
    it has said there it does not say again elsewhere as if it were another.
    """

    def __init__(self) -> None:
        self._nodes: set[NodeId] = set()
        self._others: list[Territory] = []

    @classmethod
    def divided(cls, count: int) -> list[Territory]:
        """As many territories, no two of which take the same node."""
        made: list[Territory] = [cls() for _ in range(count)]
        for each in made:
            each._others = [other for other in made if other is not each]
        return made

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return not self._others

    def foreign(self) -> frozenset[NodeId]:
        """Nodes that the others have taken."""
        return frozenset[NodeId]().union(*(other._nodes for other in self._others))

    def take(self, path: Iterable[NodeRecord]) -> frozenset[NodeId]:
        """The nodes of a path are in use here from now on; returns those that are new."""
        added = frozenset(hop.node for hop in path) - self._nodes
        self._nodes |= added
        return added

    def leave(self, nodes: frozenset[NodeId]) -> None:
        """Give back what `take` returned: none of them opened a session that was used."""
        self._nodes -= nodes
