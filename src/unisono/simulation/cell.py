"""Regions of nodes that know each other, and gateways that know some regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from unisono.clock import Clock
from unisono.routing.entry import node_key, prefix
from unisono.routing.experience import Experience
from unisono.simulation.geography import one_way_us
from unisono.simulation.world import Machine
from unisono.types import NodeId
from unisono.wire.gossip_messages import MAX_DEPTH
from unisono.wire.records import NodeRecord


class Cell:
    """A region: every member keeps the records of all."""

    def __init__(self, index: int, members: list[Machine]) -> None:
        self.index = index
        self.members = members
        for machine in members:
            machine.cell = index
        self.view: dict[NodeId, NodeRecord] = {}
        """The newest record of every member, as far as it has spread."""


class Gateway:
    """One gateway: what it believes is in the real code's own objects."""

    def __init__(
        self,
        index: int,
        machine: Machine,
        cells: Sequence[Cell],
        visible: Callable[[Machine, Sequence[Cell]], list[NodeRecord]],
        clock: Clock,
    ) -> None:
        """`cells`: the regions that it knows; `visible` gives their records as `machine` sees
        them."""
        self.index = index
        self.machine = machine
        self.cells = cells
        self.experience = Experience(clock, here=lambda: machine.coordinate, salt=1 + index)
        self._visible = visible
        self._suspected: dict[NodeId, int] = {}

    def records(self) -> list[NodeRecord]:
        """What may be chosen now: nodes that answered when last tried, or spoke since."""
        records, suspected = self._visible(self.machine, self.cells), self._suspected
        if not suspected:
            return records
        return [r for r in records if suspected.get(r.node, -1) < r.sequence]

    def suspect(self, record: NodeRecord) -> None:
        """The node did not answer: leave it out until it announces itself again."""
        self._suspected[record.node] = record.sequence


def by_hash(machines: Sequence[Machine], view: int) -> list[list[Machine]]:
    """The regions of `routing.membership`: nodes whose hashed ids share their first bits, as few
    bits as leave at most `view` nodes that are there in each."""
    keys = {m.index: node_key(m.node) for m in machines}
    found: list[list[Machine]] = []
    waiting = [(0, list(machines))]
    while waiting:
        depth, members = waiting.pop()
        if sum(m.online for m in members) <= view or depth >= MAX_DEPTH:
            found.append(members)
            continue
        halves: dict[int, list[Machine]] = {}
        for machine in members:
            halves.setdefault(prefix(keys[machine.index], depth + 1), []).append(machine)
        waiting += [(depth + 1, half) for _, half in sorted(halves.items(), reverse=True)]
    return found


def by_distance(machines: Sequence[Machine], view: int) -> list[list[Machine]]:
    """What regions would be if they followed distance: cities fill whole groups of `view` first,
    what is left over is joined, nearest cities first."""
    by_city: dict[int, list[Machine]] = {}
    for machine in machines:
        by_city.setdefault(machine.city, []).append(machine)
    groups: list[list[Machine]] = []
    rest: list[list[Machine]] = []
    for _, members in sorted(by_city.items()):
        parts = round(len(members) / view)
        if parts and len(members) <= parts * view:
            edges = [len(members) * i // parts for i in range(parts + 1)]
        else:
            edges = [i * view for i in range(len(members) // view + 1)]
        groups += [members[a:b] for a, b in pairwise(edges)]
        if edges[-1] < len(members):
            rest.append(members[edges[-1] :])
    while rest:
        group = rest.pop(0)
        near = sorted(rest, key=lambda other: one_way_us(group[0].city, other[0].city))
        for other in near:
            taken = view - len(group)
            group += other[:taken]
            del other[:taken]
        rest = [other for other in rest if other]
        groups.append(group)
    return groups


def known_to(index: int, cells: Sequence[Cell], view: int, *, near: bool) -> list[Cell]:
    """The regions that the gateway of region `index` knows: its own, and those beside it while
    all have at most `view` members.

    Beside it are those that share the most first bits of the hash (`by_hash` lists regions in
    the order of the hash, and a region that is known is known whole), or those that are nearest.
    """
    own = cells[index]
    if near:
        city = main_city(own.members)
        order = sorted(
            (c for c in cells if c is not own),
            key=lambda c: (one_way_us(city, main_city(c.members)), abs(c.index - index)),
        )
        found, count = [own], len(own.members)
        for cell in order:
            count += len(cell.members)
            if count > view:
                break
            found.append(cell)
        return found
    key = node_key(own.members[0].node)
    for depth in range(MAX_DEPTH):
        inside = [
            c for c in cells if prefix(node_key(c.members[0].node), depth) == prefix(key, depth)
        ]
        if sum(m.online for c in inside for m in c.members) <= view:
            return inside if own in inside else [own]
    return [own]


def main_city(members: Sequence[Machine]) -> int:
    """The city that most of the machines are in."""
    counts = Counter(machine.city for machine in members)
    return min(counts, key=lambda city: (-counts[city], city))
