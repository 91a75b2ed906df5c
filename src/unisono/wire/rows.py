"""The canonical bytes of activation rows: how they are sent, kept and shown.

A row is `hidden` integers. It is written as little-endian int32 if every value fits, as
little-endian int64 otherwise; so each row has exactly one encoding.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from unisono.errors import PeerCheating

NARROW = 4
"""Bytes per value of a row whose values all fit in int32."""
WIDE = 8
"""Bytes per value of any other row."""
VALUE_LIMIT = 1 << 43
"""Residual rows saturate below this magnitude: no honest row reaches it."""

_INT32 = np.iinfo(np.int32)


def encode_rows(rows: NDArray[np.int64]) -> tuple[bytes, list[memoryview]]:
    """Encode rows of shape [n, hidden].

    Returns:
        The width of each row (one byte each: 4 or 8), and the bytes of each row, which joined
        are the body of a message. What claims have of rows is `models.rows.row_hashes`.

    Raises:
        ValueError: not two dimensions, or a value of magnitude 2^43 or more.
    """
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"rows have shape [n, hidden], not {list(rows.shape)}")
    if rows.shape[0] == 0:
        return b"", []
    low, high = rows.min(axis=1), rows.max(axis=1)
    if int(low.min()) <= -VALUE_LIMIT or int(high.max()) >= VALUE_LIMIT:
        raise ValueError("a row holds a value of magnitude 2^43 or more: it was not saturated")
    wide = (low < _INT32.min) | (high > _INT32.max)
    widths = np.where(wide, WIDE, NARROW).astype(np.uint8).tobytes()
    encoded: list[memoryview] = []
    start = 0
    for width, run in groupby(widths):
        stop = start + sum(1 for _ in run)
        block = np.ascontiguousarray(rows[start:stop], dtype=f"<i{width}")
        view = block.data.cast("B")
        size = rows.shape[1] * width
        encoded += [view[at : at + size] for at in range(0, len(view), size)]
        start = stop
    return widths, encoded


def decode_rows(widths: bytes, body: bytes | memoryview, hidden: int) -> NDArray[np.int64]:
    """Decode the rows of a `Rows` message into a new array of shape [len(widths), hidden].

    Raises:
        PeerCheating: the sizes do not match, a row is wider than it needs to be, or a value
            has magnitude 2^43 or more.
    """
    if not set(widths) <= {NARROW, WIDE}:
        raise PeerCheating(f"a row's width is {NARROW} or {WIDE} bytes; got {sorted(set(widths))}")
    expected = hidden * sum(widths)
    if len(body) != expected:
        raise PeerCheating(
            f"{len(widths)} rows of {hidden} values take {expected} bytes; got {len(body)}"
        )
    if widths.count(NARROW) == len(widths):
        return np.frombuffer(body, dtype="<i4").reshape(len(widths), hidden).astype(np.int64)
    rows = np.empty((len(widths), hidden), dtype=np.int64)
    start = offset = 0
    for width, run in groupby(widths):
        count = sum(1 for _ in run)
        values = np.frombuffer(body, f"<i{width}", count * hidden, offset).reshape(count, hidden)
        if width == WIDE:
            _check_wide(values, start)
        rows[start : start + count] = values
        start += count
        offset += count * hidden * width
    return rows


def _check_wide(values: NDArray[np.int64], first: int) -> None:
    low, high = values.min(axis=1), values.max(axis=1)
    if int(low.min()) <= -VALUE_LIMIT or int(high.max()) >= VALUE_LIMIT:
        raise PeerCheating("a row holds a value of magnitude 2^43 or more")
    narrow = (low >= _INT32.min) & (high <= _INT32.max)
    if narrow.any():
        raise PeerCheating(
            f"row {first + int(narrow.argmax())} is {WIDE} bytes wide but fits in {NARROW}"
        )
