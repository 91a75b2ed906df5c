"""Rows on the wire: three bytes for most values, and the few that need four listed apart.

Values of residual rows rarely leave 24 bits (8.0 in units of the model, at 20 fraction bits), but
almost every row has some that do. What is hashed and signed is the canonical encoding
(`wire.rows`); this one only travels, and gives exactly the same bytes back.

    3 bytes × values    the low 24 bits of every value, in order, little-endian
    8 bytes × n         index among the message's values (u32), and the value (i32), ascending
"""

from __future__ import annotations

import numpy as np

from unisono.errors import PeerCheating
from unisono.wire.rows import NARROW

_LIMIT = 1 << 23
_EXCEPTION = np.dtype([("index", "<u4"), ("value", "<i4")])


def pack(body: bytes | memoryview) -> tuple[int, bytes] | None:
    """Pack rows that are all `NARROW`, given as their canonical bytes.

    Returns:
        How many values are listed apart, and the bytes; None if they would not be fewer.
    """
    values = np.frombuffer(body, dtype="<i4")
    (wide,) = np.nonzero((values < -_LIMIT) | (values >= _LIMIT))
    if 3 * values.size + _EXCEPTION.itemsize * wide.size >= len(body):
        return None
    low = values.view(np.uint8).reshape(-1, NARROW)[:, :3]
    apart = np.empty(wide.size, dtype=_EXCEPTION)
    apart["index"], apart["value"] = wide, values[wide]
    return wide.size, low.tobytes() + apart.tobytes()


def unpack(body: bytes | memoryview, count: int, apart: int) -> bytes:
    """The canonical bytes of `count` values of which `apart` are listed apart.

    Raises:
        PeerCheating: not what `pack` gives.
    """
    expected = 3 * count + _EXCEPTION.itemsize * apart
    if len(body) != expected or expected >= NARROW * count:
        raise PeerCheating(
            f"{count} packed values with {apart} apart take {expected} bytes, less than "
            f"{NARROW * count}; got {len(body)}"
        )
    low = np.frombuffer(body, np.uint8, 3 * count).reshape(count, 3)
    whole = np.empty((count, NARROW), dtype=np.uint8)
    whole[:, :3] = low
    whole[:, 3] = np.where(low[:, 2] & 0x80, 0xFF, 0)  # the sign
    values = whole.view("<i4").reshape(count)
    listed = np.frombuffer(body, _EXCEPTION, apart, 3 * count)
    index, value = listed["index"], listed["value"]
    if apart:
        rising = bool((index[1:] > index[:-1]).all()) and int(index[-1]) < count
        wide = bool(((value < -_LIMIT) | (value >= _LIMIT)).all())
        if not rising or not wide:
            raise PeerCheating("values listed apart are out of order, out of range, or need not be")
        if bool(((values[index] ^ value) & 0xFFFFFF).any()):
            raise PeerCheating("values listed apart differ from their low bits")
        values[index] = value
    return values.tobytes()
