from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unisono.models.rows import BLOCK, INTEGER, hash_of, row_bytes, row_hashes
from unisono.native import hashing, library
from unisono.verification.fraud import tree
from unisono.verification.fraud.tree import tensor_tree
from unisono.wire.claims import token_hash
from unisono.wire.rows import VALUE_LIMIT

Rows = NDArray[np.int64]


def made(count: int, width: int, seed: int) -> Rows:
    limit = VALUE_LIMIT if seed % 2 else 1 << 20
    return np.random.default_rng(seed).integers(1 - limit, limit, (count, width))


rows = st.builds(made, st.integers(1, 3), st.integers(1, 400), st.integers(0, 2**32))


@given(rows)
def test_a_rows_hash_is_the_root_under_which_a_dispute_shows_it(given: Rows) -> None:
    expected = [tensor_tree(row, "i8").root for row in given]
    assert row_hashes(given) == expected
    assert [hash_of(row_bytes(row)) for row in given] == expected
    assert tree.BLOCK == BLOCK


@pytest.mark.parametrize("width", [640, 2048, 4096, 8192])
def test_rows_of_models_are_no_special_case(width: int) -> None:
    given = made(2, width, width)
    assert row_hashes(given) == [tensor_tree(row, "i8").root for row in given]


@given(st.integers(1, 200), st.integers(0, 2**32), st.data())
def test_any_other_row_has_another_hash(width: int, seed: int, data: st.DataObject) -> None:
    row = made(1, width, seed)[0]
    place = data.draw(st.integers(0, width - 1))
    one, zero = row.copy(), np.zeros(1, dtype=np.int64)
    one[place] ^= 1 << data.draw(st.integers(0, 62)) if place % 2 else 1
    others = [one, np.append(row, zero), np.append(zero, row), np.append(row, np.tile(zero, 32))]
    others += [np.tile(row, 2)] + ([row[:-1], row[1:]] if width > 1 else [])
    hashes = [hash_of(row_bytes(other)) for other in (row, *others)]
    assert hashes.count(hashes[0]) == 1


@given(st.binary(min_size=1, max_size=1100), st.binary(min_size=1, max_size=1100))
def test_bytes_that_differ_have_hashes_that_differ(one: bytes, other: bytes) -> None:
    assert (hash_of(one) == hash_of(other)) == (one == other)


def test_the_form_of_a_hash_is_this_one() -> None:
    """Three blocks, the last of one integer; and a row of one block."""

    def leaf(data: bytes) -> bytes:
        return hashlib.sha256(b"\0" + data).digest()

    def node(left: bytes, right: bytes) -> bytes:
        return hashlib.sha256(b"\1" + left + right).digest()

    row = np.arange(-32, 33, dtype=np.int64)
    data = b"".join(int(x).to_bytes(INTEGER, "little", signed=True) for x in row)
    a, b, c = leaf(data[:256]), leaf(data[256:512]), leaf(data[512:])
    assert row_hashes(row[None]) == [node(node(a, b), node(c, bytes(32)))]
    assert row_hashes(row[None, :32]) == [a]
    assert row_hashes(row[None, :5]) == [leaf(data[:40])]
    assert token_hash(258) == leaf(b"\2\1\0\0") == hash_of(b"\2\1\0\0")


def test_the_layout_in_memory_does_not_matter() -> None:
    whole = made(6, 90, 3)
    for view in (whole[::2], whole[:, ::3], np.asfortranarray(whole), whole.astype(">i8")):
        assert row_hashes(view) == row_hashes(np.array(view.tolist()))
    assert row_hashes(whole[:0]) == []


def test_without_the_library_hashes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = made(2, 421, 9)
    expected = row_hashes(given)
    monkeypatch.setattr(library, "load", lambda: None)
    for cached in (hashing.compiled, hashing.compiled_roots):
        cached.cache_clear()
    try:
        assert hashing.compiled_roots() is None
        assert row_hashes(given) == expected
    finally:
        for cached in (hashing.compiled, hashing.compiled_roots):
            cached.cache_clear()
