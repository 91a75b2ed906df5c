"""What a TUN device hands over: a packet, or a burst of one flow that the kernel left in one.

With segmentation offload a read gives up to 64 KB of one TCP or UDP flow behind a
`virtio_net_hdr` that says how long its segments are. Carrying it whole is what makes a link in
user space cheap; a lost segment is taken out by rewriting the headers around it.
"""

from __future__ import annotations

import itertools
import struct

HEADER = struct.Struct("<BBHHHH")
"""flags, kind, header length, segment size, start of the checksummed part, checksum offset"""
_PLAIN, _TCP4, _UDP = 0, 1, 5
_ECN = 0x80
_FIN_PSH, _CWR = 0x09, 0x80


def segments(burst: bytes) -> int:
    """How many packets on the wire a burst stands for."""
    _, kind, _, size, start, _ = HEADER.unpack_from(burst)
    if kind == _PLAIN or not size:
        return 1
    return max(1, -(-(len(burst) - HEADER.size - start - _transport_header(burst, start)) // size))


def target(burst: bytes) -> bytes | None:
    """The IPv4 address that a burst goes to; None for anything but IPv4."""
    ip = HEADER.size
    return burst[ip + 16 : ip + 20] if len(burst) >= ip + 20 and burst[ip] >> 4 == 4 else None


def without(burst: bytes, lost: list[int]) -> list[bytes]:
    """The bursts that are left when some segments (sorted indexes) are taken out."""
    if not lost:
        return [burst]
    count = segments(burst)
    if count == 1:
        return []
    edges = [-1, *lost, count]
    runs = [(a + 1, b) for a, b in itertools.pairwise(edges) if b > a + 1]
    return [_part(burst, first, end, count) for first, end in runs]


def _part(burst: bytes, first: int, end: int, count: int) -> bytes:
    """Segments `first` to `end` of a burst as a burst of its own."""
    flags, kind, header, size, start, offset = HEADER.unpack_from(burst)
    head = HEADER.size + start + _transport_header(burst, start)
    payload = burst[head + first * size : head + end * size]
    left = bytearray(burst[HEADER.size : head])  # headers of IP and transport
    struct.pack_into("!H", left, 2, len(left) + len(payload))
    identification = struct.unpack_from("!H", left, 4)[0]
    struct.pack_into("!H", left, 4, (identification + first) & 0xFFFF)
    struct.pack_into("!H", left, 10, 0)
    struct.pack_into("!H", left, 10, ~_sum(bytes(left[:start])) & 0xFFFF)
    if kind & ~_ECN == _TCP4:
        sequence = struct.unpack_from("!I", left, start + 4)[0]
        struct.pack_into("!I", left, start + 4, (sequence + first * size) & 0xFFFFFFFF)
        if end < count:
            left[start + 13] &= ~_FIN_PSH
        if first:
            left[start + 13] &= ~_CWR & 0xFF
    else:
        struct.pack_into("!H", left, start + 4, len(left) - start + len(payload))
    # The kernel adds the rest of the checksum, from here on, when it needs it.
    pseudo = bytes(left[12:20]) + struct.pack("!BBH", 0, left[9], len(left) - start + len(payload))
    struct.pack_into("!H", left, start + offset, _sum(pseudo))
    if end - first == 1:
        kind, size = _PLAIN, 0
    return HEADER.pack(flags, kind, header, size, start, offset) + left + payload


def _transport_header(burst: bytes, start: int) -> int:
    kind = burst[1] & ~_ECN
    if kind == _TCP4:
        return (burst[HEADER.size + start + 12] >> 4) * 4
    if kind == _UDP:
        return 8
    raise ValueError(f"expected a burst of TCP over IPv4 or UDP; got kind {kind}")


def _sum(data: bytes) -> int:
    """The Internet checksum before its complement (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
