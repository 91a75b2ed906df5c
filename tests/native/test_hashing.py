from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.native import hashing, library


@given(st.integers(0, 5), st.integers(0, 300), st.integers(0, 255), st.integers(0, 2**32))
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
