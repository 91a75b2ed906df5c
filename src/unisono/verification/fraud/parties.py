"""How an honest defender and an honest challenger play."""

from __future__ import annotations

from collections.abc import Sequence

from unisono.types import canonical
from unisono.verification.fraud.game import Game
from unisono.verification.fraud.holdings import Holdings
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
    Subject,
    encode_move,
    room,
)
from unisono.verification.fraud.program import HopProgram
from unisono.verification.fraud.referee import Hashes, Slot, parts_of
from unisono.verification.fraud.steps import Cell, Total
from unisono.verification.fraud.tree import HASH
from unisono.verification.verdict import Fault
from unisono.wire.claims import TAG_BYTES, HopClaim
from unisono.wire.identity import Identity

_OVERHEAD = 16
"""Bytes of an opening beside its payload and path."""


class Player:
    """A party with its key."""

    def __init__(self, identity: Identity, holdings: Holdings) -> None:
        self.identity, self.holdings = identity, holdings

    def body(self, game: Game) -> Body:
        """What to do in the game's state, which must be this party's turn."""
        raise NotImplementedError

    def move(self, game: Game) -> bytes:
        """The signed move."""
        move = Move(len(game.moves), game.previous, self.body(game))
        return encode_move(move.signed_by(self.identity, game.id))


class Defender(Player):
    """The hop: shows what it committed to."""

    def body(self, game: Game) -> Body:
        holdings = self.holdings
        match game.phase:
            case "commit":
                return Commit(holdings.grid.root)
            case "descend":
                first = game.index << game.shown
                return Reveal(
                    b"".join(
                        holdings.node(game.cell, game.tree, game.depth + game.shown, first + i)
                        for i in range(1 << game.shown)
                    )
                )
            case "cell":
                assert game.cell is not None
                kept = holdings.grid.kept_roots(game.cell)
                return OpenCell(b"".join(kept), holdings.trace(game.cell).root)
            case "block":
                assert game.cell is not None
                assert game.tensor is not None
                below = game.target - holdings.trace(game.cell).depth
                block = game.index & ((1 << below) - 1)
                return Block(holdings.trace(game.cell).block(game.tensor.name, block))
            case "open":
                return self._openings(game)
            case "split":
                return self._split(game)
            case _:
                raise ValueError(f"the defender has no move in phase '{game.phase}'")

    def _openings(self, game: Game) -> Open:
        assert game.cell is not None
        assert game.inquiry is not None
        program, needed = game.hop.program(game.cell), game.inquiry.needed
        leaves: dict[Slot, bytes] = {}
        for source in game.inquiry.sources():
            for number, slot in enumerate(game.layout.slots(program, source)):
                if slot in needed:
                    leaves[slot] = self.holdings.leaf(game.cell, source, number, slot)
        chosen: list[Opening] = []
        left = room() - len(canonical(Open(())))
        known = game.hashes.copy()
        for number, slot in enumerate(needed):
            opening = self._opening(game.cell, known, number, slot, leaves[slot])
            if len(canonical(opening)) > left:
                if chosen:
                    break
                # a node so far above the leaf that the rest of the path fits the next move
                skip = (left - slot.size - _OVERHEAD) // HASH
                opening = self._opening(game.cell, known, number, slot, leaves[slot], skip)
            left -= len(canonical(opening))
            known.add(slot, opening)
            chosen.append(opening)
            if opening.skip:
                break
        return Open(tuple(chosen))

    def _opening(
        self, cell: Cell, known: Hashes, number: int, slot: Slot, leaf: bytes, skip: int = 0
    ) -> Opening:
        climb = self.holdings.climb(cell, slot, leaf)
        levels = climb[skip : slot.depth - known.ancestor(slot)]
        path = b"".join(sibling for _, sibling in levels if sibling is not None)
        return Opening(number, skip, climb[skip][0] if skip else leaf, path)

    def _split(self, game: Game) -> Split:
        return Split(tuple(self.totals(game)))

    def totals(self, game: Game) -> list[Total]:
        """The parts of the sum in dispute."""
        return _totals(self.holdings, game)


def _totals(holdings: Holdings, game: Game) -> list[Total]:
    inquiry = game.inquiry
    assert inquiry is not None
    assert inquiry.span is not None
    cell, step = game.cell_in_dispute, inquiry.step
    return [
        holdings.total(game.layout, cell, step, inquiry.element, inquiry.value, part)
        for part in parts_of(*inquiry.span, step.chunk)
    ]


Target = tuple[Cell, str]
"""A check that fails on honest numbers: a cell and one of its tensors."""


def target_of(fault: Fault, hop: HopProgram) -> Target | None:
    """Where a hop that may defend honest numbers signed something else, after a replay's fault."""
    if fault.position is None:
        return None
    if fault.kind == "rows_out":
        return Cell(hop.stages - 1, fault.position), "sent"
    if fault.kind == "sampling":
        return Cell(hop.stages - 1, fault.position - 1), "chosen"
    return None


def first_other_row(claim: HopClaim, holdings: Holdings) -> Target | None:
    """Where a claim signs another row than these holdings have, as its tags show; else None."""
    size = TAG_BYTES
    for position, honest in enumerate(holdings.signed.rows_out):
        if claim.out_tags[size * position : size * (position + 1)] != honest[:size]:
            return Cell(holdings.hop.stages - 1, position), "sent"
    return None


def first_other_token(subject: Subject, hop: HopProgram, drawn: Sequence[int]) -> Target | None:
    """Where the answer has another token than is drawn after its rows; else None."""
    first = len(subject.request.prompt) - 1
    for place, (given, honest) in enumerate(zip(subject.tokens, drawn, strict=True)):
        if given != honest:
            return Cell(hop.stages - 1, first + place), "chosen"
    return None


class Challenger(Player):
    """Whoever contradicts the hop: chooses the first difference from its own numbers, and where
    there is none, what cannot be true of what the hop signed."""

    def __init__(
        self, identity: Identity, holdings: Holdings, target: Target | None = None
    ) -> None:
        super().__init__(identity, holdings)
        self.target = target

    def body(self, game: Game) -> Body:
        match game.phase:
            case "choose":
                return Choose(self._choose(game))
            case "element":
                assert game.cell is not None
                assert game.tensor is not None
                mine = self.holdings.trace(game.cell).values[game.tensor.name]
                first, theirs = game.block
                differ = (i for i, x in enumerate(theirs) if x != int(mine[first + i]))
                return Choose(next(differ, 0))
            case "part":
                assert game.inquiry is not None
                pairs = zip(_totals(self.holdings, game), game.inquiry.parts, strict=True)
                return Choose(next((i for i, (a, b) in enumerate(pairs) if a != b), 0))
            case _:
                raise ValueError(f"the challenger has no move in phase '{game.phase}'")

    def _choose(self, game: Game) -> int:
        depth, first = game.depth + game.shown, game.index << game.shown
        shown = [first + i for i in range(1 << game.shown) if game.exists(depth, first + i)]
        if game.tree == "trace" and game.tensor is None and depth == game.target:
            found = self._tensor(game, shown)
        else:
            found = next((node for node in shown if self._differs(game, depth, node)), None)
        if found is None:
            place = self._place(game)
            node = -1 if place is None else place >> (game.target - depth)
            found = node if node in shown else shown[0]
        return found - first

    def _differs(self, game: Game, depth: int, node: int) -> bool:
        mine = self.holdings.node(game.cell, game.tree, depth, node)
        return game.hashes.nodes[game.tree, depth, node] != mine

    def _tensor(self, game: Game, shown: list[int]) -> int | None:
        """The first tensor whose root is not the grid's or not this party's own."""
        program = game.hop.program(game.cell_in_dispute)
        kept = dict(zip(program.kept, game.kept_roots, strict=True))
        for place in shown:
            tensor = program.tensors[place]
            theirs = game.hashes.nodes["trace", game.target, place]
            if kept.get(tensor.name, theirs) != theirs:
                return place
            if self._differs(game, game.target, place):
                # what was received has no step: the check that binds it comes after it
                return place if tensor.step is not None else program.index["received"]
        return None

    def _place(self, game: Game) -> int | None:
        """Where what cannot be true is, among the leaves of the tree in dispute."""
        if game.tree == "grid":
            return None if self.target is None else game.hop.place(self.target[0])
        if game.tensor is not None:
            return None
        cell, program = game.cell_in_dispute, game.hop.program(game.cell_in_dispute)
        mine = self.holdings.grid.kept_roots(cell)
        for name, theirs, ours in zip(program.kept, game.kept_roots, mine, strict=True):
            if theirs != ours:
                return program.index[name]
        if self.target is not None and self.target[0] == cell:
            return program.index[self.target[1]]
        return None
