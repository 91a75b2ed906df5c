"""Packed rows give back exactly what was packed, and nothing else is accepted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import PeerCheating
from unisono.wire.packing import pack, unpack

narrow = st.integers(-(1 << 23), (1 << 23) - 1)
any_value = st.integers(-(1 << 31), (1 << 31) - 1)


def canonical(values: list[int]) -> bytes:
    return np.array(values, dtype="<i4").tobytes()


@given(st.lists(st.one_of(narrow, narrow, narrow, any_value), min_size=1, max_size=200))
def test_what_is_packed_comes_back(values: list[int]) -> None:
    body = canonical(values)
    packed = pack(body)
    wide = sum(not -(1 << 23) <= v < 1 << 23 for v in values)
    if packed is None:
        assert 3 * len(values) + 8 * wide >= len(body)
        return
    apart, data = packed
    assert apart == wide
    assert len(data) < len(body)
    assert unpack(data, len(values), apart) == body


@given(st.binary(max_size=120), st.integers(0, 40), st.integers(0, 8))
def test_whatever_is_accepted_is_what_packing_gives(body: bytes, count: int, apart: int) -> None:
    try:
        values = unpack(body, count, apart)
    except PeerCheating:
        return
    assert pack(values) == (apart, body)


@pytest.mark.parametrize("edge", [-(1 << 23) - 1, -(1 << 23), (1 << 23) - 1, 1 << 23])
def test_the_edges_of_24_bits(edge: int) -> None:
    values = [edge, *range(-20, 20)]
    packed = pack(canonical(values))
    assert packed is not None
    assert packed[0] == (edge in (-(1 << 23) - 1, 1 << 23))
    assert unpack(packed[1], len(values), packed[0]) == canonical(values)


def damaged(apart: list[tuple[int, int]], low: list[int]) -> bytes:
    values = np.array(low, dtype="<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    listed = b"".join(
        i.to_bytes(4, "little") + v.to_bytes(4, "little", signed=True) for i, v in apart
    )
    return values + listed


BIG = (1 << 24) + 5
LOW = [5] * 40


@pytest.mark.parametrize(
    "apart",
    [
        [(1, BIG), (1, BIG)],
        [(2, BIG), (1, BIG)],
        [(40, BIG)],
        [(3, 5)],
        [(3, BIG + 1)],
    ],
    ids=["twice", "falling", "outside", "needless", "other low bits"],
)
def test_a_list_of_values_apart_that_is_not_canonical_is_refused(
    apart: list[tuple[int, int]],
) -> None:
    with pytest.raises(PeerCheating):
        unpack(damaged(apart, LOW), len(LOW), len(apart))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_body_of_another_length_is_refused(change: int) -> None:
    packed = pack(canonical(LOW))
    assert packed is not None
    body = packed[1][:change] if change < 0 else packed[1] + b"\0"
    with pytest.raises(PeerCheating, match="bytes"):
        unpack(body, len(LOW), packed[0])
