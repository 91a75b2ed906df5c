"""Judging one step from openings and the scalar specification, and nothing else.

`Hashes` is what is known of the trees: roots that were signed or that belong to the model, and
whatever openings added below them. `Layout` says which leaves hold the integers of a source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from unisono.models.config import tensor_shapes
from unisono.models.manifest import tensor_kind
from unisono.types import canonical, digest
from unisono.verification.fraud.moves import Opening, Statement
from unisono.verification.fraud.program import HopProgram, ModelFacts, Program
from unisono.verification.fraud.steps import (
    SPLIT,
    Ref,
    RowRef,
    Source,
    Step,
    TokenRef,
    Total,
    Values,
    WeightRef,
    Wrong,
)
from unisono.verification.fraud.tree import (
    BLOCK,
    HASH,
    decode_block,
    depth_of,
    leaf_hash,
    node_hash,
    per_block,
)

TILE = 128
"""Columns of a leaf of a weight matrix."""
GROUP = 32


class Slot(NamedTuple):
    """A leaf of a tree: which tree, how deep its leaves are, and its place among them."""

    tree: str
    depth: int
    index: int
    size: int
    """Bytes of the leaf."""


class WeightRoots(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Per tensor the root of its leaves, in the order of `tensor_shapes`."""

    roots: dict[str, bytes]


def facts_digest(facts: ModelFacts, weights: WeightRoots) -> bytes:
    """What a statement says about the model, 32 bytes."""
    return digest("fraud-model/1", canonical(facts), canonical(weights))


@dataclass(slots=True)
class Hashes:
    """Known nodes of trees, and known leaves."""

    nodes: dict[tuple[str, int, int], bytes] = field(
        default_factory=dict[tuple[str, int, int], bytes]
    )
    leaves: dict[Slot, bytes] = field(default_factory=dict[Slot, bytes])

    def add(self, slot: Slot, opening: Opening) -> str | None:
        """Take an opening in. Returns what is wrong with it, or None."""
        if opening.skip > slot.depth:
            return "the opening skips more levels than there are"
        depth, index = slot.depth - opening.skip, slot.index >> opening.skip
        if opening.skip:
            if len(opening.payload) != HASH:
                return "a node has 32 bytes"
            value = opening.payload
        else:
            if len(opening.payload) != slot.size:
                return f"the leaf has {slot.size} bytes, not {len(opening.payload)}"
            value = leaf_hash(opening.payload)
        levels = len(opening.path) // HASH
        if levels > depth:
            return "the path is longer than the tree is deep"
        found = {(slot.tree, depth, index): value}
        for level in range(levels):
            sibling = opening.path[level * HASH : (level + 1) * HASH]
            found[slot.tree, depth, index ^ 1] = sibling
            value = node_hash(sibling, value) if index & 1 else node_hash(value, sibling)
            depth, index = depth - 1, index >> 1
            found.setdefault((slot.tree, depth, index), value)
        known = self.nodes.get((slot.tree, depth, index))
        if known is None:
            return "the path does not end at a known node"
        if known != value:
            return "the opening does not fit the commitment"
        self.nodes |= found
        if not opening.skip:
            self.leaves[slot] = opening.payload
        return None

    def ancestor(self, slot: Slot) -> int:
        """The depth of the deepest known node above a leaf, itself included; -1: none."""
        for depth in range(slot.depth, -1, -1):
            if (slot.tree, depth, slot.index >> (slot.depth - depth)) in self.nodes:
                return depth
        return -1


@dataclass(frozen=True, slots=True)
class Layout:
    """Where integers are."""

    hop: HopProgram
    statement: Statement

    def slots(self, program: Program, source: Source) -> tuple[Slot, ...]:
        """The leaves that hold a source's integers.

        Raises:
            Wrong: the model has no such tensor row.
        """
        if isinstance(source, TokenRef):
            return self._blocks("tokens", 0, 0, self.statement.token_count, 4, source[:2])
        if isinstance(source, RowRef):
            depth = depth_of(self.statement.positions)
            return (Slot(f"rows_{source.side}", depth, source.position, HASH),)
        if isinstance(source, WeightRef):
            return self._weights(source)
        span = source.start, source.stop
        if source.cell is None:
            index = program.index[source.tensor]
            tensor, depth = program.tensors[index], depth_of(len(program.tensors))
            return self._blocks("trace", depth, index, tensor.size, int(tensor.format[1]), span)
        kept = self.hop.kept(source.cell.stage)
        index = next(i for i, t in enumerate(kept) if t.name == source.tensor)
        tensor, below = kept[index], depth_of(len(kept))
        bits = depth_of(self.statement.positions)
        place = ((source.cell.stage << bits) | source.cell.position) << below | index
        depth = self.hop.cell_depth + below
        return self._blocks("grid", depth, place, tensor.size, int(tensor.format[1]), span)

    def _blocks(
        self, tree: str, depth: int, index: int, size: int, width: int, span: tuple[int, int]
    ) -> tuple[Slot, ...]:
        each = BLOCK // width
        below = depth_of(-(-size // each))
        return tuple(
            Slot(
                tree,
                depth + below,
                (index << below) | block,
                width * (min(size, (block + 1) * each) - block * each),
            )
            for block in range(span[0] // each, (span[1] - 1) // each + 1)
        )

    def _weights(self, source: WeightRef) -> tuple[Slot, ...]:
        shape = tensor_shapes(self.hop.facts.config)[source.tensor]
        tree = f"weights/{source.tensor}"
        if tensor_kind(source.tensor) != "matrix":
            return self._blocks(tree, 0, 0, shape[0], 4, (source.start, source.stop))
        rows, columns = shape
        if not 0 <= source.row < rows:
            raise Wrong(f"'{source.tensor}' has no row {source.row}")
        tiles = -(-columns // TILE)
        tile = source.start // TILE
        width = min(columns, (tile + 1) * TILE) - tile * TILE
        index = source.row * tiles + tile
        return (Slot(tree, depth_of(rows * tiles), index, width + 2 * (width // GROUP)),)

    def read(self, source: Source, leaves: Sequence[bytes]) -> list[int]:
        """A source's integers out of its leaves."""
        if isinstance(source, RowRef):
            data = leaves[0]
            return [int.from_bytes(data[k : k + 4], "big") for k in range(0, HASH, 4)]
        if isinstance(source, WeightRef) and tensor_kind(source.tensor) == "matrix":
            return _tile(source, leaves[0])
        if isinstance(source, Ref):
            format = self._format(source)
        else:
            format = "i4"
        first = source.start // per_block(format) * per_block(format)
        values = [x for leaf in leaves for x in decode_block(leaf, format)]
        return values[source.start - first : source.stop - first]

    def _format(self, source: Ref) -> str:
        if source.cell is None:
            raise TypeError("the own cell's formats are the program's")
        return next(t.format for t in self.hop.kept(source.cell.stage) if t.name == source.tensor)

    def read_own(self, program: Program, source: Ref, leaves: Sequence[bytes]) -> list[int]:
        """Integers of the step's own cell."""
        format = program.tensor(source.tensor).format
        first = source.start // per_block(format) * per_block(format)
        values = [x for leaf in leaves for x in decode_block(leaf, format)]
        return values[source.start - first : source.stop - first]


def _tile(source: WeightRef, leaf: bytes) -> list[int]:
    tile = source.start // TILE
    width = len(leaf) * 16 // 17
    values = [x - 256 if x > 127 else x for x in leaf[:width]]
    multipliers = [
        int.from_bytes(leaf[k : k + 2], "big") for k in range(width, len(leaf), 2)
    ]
    start, stop = source.start - tile * TILE, source.stop - tile * TILE
    groups = multipliers[start // GROUP : (stop - 1) // GROUP + 1]
    return values[start:stop] + groups


def part_size(length: int, chunk: int) -> int:
    """Terms of each part (the last may have fewer) when `length` > `chunk` terms are split."""
    size = chunk
    while size * SPLIT < length:
        size *= SPLIT
    return size


def parts_of(start: int, stop: int, chunk: int) -> list[tuple[int, int]]:
    """The ranges into which terms `start:stop` are split."""
    size = part_size(stop - start, chunk)
    return [(at, min(stop, at + size)) for at in range(start, stop, size)]


ARITHMETIC = (Wrong, OverflowError, ZeroDivisionError, IndexError, ValueError)
"""What the scalar specification raises on numbers that no honest trace has."""


def judge_total(step: Step, i: int, value: int, total: Total, fixed: Values) -> str | None:
    """Whether an element follows from its whole sum or maximum; what is wrong, or None."""
    try:
        right = step.finish(i, value, total, fixed)
    except ARITHMETIC as error:
        return f"no such value can be: {error}"
    return None if right == value else f"it is {right}, and {value} was asserted"


def judge_part(
    step: Step,
    i: int,
    value: int,
    span: tuple[int, int],
    asserted: Total,
    fixed: Values,
    terms: Values,
) -> str | None:
    """Whether one chunk makes the part of a sum that was asserted; what is wrong, or None."""
    try:
        right = step.partial(i, value, *span, fixed, terms)
    except ARITHMETIC as error:
        return f"no such part can be: {error}"
    if right == asserted:
        return None
    return f"terms {span[0]} to {span[1] - 1} make {right}, and {asserted} was asserted"


def judge_combination(step: Step, parts: Sequence[Total], asserted: Total) -> str | None:
    """Whether parts make the whole that was asserted before; what is wrong, or None."""
    try:
        whole = step.combine(parts)
    except ARITHMETIC as error:
        return f"the parts do not combine: {error}"
    return None if whole == asserted else f"the parts make {whole}, and {asserted} was asserted"
