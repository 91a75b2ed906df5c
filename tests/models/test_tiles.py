from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unisono.merkle import Tree, seal
from unisono.models import tiles
from unisono.numerics.tensors import GROUP


def matrix(rows: int, columns: int, seed: int = 0) -> list[NDArray[Any]]:
    random = np.random.default_rng(seed)
    values = random.integers(-127, 128, (rows, columns), dtype=np.int8)
    multipliers = random.integers(0, 1 << 16, (rows, columns // GROUP), dtype=np.uint16)
    return [values, multipliers.view(np.int16)]


def leaves_one_by_one(parts: list[NDArray[Any]]) -> list[bytes]:
    """The layout as the protocol describes it."""
    values, multipliers = parts
    leaves: list[bytes] = []
    for row, scales in zip(values, multipliers, strict=True):
        for start in range(0, len(row), 640):
            groups = scales[start // 32 : (start + 640) // 32]
            data = row[start : start + 640].tobytes() + groups.astype("<i2").tobytes()
            leaves.append(hashlib.sha256(b"\0" + data).digest())
    return leaves


@given(st.integers(1, 9), st.integers(1, 45), st.integers(0, 99))
def test_every_tile_of_a_matrix_is_a_leaf_in_row_order(rows: int, groups: int, seed: int) -> None:
    parts = matrix(rows, groups * GROUP, seed)
    expected = leaves_one_by_one(parts)
    assert tiles.tile_count(parts[0].shape) == len(expected)
    assert tiles.tensor_leaves(parts) == b"".join(expected)
    top = Tree(b"".join(expected)).top()
    assert tiles.tensor_root(parts) == seal("tensor/1", len(expected), top).hex()
    each = tiles.tiles_per_row(parts[0].shape)
    for index, leaf in enumerate(expected):
        data = tiles.leaf_bytes(parts, index // each, index % each)
        assert hashlib.sha256(b"\0" + data).digest() == leaf


@pytest.mark.parametrize("batch", [1, 2000, 1 << 20])
def test_the_root_does_not_depend_on_how_rows_are_cut(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    parts = matrix(50, 672)
    whole = tiles.tensor_root(parts)
    monkeypatch.setattr(tiles, "_BATCH", batch)
    pieces = [
        tiles.matrix_leaves(parts[0][a:b], parts[1][a:b]) for a, b in ((0, 1), (1, 32), (32, 50))
    ]
    assert tiles.root_of_leaves(pieces) == whole


@given(st.integers(1, 200))
def test_a_vector_has_a_leaf_for_each_64_values(size: int) -> None:
    values = np.arange(-size, size, 2, dtype=np.int32)[:size]
    expected = [
        hashlib.sha256(b"\0" + values[i : i + 64].astype("<i4").tobytes()).digest()
        for i in range(0, len(values), 64)
    ]
    assert tiles.tensor_leaves([values]) == b"".join(expected)
    assert tiles.tile_count(values.shape) == len(expected)
    last = tiles.leaf_bytes([values], 0, len(expected) - 1)
    assert hashlib.sha256(b"\0" + last).digest() == expected[-1]


@given(st.data())
def test_any_altered_weight_or_multiplier_changes_the_root(data: st.DataObject) -> None:
    parts = matrix(7, 704)
    root = tiles.tensor_root(parts)
    part = parts[data.draw(st.integers(0, 1))].reshape(-1)
    part[data.draw(st.integers(0, len(part) - 1))] ^= 1
    assert tiles.tensor_root(parts) != root
