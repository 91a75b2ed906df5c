from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import PeerCheating
from unisono.types import canonical
from unisono.verification.light.messages import (
    MAX_CELLS,
    MAX_SMALL_BYTES,
    CellName,
    Challenge,
    Opening,
    Summons,
    TraceCommitment,
    decode,
    pack,
    unpack,
)

HASH = "0f" * 32


@given(st.lists(st.integers(-(1 << 53) + 1, (1 << 53) - 1), max_size=40))
def test_packed_integers_come_back(values: list[int]) -> None:
    packed = pack(np.array(values, dtype=np.int64))
    assert unpack(packed, (len(values),), 53).tolist() == values
    assert pack(unpack(packed, (len(values),), 53)) == packed


@pytest.mark.parametrize(
    ("value", "width"),
    [
        *[(0, 1), (-1, 1), (127, 1), (-128, 1), (128, 2), (-129, 2), (32767, 2), (-32768, 2)],
        *[(32768, 3), ((1 << 39) - 1, 5), (1 << 39, 6), ((1 << 53) - 1, 7), (-(1 << 53) + 1, 7)],
    ],
)
def test_packed_integers_take_the_least_width(value: int, width: int) -> None:
    assert pack(np.array([value, 0])) == bytes([width]) + b"".join(
        v.to_bytes(width, "little", signed=True) for v in (value, 0)
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x00\x00\x00",
        b"\x09" + bytes(18),
        b"\x02\x01\x00\x02\x00",  # fits in one byte each
        b"\x01\x01\x02\x03",
        b"\x01\x01",
        b"\x02\x00\x80\x00\x00",  # 15 bits are allowed: -32768 is outside
    ],
)
def test_malformed_packed_integers_are_refused(data: bytes) -> None:
    with pytest.raises(PeerCheating):
        unpack(data, (2,), 15)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_unpack_canonically_or_not_at_all(data: bytes) -> None:
    try:
        values = unpack(data, (3,), 20)
    except PeerCheating:
        return
    assert pack(values) == data


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_no_message(data: bytes) -> None:
    for kind in (Summons, TraceCommitment, Challenge, Opening):
        with pytest.raises(PeerCheating):
            decode(data, kind)


def test_messages_come_back_and_other_forms_are_refused() -> None:
    challenge = Challenge(HASH, HASH, (CellName(1, 2),), (CellName(0, 1),), (7,))
    data = canonical(challenge)
    assert decode(data, Challenge) == challenge
    with pytest.raises(PeerCheating, match="light audit"):
        decode(data, Summons)
    with pytest.raises(PeerCheating):
        decode(data + b"\x00", Challenge)
    # 2 as a 16-bit integer
    with pytest.raises(PeerCheating, match="canonical"):
        decode(data.replace(b"\x92\x01\x02", b"\x92\x01\xcd\x00\x02"), Challenge)


@pytest.mark.parametrize(
    "made",
    [
        Challenge(HASH, HASH, (CellName(-1, 0),)),
        Challenge(HASH, HASH, (CellName(0, 1 << 20),)),
        Challenge(HASH, HASH, (), (), (-1,)),
        Challenge(HASH.upper(), HASH),
        Challenge(HASH, HASH, (CellName(0, 0),) * (MAX_CELLS + 1)),
        TraceCommitment(HASH, HASH, bytes(65)),
    ],
)
def test_values_outside_their_bounds_are_refused(made: Challenge | TraceCommitment) -> None:
    with pytest.raises(PeerCheating):
        decode(canonical(made), type(made))


def test_a_large_message_is_refused_unread() -> None:
    with pytest.raises(PeerCheating, match="at most"):
        decode(bytes(MAX_SMALL_BYTES + 1), Challenge)
