"""Packed rows give back exactly what was packed, and nothing else is accepted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import PeerCheating
from unisono.wire.packing import LOW_BYTES, pack, unpack
from unisono.wire.rows import VALUE_LIMIT

most = st.integers(-(1 << 27), (1 << 27) - 1)
any_value = st.integers(-VALUE_LIMIT + 1, VALUE_LIMIT - 1)


@given(st.lists(st.one_of(most, most, most, any_value), max_size=200))
def test_what_is_packed_comes_back(values: list[int]) -> None:
    rows = np.array(values, dtype=np.int64)
    low, apart, body = pack(rows)
    assert unpack(body, len(values), low, apart).tolist() == values
    sizes = [
        n * len(values) + 12 * sum(not -(1 << 8 * n - 1) <= v < 1 << 8 * n - 1 for v in values)
        for n in LOW_BYTES
    ]
    assert len(body) == min(sizes)


@given(st.binary(max_size=160), st.integers(0, 40), st.integers(0, 8), st.integers(0, 9))
def test_whatever_is_accepted_holds_what_it_says(
    body: bytes, count: int, apart: int, low: int
) -> None:
    try:
        values = unpack(body, count, low, apart)
    except PeerCheating:
        return
    half = 1 << (8 * low - 1)
    assert len(values) == count
    assert int(((values < -half) | (values >= half)).sum()) == apart


@pytest.mark.parametrize("low", LOW_BYTES)
@pytest.mark.parametrize("over", [-1, 0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_edges_of_what_low_bytes_hold(low: int, over: int, sign: int) -> None:
    edge = sign * (1 << (8 * low - 1)) + (over if sign > 0 else -over - 1)
    values = np.array([edge, *[(1 << (8 * low - 2))] * 100], dtype=np.int64)
    found, apart, body = pack(values)
    assert found == low
    assert apart == (over == 0)
    assert unpack(body, len(values), low, apart).tolist() == values.tolist()


def damaged(apart: list[tuple[int, int]]) -> bytes:
    values = np.full(40, 5, dtype="<i8").view(np.uint8).reshape(-1, 8)[:, :3].tobytes()
    return values + b"".join(
        i.to_bytes(4, "little") + v.to_bytes(8, "little", signed=True) for i, v in apart
    )


BIG = (1 << 24) + 5


@pytest.mark.parametrize(
    "apart",
    [
        [(1, BIG), (1, BIG)],
        [(2, BIG), (1, BIG)],
        [(40, BIG)],
        [(3, 5)],
        [(3, BIG + 1)],
        [(3, (1 << 43) + 5)],
    ],
    ids=["twice", "falling", "outside", "needless", "other low bytes", "too large"],
)
def test_a_list_of_values_apart_that_breaks_the_rules_is_refused(
    apart: list[tuple[int, int]],
) -> None:
    assert unpack(damaged([(1, BIG)]), 40, 3, 1)[1] == BIG
    with pytest.raises(PeerCheating, match="apart"):
        unpack(damaged(apart), 40, 3, len(apart))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_body_of_another_length_is_refused(change: int) -> None:
    low, apart, body = pack(np.arange(40))
    with pytest.raises(PeerCheating, match="bytes"):
        unpack(body[:change] if change < 0 else body + b"\0", 40, low, apart)
