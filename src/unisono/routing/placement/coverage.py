"""What the blocks that nodes hold add up to.

A chain is made of whole blocks that meet: the next one starts where the last one stops. So a block
serves only if blocks lead to its start from layer 0 and from its stop to the last layer. Everything
here is integer arithmetic over records, so that all nodes that know the same records conclude
the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from unisono.routing.placement.facts import Coordinate, ModelFacts, NodeFacts
from unisono.types import LayerRange, NodeId
from unisono.wire.records import NodeRecord

RATE_UNIT = 10**9
"""Rates are in rows per 1,000 seconds, as integers."""


class Holder(msgspec.Struct, frozen=True):
    """A node, what it holds and what it could hold."""

    node: NodeId
    block: LayerRange
    """Empty: nothing of the model."""
    memory: int
    """0: not stated, so nobody asks it to hold something else."""
    row_ns: int
    """Nanoseconds per row and layer; 0: not measured."""
    coordinate: Coordinate


def holders(records: Iterable[NodeRecord], model: ModelFacts) -> dict[NodeId, Holder]:
    """The nodes of a model, by id. A node that leaves, or holds another model, is not one."""
    found: dict[NodeId, Holder] = {}
    for record in records:
        mine = record.model == model.model and record.layers.stop <= model.layers
        if record.leaving or not (mine or not record.model):
            continue
        block = record.layers if mine else LayerRange(0, 0)
        row_ns = int(1000 * record.row_us / model.work(block)) if block.count else 0
        found[record.node] = Holder(record.node, block, record.memory, row_ns, record.coordinate)
    return found


def holder_of(own: NodeFacts, block: LayerRange) -> Holder:
    """A node that decides for itself, as the others see it."""
    return Holder(own.node, block, own.memory, int(1000 * own.row_us), own.coordinate)


class Coverage:
    """Which boundaries chains reach, and how many rows each layer can take."""

    def __init__(self, held: Mapping[NodeId, Holder], model: ModelFacts) -> None:
        self.model = model
        self._known = sorted(h.row_ns for h in held.values() if h.row_ns > 0)
        by_block: dict[LayerRange, list[Holder]] = {}
        for holder in held.values():
            if holder.block.count:
                by_block.setdefault(holder.block, []).append(holder)
        self.by_block = by_block
        self.forward = _reached(by_block, 0)
        mirrored = [LayerRange(-b.stop, -b.start) for b in by_block]
        self.backward = {-x for x in _reached(mirrored, -model.layers)}
        self.layers = [0] * model.layers
        """Rows per 1,000 s that the useful holders of each layer can take."""
        for block, those in by_block.items():
            if self.useful(block):
                rate = sum(self.rate(h.row_ns, block) for h in those)
                for layer in range(block.start, block.stop):
                    self.layers[layer] += rate

    @property
    def complete(self) -> bool:
        """Whether there is a chain."""
        return self.model.layers in self.forward

    @property
    def bottleneck(self) -> int:
        """The rate of the thinnest layer."""
        return min(self.layers)

    def useful(self, block: LayerRange) -> bool:
        """Whether a chain could go through the block."""
        return bool(block.count) and block.start in self.forward and block.stop in self.backward

    def useful_holders(self) -> int:
        """How many nodes a chain could go through."""
        return sum(len(those) for block, those in self.by_block.items() if self.useful(block))

    def rate(self, row_ns: int, block: LayerRange) -> int:
        """Rows per 1,000 s through `block`; a node that was not measured counts as the median."""
        if row_ns <= 0:
            row_ns = self._known[len(self._known) // 2] if self._known else 1_000_000
        per_row = row_ns * (block.count * self.model.layer_bytes + self._head(block))
        return max(1, RATE_UNIT * 1000 * self.model.layer_bytes // max(1, per_row))

    def _head(self, block: LayerRange) -> int:
        return self.model.head_bytes if block.stop == self.model.layers else 0


def _reached(blocks: Iterable[LayerRange], origin: int) -> set[int]:
    reached = {origin}
    for block in sorted(blocks):
        if block.start in reached:
            reached.add(block.stop)
    return reached
