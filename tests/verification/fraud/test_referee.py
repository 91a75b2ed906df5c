"""Openings count only under what was signed, at their own place, with their own length."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fraud.dispute import answer_of
from unisono.merkle import Tree as SealedTree
from unisono.merkle import leaf_hash, seal
from unisono.verification.fraud.moves import Opening
from unisono.verification.fraud.referee import Hashes, Sealed, Slot, part_size, parts_of
from unisono.verification.fraud.steps import Cell, InputRef, Ref, WeightRef
from unisono.verification.fraud.tree import Tree, blocks, decode_block, depth_of, encode_block

PAYLOADS = [bytes([i]) * 8 for i in range(21)]


def slot(i: int, count: int) -> Slot:
    return Slot("t", depth_of(count), i, count - 1, 8)


def hashes(count: int) -> tuple[Hashes, SealedTree]:
    tree = SealedTree(b"".join(leaf_hash(p) for p in PAYLOADS[:count]))
    return Hashes({"t": Sealed("d", count, seal("d", count, tree.top()))}), tree


@given(count=st.integers(1, 21), data=st.data())
@settings(max_examples=80, deadline=None)
def test_every_leaf_of_a_sealed_tree_opens_and_no_other_bytes_do(
    count: int, data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, count - 1))
    known, tree = hashes(count)
    path = tree.path(i)
    assert hashes(count)[0].add(slot(i, count), Opening(0, 0, PAYLOADS[i], path)) is None
    wrong = [Opening(0, 0, PAYLOADS[(i + 1) % 21], path), Opening(0, 0, PAYLOADS[i], path + path)]
    wrong += [Opening(0, 0, PAYLOADS[i] + b"\0", path), Opening(0, 1, PAYLOADS[i], path)]
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        bent = bytes(b ^ (k == at) for k, b in enumerate(path))
        wrong += [Opening(0, 0, PAYLOADS[i], bent), Opening(0, 0, PAYLOADS[i], path[:-32])]
    for opening in wrong:
        if opening.path != path or opening.payload != PAYLOADS[i] or opening.skip:
            assert known.add(slot(i, count), opening) is not None
    assert known.nodes == {}
    assert known.leaves == {}


def test_a_leaf_opens_at_its_own_place_only() -> None:
    known, tree = hashes(21)
    opening = Opening(0, 0, PAYLOADS[3], tree.path(3))
    for other in (2, 4, 19, 20):
        assert known.add(slot(other, 21), opening) is not None


def test_what_an_opening_shows_shortens_the_next_path() -> None:
    known, tree = hashes(16)
    assert known.add(slot(4, 16), Opening(0, 0, PAYLOADS[4], tree.path(4))) is None
    assert known.ancestor(slot(5, 16)) == 4
    assert known.add(slot(5, 16), Opening(0, 0, PAYLOADS[5], b"")) is None
    assert known.add(slot(6, 16), Opening(0, 0, PAYLOADS[6], tree.path(6))) is not None
    assert known.add(slot(6, 16), Opening(0, 0, PAYLOADS[6], tree.path(6)[:32])) is None


@given(
    values=st.lists(st.integers(-(1 << 15), (1 << 15) - 1), min_size=1, max_size=400),
    format=st.sampled_from(["i2", "i4", "i8"]),
)
@settings(max_examples=50, deadline=None)
def test_blocks_hold_what_was_put_in(values: list[int], format: str) -> None:
    parts = blocks(np.array(values), format)
    assert [x for part in parts for x in decode_block(part, format)] == values
    assert all(0 < len(part) <= 256 for part in parts)


def test_a_value_that_does_not_fit_its_format_is_not_written() -> None:
    with pytest.raises(OverflowError):
        encode_block([1 << 15], "i2")


def test_a_tree_tells_leaves_from_missing_ones() -> None:
    roots = {Tree([leaf_hash(p) for p in PAYLOADS[:count]]).root for count in range(1, 20)}
    assert len(roots) == 19


@given(length=st.integers(2, 1 << 18), chunk=st.sampled_from([1, 32, 64, 128]))
@settings(max_examples=100, deadline=None)
def test_a_sum_splits_into_at_most_sixteen_parts_that_cover_it(length: int, chunk: int) -> None:
    if length <= chunk:
        return
    parts = parts_of(0, length, chunk)
    assert 2 <= len(parts) <= 16
    assert parts[0][0] == 0
    assert parts[-1][1] == length
    assert all(a[1] == b[0] for a, b in pairwise(parts))
    assert part_size(length, chunk) % chunk == 0


def test_the_layout_reads_weights_tokens_and_kept_rows_where_they_are() -> None:
    answer = answer_of("gemma")
    game, holdings = answer.game(), answer.honest
    cell = Cell(1, 4)
    layer = answer.material.weights.layer[0]
    read = holdings.values(
        game.layout,
        cell,
        (
            WeightRef("layers.0.query", 7, 32, 64),
            WeightRef("layers.0.mlp_norm", 0, 5, 9),
            InputRef(3),
            Ref(Cell(0, 4), "row", 30, 40),
        ),
    )
    values = layer.query.values[7, 32:64].tolist()
    assert list(read[0]) == [*values, int(layer.query.multipliers[7, 1])]
    assert list(read[1]) == layer.mlp_norm.values[5:9].tolist()
    assert list(read[2]) == [answer.material.tokens[3]]
    assert list(read[3]) == holdings.grid.kept[0, "row"][4, 30:40].tolist()
