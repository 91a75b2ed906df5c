"""How much of a model's placement answers: availability, holders and room per layer."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from operator import itemgetter

import msgspec

from unisono.clock import Clock
from unisono.routing.network import NodeStatus
from unisono.types import LayerRange, ModelId, NodeId
from unisono.wire.records import NodeRecord

WINDOW_SECONDS = 120.0
"""How long a node that went away without leaving still counts as part of the placement."""
WHOLE = 1000
"""Availability in thousandths when every node answers."""
MAX_DEPARTED = 20_000
"""Departed nodes that are remembered; beyond, those that left first are forgotten."""


class Health(msgspec.Struct, frozen=True):
    """How one model is held at one moment."""

    alive: int
    """Nodes of the placement that answer heartbeats now."""
    known: int
    """Nodes of the placement: those, those that are silent, and those that departed unannounced
    within the window."""
    holders: tuple[int, ...]
    """Per layer, how many of the nodes that answer hold it."""
    room: tuple[int, ...]
    """Per layer, the most free positions that one of its holders has."""

    @property
    def availability(self) -> int:
        """`alive / known` in thousandths, rounded down; 0 if no node was ever there."""
        return WHOLE * self.alive // self.known if self.known else 0

    @property
    def missing(self) -> tuple[LayerRange, ...]:
        """The runs of layers that nobody holds, ascending.

        None missing is necessary and not sufficient for a chain: blocks must also meet, which
        `Network.open` decides.
        """
        return _runs(tuple(count == 0 for count in self.holders))

    def full(self, positions: int) -> tuple[LayerRange, ...]:
        """The runs of layers that are held, but by nobody with room for `positions`."""
        return _runs(
            tuple(
                count > 0 and room < positions
                for count, room in zip(self.holders, self.room, strict=True)
            )
        )


def status_of(
    record: NodeRecord, *, alive: bool, rtt_us: int = 0, convicted: bool = False
) -> NodeStatus:
    """A node's status from its record, whether it answers heartbeats, and the round trip to it in
    microseconds (0: unknown).

    `Network.nodes` must also tell of nodes whose record says that they are leaving, until the
    record expires: else their going looks like a failure.
    """
    return NodeStatus(
        node=record.node,
        address=str(record.address),
        model=record.model,
        layers=record.layers,
        free_positions=record.free_positions,
        sessions=record.sessions,
        alive=alive,
        leaving=record.leaving,
        queue=record.queue,
        step_us=record.step_us,
        rtt_us=rtt_us,
        bandwidth=record.bandwidth,
        coordinate=record.coordinate,
        convicted=convicted,
        price_in=record.price_in,
        price_out=record.price_out,
    )


def health_of(
    model: ModelId,
    layer_count: int,
    present: Iterable[NodeStatus],
    departed: Iterable[NodeStatus] = (),
) -> Health:
    """The health of `model`, whose layers are 0 to `layer_count`, from what is known of nodes.

    The *placement* of a model is every node that holds at least one of its layers and is not
    leaving: `present` has those whose records run now, `departed` the last status of those that
    were present within the last `WINDOW_SECONDS`, are not now, and did not announce their
    leave. *Availability* is the share of the placement that answers heartbeats now, which is
    what `NodeStatus.alive` says. A node that is leaving counts nowhere, since it takes no new
    session; a node that changed its model counts where it is now.

    Time O(nodes + layers + blocks log blocks), where blocks are the distinct ones.
    """
    alive = known = 0
    held: dict[tuple[int, int], tuple[int, int]] = {}
    here: set[NodeId] = set()
    for node in present:
        here.add(node.node)
        if not _takes_part(node, model):
            continue
        known += 1
        if node.alive:
            alive += 1
            block = max(0, node.layers.start), min(node.layers.stop, layer_count)
            count, room = held.get(block, (0, 0))
            held[block] = count + 1, max(room, node.free_positions)
    known += len({n.node for n in departed if n.node not in here and _takes_part(n, model)})
    blocks = [(start, stop, *facts) for (start, stop), facts in held.items() if start < stop]
    return Health(alive, known, _holders(blocks, layer_count), _room(blocks, layer_count))


_Block = tuple[int, int, int, int]
"""Start, stop, how many hold it, the most room that one of them has."""


def _holders(blocks: Iterable[_Block], layer_count: int) -> tuple[int, ...]:
    change = [0] * (layer_count + 1)
    for start, stop, count, _ in blocks:
        change[start] += count
        change[stop] -= count
    return tuple(accumulate(change[:layer_count]))


def _room(blocks: Iterable[_Block], layer_count: int) -> tuple[int, ...]:
    """The block with the most room is the answer for its layers, and so on with the rest."""
    room = [0] * layer_count
    following = list(range(layer_count + 1))  # the next layer at or after it without an answer
    for start, stop, _, most in sorted(blocks, key=itemgetter(3), reverse=True):
        layer = start
        while True:
            while following[layer] != layer:
                following[layer] = following[following[layer]]
                layer = following[layer]
            if layer >= stop:
                break
            room[layer] = most
            following[layer] = layer + 1
    return tuple(room)


class Attendance:
    """Who is here, and who was a moment ago: the memory behind `health_of`.

    It knows what `observe` is told, so call that every few seconds.
    """

    def __init__(self, clock: Clock, window_seconds: float = WINDOW_SECONDS) -> None:
        self._clock = clock
        self._window = window_seconds
        self._present: dict[NodeId, NodeStatus] = {}
        self._departed: dict[NodeId, tuple[NodeStatus, float]] = {}

    @property
    def present(self) -> tuple[NodeStatus, ...]:
        """The nodes of the last observation."""
        return tuple(self._present.values())

    @property
    def departed(self) -> tuple[NodeStatus, ...]:
        """The last status of every node that departed within the window, in the order in which
        they did. Nodes that announced their leave are not among them."""
        self._forget()
        return tuple(status for status, _ in self._departed.values())

    def observe(self, nodes: Iterable[NodeStatus]) -> None:
        """Take in `Network.nodes()` as it is now."""
        now = self._clock.monotonic()
        current = {node.node: node for node in nodes}
        for node in self._present.keys() - current.keys():
            status = self._present[node]
            if not status.leaving:
                self._departed[node] = status, now
        for node in current.keys() & self._departed.keys():
            del self._departed[node]
        self._present = current
        self._forget()

    def health(self, model: ModelId, layer_count: int) -> Health:
        """`health_of` at the last observation."""
        return health_of(model, layer_count, self._present.values(), self.departed)

    def _forget(self) -> None:
        oldest = self._clock.monotonic() - self._window
        over = len(self._departed) - MAX_DEPARTED
        # Insertion order is the order of departure, so the first ones are the oldest.
        for index, (node, (_, since)) in enumerate(list(self._departed.items())):
            if index >= over and since > oldest:
                break
            del self._departed[node]


def _takes_part(node: NodeStatus, model: ModelId) -> bool:
    return node.model == model and node.layers.count > 0 and not node.leaving


def _runs(marked: tuple[bool, ...]) -> tuple[LayerRange, ...]:
    """The maximal runs of layers that are marked."""
    runs: list[LayerRange] = []
    start: int | None = None
    for layer, mark in enumerate((*marked, False)):
        if mark and start is None:
            start = layer
        elif not mark and start is not None:
            runs.append(LayerRange(start, layer))
            start = None
    return tuple(runs)
