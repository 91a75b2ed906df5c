"""Activation rows: one encoding each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unisono.errors import PeerCheating
from unisono.wire.rows import VALUE_LIMIT, decode_rows, encode_rows

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
edges = st.sampled_from(
    [0, 1, -1, 2**31 - 1, -(2**31), 2**31, -(2**31) - 1, VALUE_LIMIT - 1, 1 - VALUE_LIMIT]
)
mixed = hnp.arrays(
    np.int64, shapes, elements=edges | st.integers(1 - VALUE_LIMIT, VALUE_LIMIT - 1), fill=edges
)
narrow = hnp.arrays(np.int64, shapes, elements=st.integers(-(2**31), 2**31 - 1))


@given(mixed | narrow)
def test_rows_come_back_as_they_were(rows: np.ndarray) -> None:
    widths, encoded = encode_rows(rows)
    assert len(widths) == len(encoded) == len(rows)
    found = decode_rows(widths, b"".join(encoded), rows.shape[1])
    assert found.dtype == np.int64
    assert (found == rows).all()
    found[0, 0] = 1  # the caller owns the array


@given(mixed)
def test_a_row_alone_has_the_bytes_that_it_has_in_a_batch(rows: np.ndarray) -> None:
    widths, encoded = encode_rows(rows)
    for index, row in enumerate(rows):
        width, alone = encode_rows(row[None, :])
        assert (width, bytes(alone[0])) == (widths[index : index + 1], bytes(encoded[index]))


def test_a_row_is_narrow_exactly_if_every_value_fits() -> None:
    rows = np.array([[2**31 - 1, -(2**31)], [2**31, 0], [0, -(2**31) - 1]])
    widths, encoded = encode_rows(rows)
    assert widths == bytes([4, 8, 8])
    assert bytes(encoded[0]) == bytes.fromhex("ffffff7f 00000080")
    assert bytes(encoded[1]) == bytes.fromhex("0000008000000000 0000000000000000")


def test_the_layout_of_the_array_in_memory_does_not_matter() -> None:
    rows = np.arange(24, dtype=np.int64).reshape(4, 6)
    expected = encode_rows(rows[:, ::2].copy())
    assert encode_rows(rows[:, ::2]) == expected
    assert encode_rows(np.asfortranarray(rows[:, ::2])) == expected


def test_no_rows_are_no_bytes() -> None:
    assert encode_rows(np.empty((0, 8), dtype=np.int64)) == (b"", [])
    assert decode_rows(b"", b"", 8).shape == (0, 8)


@pytest.mark.parametrize(
    ("widths", "body", "said"),
    [
        (bytes([4]), bytes(7), "got 7"),
        (bytes([4]), bytes(12), "got 12"),
        (bytes([4, 4]), bytes(8), "got 8"),
        (bytes([5]), bytes(10), "5"),
        (bytes([0]), b"", "0"),
        (bytes([8]), bytes(16), "row 0 is 8 bytes wide"),
        (bytes([4, 8]), bytes(8) + bytes(16), "row 1 is 8 bytes wide"),
        (bytes([8]), np.array([VALUE_LIMIT, 0], dtype="<i8").tobytes(), "2^43"),
        (bytes([8]), np.array([-VALUE_LIMIT, 0], dtype="<i8").tobytes(), "2^43"),
        (bytes([8]), np.array([-(2**63), 0], dtype="<i8").tobytes(), "2^43"),
    ],
)
def test_rows_that_no_honest_peer_sends_are_refused(widths: bytes, body: bytes, said: str) -> None:
    with pytest.raises(PeerCheating) as caught:
        decode_rows(widths, body, 2)
    assert said in str(caught.value)


@given(st.binary(max_size=8), st.binary(max_size=200), st.integers(1, 8))
def test_random_bytes_are_rows_or_cheating(widths: bytes, body: bytes, hidden: int) -> None:
    try:
        rows = decode_rows(widths, body, hidden)
    except PeerCheating:
        return
    found, encoded = encode_rows(rows)
    assert (found, b"".join(encoded)) == (widths, body)


@pytest.mark.parametrize("value", [VALUE_LIMIT, -VALUE_LIMIT, -(2**63)])
def test_an_unsaturated_row_is_not_sent(value: int) -> None:
    with pytest.raises(ValueError, match="saturated"):
        encode_rows(np.array([[0, value]]))
