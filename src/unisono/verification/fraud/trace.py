"""Commitments of an honest party: the grid of a hop, and the trace of one cell.

The grid's tree has the stages on top, then positions, then a cell's kept tensors, then their
blocks. A trace's tree has the tensors of one cell's program, then their blocks. Only the grid
is made for a dispute as a whole; of all traces, one.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass

import numpy as np

from unisono.models.decoder import Decoder, Segment, make_decoder
from unisono.models.weights import BlockWeights
from unisono.numerics import residual
from unisono.numerics.linear import Matrix, from_numpy
from unisono.types import LayerRange
from unisono.verification.fraud.kept import KeysAndValues
from unisono.verification.fraud.program import HopProgram, Program, Tensor
from unisono.verification.fraud.regeneration import Array, Context, regenerate
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.tree import Tree, blocks, depth_of, empty_root, tensor_tree

_ROWS = 256
"""Rows that a layer computes at once."""

Kept = dict[tuple[int, str], Array]
"""(stage, kept tensor) → [positions, size]."""


@dataclass(frozen=True, slots=True)
class Material:
    """What a party needs to regenerate a hop: public, or held by every holder of the layers."""

    program: HopProgram
    weights: BlockWeights
    tokens: tuple[int, ...]
    """Prompt and answer."""
    rows_in: Array | None = None
    """int64 [positions, hidden]; None for a hop that begins the model."""


def compute_kept(material: Material) -> Kept:
    """The kept tensors of every cell: a prefill, one layer at a time.

    The residual rows come from a decoder of one layer, whichever is fastest here; keys and
    values from the vectorised operators.
    """
    hop = material.program
    c = hop.config
    if material.rows_in is None:
        embedding = material.weights.embedding
        assert embedding is not None
        ids = from_numpy(np.array(material.tokens[: hop.positions], dtype=np.int64))
        tensor = residual.embed(ids, Matrix.on("cpu", embedding), hop.constants.embedding_scale)
        rows = np.asarray(tensor, dtype=np.int64)
    else:
        rows = material.rows_in
    kept: Kept = {(0, "row"): rows}
    projections = KeysAndValues(c, hop.constants)
    for stage in range(1, hop.stages - 1):
        i = hop.layer_of(stage)
        weights = material.weights.layer[i]
        for name, values in projections.of(weights, rows, windowed=bool(c.windows[i])).items():
            kept[stage, name] = values
        block = BlockWeights(LayerRange(i, i + 1), {i: weights})
        decoder = make_decoder(c, block)
        try:
            rows = _forward(decoder, rows)
        finally:
            decoder.close()
        kept[stage, "row"] = rows
    kept[hop.stages - 1, "sent"] = np.ones((hop.positions, 1), dtype=np.int64)
    return kept


def _forward(decoder: Decoder, rows: Array) -> Array:
    cache, out = decoder.new_cache(len(rows)), list[Array]()
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        out.append(decoder.forward(part, [Segment(cache, start, len(part))]))
    return np.concatenate(out)


class Grid:
    """The tree over the kept tensors of all cells of a hop."""

    def __init__(self, hop: HopProgram, kept: Kept) -> None:
        self.hop, self.kept = hop, kept
        self._cells: dict[Cell, Tree] = {}
        stages: list[bytes] = []
        self._stages: list[Tree] = []
        for stage in range(hop.stages):
            roots: list[bytes] = []
            for position in range(hop.positions):
                cell = Cell(stage, position)
                tree = Tree([self.tensor_tree(cell, t).root for t in hop.kept(stage)])
                self._cells[cell] = tree
                roots.append(tree.root)
            self._stages.append(Tree(roots))
            stages.append(self._stages[-1].root)
        self._top = Tree(stages, empty_root(depth_of(hop.positions)))

    def with_cell(self, kept: Kept, cell: Cell) -> Grid:
        """The grid of other kept tensors that differ in one cell, without hashing all others."""
        grid, hop = copy(self), self.hop
        grid.kept, grid._cells, grid._stages = kept, dict(self._cells), list(self._stages)
        roots = [grid.tensor_tree(cell, t).root for t in hop.kept(cell.stage)]
        grid._cells[cell] = Tree(roots)
        cells = [grid._cells[Cell(cell.stage, p)].root for p in range(hop.positions)]
        grid._stages[cell.stage] = Tree(cells)
        stages = [tree.root for tree in grid._stages]
        grid._top = Tree(stages, empty_root(depth_of(hop.positions)))
        return grid

    @property
    def root(self) -> bytes:
        return self._top.root

    def tensor_tree(self, cell: Cell, tensor: Tensor) -> Tree:
        """The tree of one kept tensor."""
        return tensor_tree(self.tensor(cell, tensor.name), tensor.format)

    def tensor(self, cell: Cell, name: str) -> Array:
        """A kept tensor of a cell, int64 [size]."""
        return self.kept[cell.stage, name][cell.position]

    def stacked(self, stage: int, start: int, stop: int, name: str) -> Array:
        """A kept tensor of some positions, int64 [positions, size]."""
        return self.kept[stage, name][start:stop]

    def kept_roots(self, cell: Cell) -> list[bytes]:
        """The roots of a cell's kept tensors."""
        tree, count = self._cells[cell], len(self.hop.kept(cell.stage))
        return [tree.node(tree.depth, i) for i in range(count)]

    def node(self, depth: int, index: int) -> bytes:
        """A node of the whole tree."""
        top, below = self.hop.stage_depth, self.hop.cell_depth
        if depth <= top:
            return self._top.node(depth, index)
        if depth <= below:
            within = depth - top
            stage = index >> within
            if stage >= self.hop.stages:
                return empty_root(below - depth)
            return self._stages[stage].node(within, index & ((1 << within) - 1))
        path = depth - below
        place = index >> path
        bits = below - top
        cell = Cell(place >> bits, place & ((1 << bits) - 1))
        tree, rest = self._cells[cell], index & ((1 << path) - 1)
        if path <= tree.depth:
            return tree.node(path, rest)
        deeper = path - tree.depth
        tensor = self.hop.kept(cell.stage)[rest >> deeper]
        return self.tensor_tree(cell, tensor).node(deeper, rest & ((1 << deeper) - 1))

    def block(self, cell: Cell, name: str, block: int) -> bytes:
        """A leaf's bytes."""
        tensor = next(t for t in self.hop.kept(cell.stage) if t.name == name)
        return blocks(self.tensor(cell, name), tensor.format)[block]


class CellTrace:
    """The tree over every tensor of one cell."""

    def __init__(self, program: Program, values: Mapping[str, Array]) -> None:
        self.program, self.values = program, values
        self._trees = [tensor_tree(values[t.name], t.format) for t in program.tensors]
        self._top = Tree([tree.root for tree in self._trees])

    @property
    def root(self) -> bytes:
        return self._top.root

    @property
    def depth(self) -> int:
        """Levels above the tensors' roots."""
        return depth_of(len(self.program.tensors))

    def tensor_root(self, index: int) -> bytes:
        """The root of a tensor's tree."""
        return self._trees[index].root

    def node(self, depth: int, index: int) -> bytes:
        """A node of the whole tree."""
        below = depth - self._top.depth
        if below <= 0:
            return self._top.node(depth, index)
        return self._trees[index >> below].node(below, index & ((1 << below) - 1))

    def block(self, name: str, block: int) -> bytes:
        """A leaf's bytes."""
        return blocks(self.values[name], self.program.tensor(name).format)[block]


def cell_trace(
    material: Material, grid: Grid, cell: Cell, given: dict[str, Array] | None = None
) -> CellTrace:
    """Regenerate one cell. `given` overrides tensors."""
    program = material.program.program(cell)
    given = dict(given or {})
    for tensor in program.tensors:
        if tensor.step is None:
            given.setdefault(tensor.name, grid.tensor(cell, tensor.name))
    context = Context(material.weights, material.tokens, grid.tensor, grid.stacked)
    return CellTrace(program, regenerate(program, context, given))
