"""How an honest defender and an honest challenger play."""

from __future__ import annotations

from dataclasses import dataclass

from unisono.types import canonical
from unisono.verification.fraud.game import Game
from unisono.verification.fraud.layer_steps import row_digest
from unisono.verification.fraud.moves import (
    Block,
    Body,
    Choose,
    Commit,
    Move,
    Open,
    OpenCell,
    Opening,
    Reveal,
    Split,
    encode_move,
    room,
)
from unisono.verification.fraud.referee import Slot, parts_of
from unisono.verification.fraud.steps import Cell, Ref, RowRef, Source, TokenRef, Values, WeightRef
from unisono.verification.fraud.trace import CellTrace, Grid, Material, cell_trace, compute_kept
from unisono.verification.fraud.tree import Tree, per_block
from unisono.verification.fraud.weight_trees import (
    WeightTrees,
    row_leaves,
    row_tree,
    token_blocks,
    token_tree,
)
from unisono.wire.identity import Identity


@dataclass(slots=True)
class Signed:
    """The hashes of rows that a hop signed, in and out (in: empty at the model's beginning)."""

    rows_in: list[bytes]
    rows_out: list[bytes]


def rows_of(grid: Grid) -> Signed:
    """What an honest hop signs about its rows."""
    hop = grid.hop
    received = [] if hop.first else row_leaves(grid.kept[0, "row"], row_digest)
    return Signed(received, row_leaves(grid.kept[hop.stages - 2, "row"], row_digest))


class Evidence:
    """Everything a party can show: its grid, one trace, and the public trees."""

    def __init__(
        self, material: Material, trees: WeightTrees, signed: Signed, grid: Grid | None = None
    ) -> None:
        self.material, self.hop, self.trees = material, material.program, trees
        self.grid = grid or Grid(self.hop, compute_kept(material))
        self.signed = signed
        self._traces: dict[Cell, CellTrace] = {}
        self._public: dict[str, tuple[Tree, list[bytes]]] = {
            "tokens": (token_tree(material.tokens), token_blocks(material.tokens)),
            "rows_out": (row_tree(signed.rows_out), signed.rows_out),
        }
        if signed.rows_in:
            self._public["rows_in"] = row_tree(signed.rows_in), signed.rows_in

    def root(self, tree: str) -> bytes:
        """The root of `tokens`, `rows_in` (empty if there are none) or `rows_out`."""
        return self._public[tree][0].root if tree in self._public else b""

    def trace(self, cell: Cell) -> CellTrace:
        """The trace of a cell, regenerated once."""
        if cell not in self._traces:
            self._traces[cell] = self.make_trace(cell)
        return self._traces[cell]

    def make_trace(self, cell: Cell) -> CellTrace:
        """Regenerate a cell."""
        return cell_trace(self.material, self.grid, cell)

    def node(self, cell: Cell | None, tree: str, depth: int, index: int) -> bytes:
        """A node of any tree; `cell` says whose trace."""
        if tree == "grid":
            return self.grid.node(depth, index)
        if tree == "trace":
            assert cell is not None
            return self.trace(cell).node(depth, index)
        if tree in self._public:
            return self._public[tree][0].node(depth, index)
        return self.trees.tree(tree.removeprefix("weights/")).node(depth, index)

    def leaf(self, cell: Cell, source: Source, number: int, slot: Slot) -> bytes:
        """The bytes of the `number`-th leaf of a source."""
        if isinstance(source, TokenRef | RowRef):
            return self._public[slot.tree][1][slot.index]
        if isinstance(source, WeightRef):
            return self.trees.leaf(source.tensor, slot.index)
        if source.cell is not None:
            tensor = next(t for t in self.hop.kept(source.cell.stage) if t.name == source.tensor)
            first = source.start // per_block(tensor.format)
            return self.grid.block(source.cell, source.tensor, first + number)
        format = self.hop.program(cell).tensor(source.tensor).format
        return self.trace(cell).block(source.tensor, source.start // per_block(format) + number)


class _Player:
    """A party with its key."""

    def __init__(self, identity: Identity, evidence: Evidence) -> None:
        self.identity, self.evidence = identity, evidence

    def body(self, game: Game) -> Body:
        """What to do in the game's state, which must be this party's turn."""
        raise NotImplementedError

    def move(self, game: Game) -> bytes:
        """The signed move."""
        move = Move(len(game.moves), game.previous, self.body(game))
        return encode_move(move.signed_by(self.identity, game.id))


class Defender(_Player):
    """The hop: shows what it committed to."""

    def body(self, game: Game) -> Body:
        evidence = self.evidence
        match game.phase:
            case "commit":
                return Commit(evidence.grid.root)
            case "descend":
                first = game.index << game.shown
                return Reveal(
                    b"".join(
                        self._node(game, game.tree, game.depth + game.shown, first + i)
                        for i in range(1 << game.shown)
                    )
                )
            case "cell":
                assert game.cell is not None
                kept = evidence.grid.kept_roots(game.cell)
                return OpenCell(b"".join(kept), evidence.trace(game.cell).root)
            case "block":
                assert game.cell is not None
                assert game.tensor is not None
                below = game.target - evidence.trace(game.cell).depth
                block = game.index & ((1 << below) - 1)
                return Block(evidence.trace(game.cell).block(game.tensor.name, block))
            case "open":
                return self._openings(game)
            case "split":
                return self._split(game)
            case _:
                raise ValueError(f"the defender has no move in phase '{game.phase}'")

    def _node(self, game: Game, tree: str, depth: int, index: int) -> bytes:
        # beyond the tree's shape any hash that fits will do: nobody may choose it
        if not game.exists(depth, index):
            return self._missing(game, depth)
        return self.evidence.node(game.cell, tree, depth, index)

    def _missing(self, game: Game, depth: int) -> bytes:
        raise NotImplementedError

    def _openings(self, game: Game) -> Open:
        assert game.cell is not None
        fixed, terms = game.sources()
        leaves: dict[Slot, bytes] = {}
        for source in fixed + terms:
            for number, slot in enumerate(game.layout.slots(game.hop.program(game.cell), source)):
                if slot in game.needed:
                    leaves[slot] = self.evidence.leaf(game.cell, source, number, slot)
        chosen: list[Opening] = []
        left = room(game.id) - len(canonical(Open(())))
        known = game.hashes.copy()
        for number, slot in enumerate(game.needed):
            opening = self._opening(game, known, number, slot, leaves[slot], left)
            if opening is None:
                break
            left -= len(canonical(opening))
            known.add(slot, opening)
            chosen.append(opening)
            if opening.skip:
                break
        return Open(tuple(chosen))

    def _opening(
        self, game: Game, known: object, number: int, slot: Slot, leaf: bytes, left: int
    ) -> Opening | None:
        raise NotImplementedError

    def _split(self, game: Game) -> Split:
        raise NotImplementedError


__all__ = ["Values", "parts_of", "Ref"]
