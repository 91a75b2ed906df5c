"""What a party can show in a dispute: its grid, traces, and what opens under signed roots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from unisono import merkle
from unisono.merkle import node_hash
from unisono.models import tiles
from unisono.models.rows import row_hashes
from unisono.models.weights import BlockWeights
from unisono.numerics.tensors import Matrix, Vector
from unisono.verification.fraud.referee import Layout, Slot
from unisono.verification.fraud.steps import (
    Cell,
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
)
from unisono.verification.fraud.trace import CellTrace, Grid, Material, cell_trace, compute_kept
from unisono.verification.fraud.tree import per_block
from unisono.wire.claims import token_hash


@dataclass(slots=True)
class Signed:
    """The row hashes that a claim's roots stand for."""

    rows_in: list[bytes]
    rows_out: list[bytes]

    @classmethod
    def of(cls, grid: Grid, tokens: tuple[int, ...]) -> Signed:
        """What an honest hop signs about its rows."""
        hop = grid.hop
        if hop.first:
            received = [token_hash(token) for token in tokens[: hop.positions]]
        else:
            received = row_hashes(grid.kept[0, "row"])
        return cls(received, row_hashes(grid.kept[hop.stages - 2, "row"]))


def tensor_of(weights: BlockWeights, name: str) -> Matrix | Vector | None:
    """A tensor of a block by its canonical name; None where the block does not hold it."""
    if name.startswith("layers."):
        _, i, part = name.split(".")
        layer = weights.layer.get(int(i))
        return None if layer is None else getattr(layer, part)
    found: Matrix | Vector | None = getattr(weights, name)
    return weights.head if found is None and name == "embedding" else found


@dataclass(slots=True)
class WeightTrees:
    """The trees over tiles of a block's tensors, each made when it is first asked for.

    Every holder of the weights makes them; 64 bytes a tile.
    """

    weights: BlockWeights
    _made: dict[str, tuple[merkle.Tree, list[NDArray[Any]]]] = field(
        default_factory=dict[str, tuple[merkle.Tree, list[NDArray[Any]]]]
    )

    def of(self, name: str) -> tuple[merkle.Tree, list[NDArray[Any]]]:
        """A tensor's tree, and its stored parts.

        Raises:
            KeyError: the block does not hold the tensor.
        """
        if name not in self._made:
            tensor = tensor_of(self.weights, name)
            if tensor is None:
                raise KeyError(name)
            if isinstance(tensor, Matrix):
                parts: list[NDArray[Any]] = [tensor.values, tensor.multipliers]
            else:
                parts = [tensor.values.astype("<i4")]
            self._made[name] = merkle.Tree(tiles.tensor_leaves(parts), tiles.pairs), parts
        return self._made[name]


class Holdings:
    """Everything that a party can show."""

    def __init__(
        self,
        material: Material,
        trees: WeightTrees,
        signed: Signed | None = None,
        grid: Grid | None = None,
    ) -> None:
        """`signed` is what the claim in dispute stands for; by default what this party itself
        would sign."""
        self.material, self.hop, self.trees = material, material.program, trees
        self.grid = grid or Grid(self.hop, compute_kept(material))
        self.signed = signed or Signed.of(self.grid, material.tokens)
        self._traces: dict[Cell, CellTrace] = {}
        self._rows = {
            "rows_in": merkle.Tree(b"".join(map(merkle.leaf_hash, self.signed.rows_in))),
            "rows_out": merkle.Tree(b"".join(map(merkle.leaf_hash, self.signed.rows_out))),
        }

    def trace(self, cell: Cell) -> CellTrace:
        """The trace of a cell, regenerated once."""
        if cell not in self._traces:
            self._traces[cell] = self.make_trace(cell)
        return self._traces[cell]

    def make_trace(self, cell: Cell) -> CellTrace:
        """Regenerate a cell."""
        return cell_trace(self.material, self.grid, cell)

    def stand_by(self, cell: Cell, trace: CellTrace) -> None:
        """Show this trace of a cell, whatever it would be if it were computed again."""
        self._traces[cell] = trace

    def node(self, cell: Cell | None, tree: str, depth: int, index: int) -> bytes:
        """A node of the grid, or of the trace of `cell`."""
        if tree == "grid":
            return self.grid.node(depth, index)
        assert cell is not None
        return self.trace(cell).node(depth, index)

    def climb(self, cell: Cell, slot: Slot, payload: bytes) -> list[tuple[bytes, bytes | None]]:
        """From a leaf to below the top of its tree: each node and its sibling, which at the
        right edge of a sealed tree may be missing."""
        if slot.tree in ("grid", "trace"):
            places = [(slot.depth - k, slot.place >> k) for k in range(slot.depth)]
            return [
                (
                    self.node(cell, slot.tree, depth, index),
                    self.node(cell, slot.tree, depth, index ^ 1),
                )
                for depth, index in places
            ]
        if slot.tree in self._rows:
            tree = self._rows[slot.tree]
        else:
            tree, _ = self.trees.of(slot.tree.removeprefix("weights/"))
        path, node = tree.path(slot.place), slot.hash(payload)
        index, last, at = slot.place, slot.last, 0
        out: list[tuple[bytes, bytes | None]] = []
        for _ in range(slot.depth):
            if index & 1 or index != last:
                sibling = path[at : at + merkle.HASH_BYTES]
                at += merkle.HASH_BYTES
                out.append((node, sibling))
                node = node_hash(sibling, node) if index & 1 else node_hash(node, sibling)
            else:
                out.append((node, None))
            index, last = index >> 1, last >> 1
        return out

    def leaf(self, cell: Cell, source: Source, number: int, slot: Slot) -> bytes:
        """The bytes of the `number`-th leaf of a source."""
        if isinstance(source, InputRef):
            return self.material.tokens[source.position].to_bytes(4, "little")
        if isinstance(source, RowRef):
            rows = self.signed.rows_in if source.side == "in" else self.signed.rows_out
            return rows[source.position]
        if isinstance(source, RootRef):
            return self.node(cell, slot.tree, slot.depth, slot.place)
        if isinstance(source, WeightRef):
            tree, parts = self.trees.of(source.tensor)
            each = len(tree) // parts[0].shape[0] if len(parts) == 2 else len(tree)
            return tiles.leaf_bytes(parts, source.row, slot.place - source.row * each)
        assert isinstance(source, Ref)
        if source.cell is not None:
            tensor = next(t for t in self.hop.kept(source.cell.stage) if t.name == source.tensor)
            first = source.start // per_block(tensor.format)
            return self.grid.block(source.cell, source.tensor, first + number)
        format = self.hop.program(cell).tensor(source.tensor).format
        return self.trace(cell).block(source.tensor, source.start // per_block(format) + number)

    def values(self, layout: Layout, cell: Cell, sources: tuple[Source, ...]) -> Values:
        """The integers of sources, as this party has them."""
        return [self._value(layout, cell, source) for source in sources]

    def _value(self, layout: Layout, cell: Cell, source: Source) -> list[int]:
        if isinstance(source, Ref):
            if source.cell is None:
                array = self.trace(cell).values[source.tensor]
            else:
                array = self.grid.tensor(source.cell, source.tensor)
            return [int(x) for x in array[source.start : source.stop].tolist()]
        if isinstance(source, TokenRef):
            return list(self.material.tokens[source.start : source.stop])
        program = self.hop.program(cell)
        slots = layout.slots(program, source)
        leaves = [self.leaf(cell, source, n, s) for n, s in enumerate(slots)]
        return layout.read(program, source, leaves)

    def total(
        self, layout: Layout, cell: Cell, step: Step, i: int, value: int, span: tuple[int, int]
    ) -> Total:
        """What terms `span` of element i make, its value asserted to be `value`."""
        fixed = self.values(layout, cell, step.fixed(i))
        parts: list[Total] = []
        for at in range(span[0], span[1], step.chunk):
            stop = min(span[1], at + step.chunk)
            terms = self.values(layout, cell, step.terms(i, at, stop, fixed))
            parts.append(step.partial(i, value, at, stop, fixed, terms))
        return step.combine(parts)
