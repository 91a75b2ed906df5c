"""Rows on the wire: a few low bytes of every value, and the values that need more listed apart.

Residual rows have some values far larger than the rest, often in every row: canonical rows
(`wire.rows`) then take eight bytes per value where four hold nearly all of them (Gemma 3 270M after
six layers: two thirds of the rows of a text, and 1.6 values in a thousand). What is hashed and
signed is the canonical encoding; this one only travels, and gives exactly the same integers back.

    low bytes × values   the low bytes of every value, in order, little-endian
    12 bytes × apart     index among the message's values (u32), and the value (i64), ascending
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unisono.errors import PeerCheating
from unisono.wire.rows import VALUE_LIMIT

LOW_BYTES = (3, 4, 5)
"""How many low bytes every value may have."""
_APART = np.dtype([("index", "<u4"), ("value", "<i8")])


def pack(values: NDArray[np.int64]) -> tuple[int, int, bytes]:
    """Pack values of magnitude below 2^43.

    Returns:
        Low bytes of each value, how many values are listed apart, and the bytes: for the choice
        of low bytes that makes them the fewest.
    """
    flat = np.ascontiguousarray(values, dtype="<i8").reshape(-1)
    magnitude = flat ^ (flat >> 63)  # of a negative value one less than its own
    low, wide = LOW_BYTES[0], magnitude >> (8 * LOW_BYTES[0] - 1)
    count = int(np.count_nonzero(wide))
    for more in LOW_BYTES[1:]:
        if _APART.itemsize * count <= (more - low) * flat.size:
            break  # a byte more for all takes more than is listed apart
        fewer = magnitude >> (8 * more - 1)
        left = int(np.count_nonzero(fewer))
        if _APART.itemsize * (count - left) > (more - low) * flat.size:
            low, wide, count = more, fewer, left
    (wide,) = np.nonzero(wide)
    apart = np.empty(count, dtype=_APART)
    apart["index"], apart["value"] = wide, flat[wide]
    return low, count, flat.view(np.uint8).reshape(-1, 8)[:, :low].tobytes() + apart.tobytes()


def unpack(body: bytes | memoryview, count: int, low: int, apart: int) -> NDArray[np.int64]:
    """The `count` values that were packed.

    Raises:
        PeerCheating: not what `pack` gives.
    """
    expected = low * count + _APART.itemsize * apart
    if low not in LOW_BYTES or len(body) != expected:
        raise PeerCheating(
            f"{count} values of {low} low bytes with {apart} apart take {expected} bytes; "
            f"got {len(body)}"
        )
    whole = np.zeros((count, 8), dtype=np.uint8)
    whole[:, 8 - low :] = np.frombuffer(body, np.uint8, low * count).reshape(count, low)
    # shifted down from the top: the sign comes along
    values = (whole.view("<i8").reshape(count) >> (8 * (8 - low))).astype(np.int64, copy=False)
    if not apart:
        return values
    listed = np.frombuffer(body, _APART, apart, low * count)
    index, value = listed["index"], listed["value"]
    half = 1 << (8 * low - 1)
    if not bool((index[1:] > index[:-1]).all()) or int(index[-1]) >= count:
        raise PeerCheating("values listed apart are out of order or out of range")
    if not bool(((value < -half) | (value >= half)).all()):
        raise PeerCheating("a value is listed apart that need not be")
    if not bool(((value > -VALUE_LIMIT) & (value < VALUE_LIMIT)).all()):
        raise PeerCheating("a value listed apart has magnitude 2^43 or more")
    if bool(((values[index] ^ value) & (2 * half - 1)).any()):
        raise PeerCheating("values listed apart differ from their low bytes")
    values[index] = value
    return values
