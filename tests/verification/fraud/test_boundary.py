"""The step `boundary`: the root of a row in the grid or a trace, and the hash that was signed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fraud.dispute import Answer, answer_of
from unisono.verification.fraud.layer_steps import Boundary
from unisono.verification.fraud.moves import Opening
from unisono.verification.fraud.referee import Hashes, Layout, Slot, sealed_roots
from unisono.verification.fraud.steps import Cell, RootRef, RowRef, Wrong
from unisono.verification.fraud.tree import HASH

WIDTHS = (32, 96, 160, 640)
FEW = settings(max_examples=40, deadline=None)


def hop(width: int) -> Answer:
    return answer_of("qwen3", layers=(1, 2), hidden_size=width)


def boundary(answer: Answer, cell: Cell) -> Boundary:
    step = answer.hop.program(cell).tensor("sent" if cell.stage else "received").step
    assert isinstance(step, Boundary)
    return step


def known(answer: Answer, cell: Cell) -> Hashes:
    """What a referee knows before anything of the step is opened."""
    tops = {("grid", 0, 0): answer.honest.grid.root}
    tops["trace", 0, 0] = answer.honest.trace(cell).root
    return Hashes(sealed_roots(answer.subject()), tops)


def openings(answer: Answer, cell: Cell) -> list[tuple[Slot, Opening]]:
    """Those of a boundary: its row's root, then the signed hash."""
    layout, program = Layout(answer.hop, ()), answer.hop.program(cell)
    found: list[tuple[Slot, Opening]] = []
    for source in boundary(answer, cell).fixed(0):
        (slot,) = layout.slots(program, source)
        leaf = answer.honest.leaf(cell, source, 0, slot)
        climb = answer.honest.climb(cell, slot, leaf)
        path = b"".join(sibling for _, sibling in climb if sibling is not None)
        found.append((slot, Opening(0, 0, leaf, path)))
    return found


cells = st.builds(Cell, st.sampled_from((0, 2)), st.integers(0, 8))


@FEW
@given(st.sampled_from(WIDTHS), cells)
def test_a_boundary_opens_two_hashes_however_wide_the_row(width: int, cell: Cell) -> None:
    answer, hashes = hop(width), known(hop(width), cell)
    shown = openings(answer, cell)
    assert [len(opening.payload) for _, opening in shown] == [HASH, HASH]
    assert shown[0][1].payload == shown[1][1].payload
    for slot, opening in shown:
        assert hashes.add(slot, opening) is None
    assert len(hashes.leaves) == 2


@FEW
@given(st.sampled_from(WIDTHS), cells, st.integers(0, 1), st.data())
def test_nothing_else_opens(width: int, cell: Cell, which: int, data: st.DataObject) -> None:
    answer = hop(width)
    slot, opening = openings(answer, cell)[which]
    joined = bytearray(opening.payload + opening.path)
    joined[data.draw(st.integers(0, len(joined) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    forged = Opening(0, 0, bytes(joined[:HASH]), bytes(joined[HASH:]))
    assert known(answer, cell).add(slot, forged) == "the opening does not fit the commitment"
    position = data.draw(st.sampled_from([p for p in range(9) if p != cell.position]))
    elsewhere, other = openings(answer, Cell(cell.stage, position))[which]
    if elsewhere.tree != "trace":
        assert known(answer, cell).add(slot, other) is not None
        assert known(answer, cell).add(elsewhere, opening) is not None
    for payload in (b"", opening.payload[:-1], opening.payload + b"\0"):
        problem = known(answer, cell).add(slot, Opening(0, 0, payload, opening.path))
        assert problem is not None
        assert "of a leaf of 32" in problem


@FEW
@given(st.sampled_from(WIDTHS), cells, st.integers(0, 7))
def test_the_neighbours_of_a_row_are_not_the_row(width: int, cell: Cell, tensor: int) -> None:
    """Nor the tensors beside it in the tree, nor nodes above and below."""
    answer = hop(width)
    slot, opening = openings(answer, cell)[0]
    neighbour = slot._replace(place=slot.place ^ 1 << tensor % slot.depth)
    assert known(answer, cell).add(neighbour, opening) is not None
    for depth, place in ((slot.depth + 1, 2 * slot.place), (slot.depth - 1, slot.place // 2)):
        level = slot._replace(depth=depth, place=place, last=(1 << depth) - 1)
        assert known(answer, cell).add(level, opening) is not None


def test_a_row_is_what_was_signed_if_both_hashes_are_one() -> None:
    step = Boundary(RootRef(None, "row"), "in", 3)
    assert step.fixed(0) == (RootRef(None, "row"), RowRef("in", 3))
    digest = tuple(range(8))
    assert step.finish(0, 1, (), (digest, digest)) == 1
    for place in range(8):
        other = tuple(x + (i == place) for i, x in enumerate(digest))
        with pytest.raises(Wrong, match="position 3 is not what was signed"):
            step.finish(0, 1, (), (other, digest))
    assert replace(step, side="out").fixed(0)[1] == RowRef("out", 3)
