from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.merkle import leaf_hash
from unisono.native import hashing, library
from unisono.verification.fraud.tree import Tree


@given(st.integers(0, 40), st.integers(0, 1200), st.integers(0, 255), st.integers(0, 2**32))
def test_every_message_is_hashed_as_hashlib_does(
    count: int, size: int, prefix: int, seed: int
) -> None:
    messages = np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)
    expected = [hashlib.sha256(bytes([prefix]) + m.tobytes()).digest() for m in messages]
    assert hashing.hash_rows(prefix, messages).tobytes() == b"".join(expected)
    assert hashing.interpreted(prefix, messages).tobytes() == b"".join(expected)


def test_without_the_library_hashlib_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (None, object()):  # none, and one that was built before it could hash
        monkeypatch.setattr(library, "load", lambda found=found: found)
        hashing.compiled.cache_clear()
        assert hashing.compiled() is None
        messages = np.zeros((2, 9), np.uint8)
        expected = hashlib.sha256(bytes([1, *bytes(9)])).digest()
        assert hashing.hash_rows(1, messages).tobytes() == expected * 2
    hashing.compiled.cache_clear()


@pytest.mark.parametrize("size", [0, 1, 54, 55, 56, 62, 63, 64, 65, 127, 256, 1024, 1025])
def test_messages_that_end_where_a_block_does(size: int) -> None:
    messages = np.random.default_rng(size).integers(0, 256, (19, size), dtype=np.uint8)
    assert hashing.hash_rows(0, messages).tobytes() == hashing.interpreted(0, messages).tobytes()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from((1, 2, 17, 70)),
    st.integers(1, 300),
    st.integers(1, 70),
    st.integers(0, 2**32),
)
def test_trees_are_made_as_level_by_level(count: int, size: int, leaf: int, seed: int) -> None:
    messages = np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)
    roots = [
        Tree([leaf_hash(m[i : i + leaf].tobytes()) for i in range(0, size, leaf)]).root
        for m in messages
    ]
    assert hashing.tree_roots(messages, leaf) == b"".join(roots)
    assert hashing.interpreted_roots(messages, leaf) == b"".join(roots)
