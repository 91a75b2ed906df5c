import struct

import pytest
from bench.netlab.burst import HEADER, segments, target, without
from hypothesis import given
from hypothesis import strategies as st

SOURCE, TARGET = bytes([10, 77, 0, 1]), bytes([10, 77, 0, 2])
TCP, UDP = 1, 5


def checksum(data: bytes) -> int:
    """RFC 1071, written the slow way."""
    total = 0
    for i in range(0, len(data), 2):
        total += data[i] << 8 | data[i + 1]
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def burst(kind: int, payload: bytes, size: int, options: int = 12, flags: int = 0x18) -> bytes:
    if kind == TCP:
        transport = struct.pack(
            "!HHIIBBHHH", 1, 2, 0xFFFFFF00, 77, (20 + options) // 4 << 4, flags, 500, 0, 0
        ) + bytes(options)
    else:
        transport = struct.pack("!HHHH", 1, 2, 8 + len(payload), 0)
    total = 20 + len(transport) + len(payload)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 9, 0, 64, 6, 0, SOURCE, TARGET)
    plain = len(payload) <= size
    head = HEADER.pack(
        1, 0 if plain else kind, 54, 0 if plain else size, 20, 16 if kind == 1 else 6
    )
    return head + ip + transport + payload


def split(piece: bytes) -> tuple[bytes, bytes, bytes, tuple[int, ...]]:
    """IP header, transport header, payload, offload fields."""
    offload = HEADER.unpack_from(piece)
    rest = piece[HEADER.size :]
    length = (rest[32] >> 4) * 4 if offload[5] == 16 else 8
    return rest[:20], rest[20 : 20 + length], rest[20 + length :], offload


@given(
    kind=st.sampled_from([TCP, UDP]),
    payload=st.binary(min_size=1, max_size=900),
    size=st.integers(1, 300),
    data=st.data(),
)
def test_taking_out_segments_leaves_exactly_the_others(kind, payload, size, data):
    whole = burst(kind, payload, size)
    count = -(-len(payload) // size)
    assert segments(whole) == count
    lost = sorted(data.draw(st.sets(st.integers(0, count - 1))))
    expected = {i: payload[i * size : (i + 1) * size] for i in range(count) if i not in lost}
    got: dict[int, bytes] = {}
    for piece in without(whole, lost):
        ip, transport, content, offload = split(piece)
        assert content
        assert struct.unpack_from("!H", ip, 2)[0] == len(piece) - HEADER.size
        assert target(piece) == TARGET
        first = None
        if kind == TCP:
            sequence = struct.unpack_from("!I", transport, 4)[0]
            first = (sequence - 0xFFFFFF00) % (1 << 32) // size
        else:
            assert struct.unpack_from("!H", transport, 4)[0] == 8 + len(content)
            first = struct.unpack_from("!H", ip, 4)[0] - 9
        if lost:
            assert checksum(ip) == 0xFFFF
            at = 16 if kind == TCP else 6
            pseudo = ip[12:20] + struct.pack("!BBH", 0, ip[9], len(transport) + len(content))
            assert struct.unpack_from("!H", transport, at)[0] == checksum(pseudo)
        runs = segments(piece)
        if runs > 1:
            assert offload[1] == kind
            assert offload[3] == size
        for i in range(runs):
            got[first + i] = content[i * size : (i + 1) * size]
    assert got == expected


def test_only_the_last_piece_ends_a_connection():
    pieces = without(burst(TCP, bytes(500), 100, flags=0x19), [2])
    assert [split(p)[1][13] for p in pieces] == [0x10, 0x19]


def test_the_loss_of_a_single_packet_leaves_nothing():
    assert without(burst(UDP, b"once", 100), [0]) == []


def test_other_than_ipv4_has_no_target():
    assert target(HEADER.pack(0, 0, 0, 0, 0, 0) + bytes([0x60]) + bytes(60)) is None
    assert target(bytes(12)) is None


def test_an_unknown_kind_of_burst_is_an_error():
    whole = bytearray(burst(TCP, bytes(500), 100))
    whole[1] = 4  # TCP over IPv6
    with pytest.raises(ValueError, match="kind 4"):
        segments(bytes(whole))
