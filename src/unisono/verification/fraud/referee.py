"""Judging one step from openings and the scalar specification, and nothing else.

`Hashes` is what is known of the trees: roots that were signed or that belong to the model, and
whatever openings added below them. `Layout` says which leaves hold the integers of a source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from unisono.merkle import leaf_hash, node_hash, seal
from unisono.models import tiles
from unisono.numerics.tensors import GROUP
from unisono.verification.fraud.moves import Opening, Subject
from unisono.verification.fraud.program import HopProgram, Program, Tensor
from unisono.verification.fraud.steps import (
    SPLIT,
    InputRef,
    Ref,
    RootRef,
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
    EMPTY,
    HASH,
    decode_block,
    depth_of,
    per_block,
)
from unisono.wire import mountain_range

TOKEN_BYTES = 4
_ROW_DOMAIN = mountain_range.DOMAIN


class Slot(NamedTuple):
    """A leaf of a tree: which tree, how deep its leaves are, and its place among them."""

    tree: str
    depth: int
    place: int
    last: int
    """The index of the last leaf of the tree at this depth."""
    size: int
    """Bytes of the leaf."""
    form: Literal["leaf", "token", "node"] = "leaf"
    """`token`: the leaf is the hash of a row that has no more than these bytes. `node`: there is no
    leaf here but a tree's top, and these bytes are its hash."""

    def hash(self, payload: bytes) -> bytes:
        """What the tree holds at this place."""
        match self.form:
            case "leaf":
                return leaf_hash(payload)
            case "token":
                return leaf_hash(leaf_hash(payload))
            case "node":
                return payload


class Sealed(NamedTuple):
    """The root of a tree of `unisono.merkle`."""

    domain: str
    leaves: int
    root: bytes

    def holds(self, top: bytes) -> bool:
        """Whether a top is the one that was sealed."""
        return seal(self.domain, self.leaves, top) == self.root


def sealed_roots(subject: Subject) -> dict[str, Sealed]:
    """The roots that are known before the first move: the claim's and the model's."""
    claim = subject.claim
    roots = {
        f"rows_{side}": Sealed(_ROW_DOMAIN, claim.positions, bytes.fromhex(root))
        for side, root in (("in", claim.rows_in), ("out", claim.rows_out))
    }
    for name, entry in subject.manifest.tensors.items():
        count, root = tiles.tile_count(entry.shape), bytes.fromhex(entry.root)
        roots[f"weights/{name}"] = Sealed(tiles.DOMAIN, count, root)
    return roots


@dataclass(slots=True)
class Hashes:
    """Known nodes of trees, and known leaves."""

    sealed: dict[str, Sealed]
    nodes: dict[tuple[str, int, int], bytes] = field(
        default_factory=dict[tuple[str, int, int], bytes]
    )
    leaves: dict[Slot, bytes] = field(default_factory=dict[Slot, bytes])

    def add(self, slot: Slot, opening: Opening) -> str | None:
        """Take an opening in. Returns what is wrong with it, or None.

        The path holds the siblings up to the first node that is known, or up to the top of a
        sealed tree; at the right edge of such a tree a node may have none (RFC 9162, 2.1.3.2).
        """
        if not 0 <= opening.skip <= slot.depth:
            return "the opening skips more levels than there are"
        if len(opening.payload) != (HASH if opening.skip else slot.size):
            return f"the opened bytes are {len(opening.payload)}, of a leaf of {slot.size}"
        node = opening.payload if opening.skip else slot.hash(opening.payload)
        depth, index = slot.depth - opening.skip, slot.place >> opening.skip
        last, at = slot.last >> opening.skip, 0
        found: dict[tuple[str, int, int], bytes] = {}
        while True:
            key = slot.tree, depth, index
            known = self.nodes.get(key)
            if known is None and depth == 0 and slot.tree in self.sealed:
                known = node if self.sealed[slot.tree].holds(node) else EMPTY
            found[key] = node
            if known is not None or depth == 0:
                break
            if index & 1 or index != last:
                sibling = opening.path[at : at + HASH]
                at += HASH
                if len(sibling) != HASH:
                    return "the path ends before a node that is known"
                found[slot.tree, depth, index ^ 1] = sibling
                node = node_hash(sibling, node) if index & 1 else node_hash(node, sibling)
            depth, index, last = depth - 1, index >> 1, last >> 1
        if at != len(opening.path):
            return "the path goes on above a node that is known"
        if known != node:
            return "the opening does not fit the commitment"
        self.nodes |= found
        if not opening.skip:
            self.leaves[slot] = opening.payload
        return None

    def copy(self) -> Hashes:
        """The same knowledge, to be added to."""
        return Hashes(self.sealed, dict(self.nodes), dict(self.leaves))

    def ancestor(self, slot: Slot) -> int:
        """The depth of the deepest known node above a leaf, itself included; 0 if none is."""
        for depth in range(slot.depth, 0, -1):
            if (slot.tree, depth, slot.place >> (slot.depth - depth)) in self.nodes:
                return depth
        return 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Where integers are."""

    hop: HopProgram
    sequence: tuple[int, ...]
    """Prompt and answer."""

    def slots(self, program: Program, source: Source) -> tuple[Slot, ...]:
        """The leaves that hold a source's integers.

        Raises:
            Wrong: the model has no such tensor row.
        """
        if isinstance(source, TokenRef):
            return ()
        last = self.hop.positions - 1
        if isinstance(source, InputRef):
            depth = depth_of(last + 1)
            return (Slot("rows_in", depth, source.position, last, TOKEN_BYTES, "token"),)
        if isinstance(source, RowRef):
            tree = f"rows_{source.side}"
            return (Slot(tree, depth_of(last + 1), source.position, last, HASH),)
        if isinstance(source, WeightRef):
            return self._weights(source)
        tree, tensor, depth, place = self._tensor(program, source)
        if isinstance(source, RootRef):
            return (Slot(tree, depth, place, (1 << depth) - 1, HASH, "node"),)
        return self._blocks(tree, tensor, depth, place, (source.start, source.stop))

    def _tensor(self, program: Program, source: Ref | RootRef) -> tuple[str, Tensor, int, int]:
        """The tree that holds a tensor, the tensor, and its top's depth and place in that tree."""
        if source.cell is None:
            index = program.index[source.tensor]
            return "trace", program.tensors[index], depth_of(len(program.tensors)), index
        kept = self.hop.kept(source.cell.stage)
        index = next(i for i, t in enumerate(kept) if t.name == source.tensor)
        below, bits = depth_of(len(kept)), depth_of(self.hop.positions)
        place = ((source.cell.stage << bits) | source.cell.position) << below | index
        return "grid", kept[index], self.hop.cell_depth + below, place

    def _blocks(
        self, tree: str, tensor: Tensor, depth: int, index: int, span: tuple[int, int]
    ) -> tuple[Slot, ...]:
        size, width = tensor.size, int(tensor.format[1])
        each = BLOCK // width
        below = depth_of(-(-size // each))
        return tuple(
            Slot(
                tree,
                depth + below,
                (index << below) | block,
                (1 << (depth + below)) - 1,
                width * (min(size, (block + 1) * each) - block * each),
            )
            for block in range(span[0] // each, (span[1] - 1) // each + 1)
        )

    def _weights(self, source: WeightRef) -> tuple[Slot, ...]:
        shape = self.hop.manifest.tensors[source.tensor].shape
        matrix = len(shape) == 2
        if not 0 <= source.row < (shape[0] if matrix else 1):
            raise Wrong(f"'{source.tensor}' has no row {source.row}")
        each, last = tiles.tiles_per_row(shape), tiles.tile_count(shape) - 1
        columns = tiles.TILE if matrix else tiles.VECTOR_TILE
        tile = source.start // columns
        width = min(shape[-1], (tile + 1) * columns) - tile * columns
        size = width + 2 * (width // GROUP) if matrix else 4 * width
        index = source.row * each + tile
        return (Slot(f"weights/{source.tensor}", depth_of(last + 1), index, last, size),)

    def read(self, program: Program, source: Source, leaves: Sequence[bytes]) -> list[int]:
        """A source's integers out of its leaves."""
        if isinstance(source, TokenRef):
            return list(self.sequence[source.start : source.stop])
        if isinstance(source, InputRef):
            return [int.from_bytes(leaves[0], "little")]
        if isinstance(source, RootRef | RowRef):
            data = leaves[0]
            return [int.from_bytes(data[k : k + 4], "big") for k in range(0, HASH, 4)]
        if isinstance(source, WeightRef):
            if len(self.hop.manifest.tensors[source.tensor].shape) == 2:
                return _tile(source, leaves[0])
            each, values = tiles.VECTOR_TILE, decode_block(leaves[0], "i4")
        else:
            if source.cell is None:
                format = program.tensor(source.tensor).format
            else:
                kept = self.hop.kept(source.cell.stage)
                format = next(t.format for t in kept if t.name == source.tensor)
            each = per_block(format)
            values = [x for leaf in leaves for x in decode_block(leaf, format)]
        first = source.start // each * each
        return values[source.start - first : source.stop - first]


def _tile(source: WeightRef, leaf: bytes) -> list[int]:
    width = len(leaf) * GROUP // (GROUP + 2)
    first = source.start // tiles.TILE * tiles.TILE
    start, stop = source.start - first, source.stop - first
    values = [x - 256 if x > 127 else x for x in leaf[start:stop]]
    groups = range(start // GROUP, (stop - 1) // GROUP + 1)
    at = [width + 2 * group for group in groups]
    return values + [int.from_bytes(leaf[k : k + 2], "little") for k in at]


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
