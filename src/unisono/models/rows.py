"""Residual rows cut into blocks, the leaves of a row's hash tree.

A row is `hidden` integers of 64 bits. A block is `BLOCK` bytes of them, little-endian: 32 integers;
the last of a row may be shorter. The row's hash is the root over its blocks, a tree of fixed shape
as those of a dispute: leaf SHA-256(0x00, data), node SHA-256(0x01, left, right), depth
ceil(log2 blocks), 32 zero bytes for each leaf that is missing on the right. So the hash that a hop
signs of a row is the node under which a dispute shows the row's elements, and whether two rows are
the same is whether two hashes are, however wide the rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unisono.native import hashing

BLOCK = 256
"""Bytes of a full block."""
INTEGER = 8
"""Bytes of an integer of a row."""
_HASH = 32


def row_hashes(rows: NDArray[np.int64]) -> list[bytes]:
    """The hash of each row, 32 bytes.

    Args:
        rows: [n, hidden], hidden > 0.
    """
    if not len(rows):
        return []
    data = np.ascontiguousarray(rows, dtype="<i8").view(np.uint8)
    roots = hashing.tree_roots(data, BLOCK)
    return [roots[i : i + _HASH] for i in range(0, len(roots), _HASH)]


def row_bytes(row: NDArray[np.int64]) -> bytes:
    """What the blocks of one row [hidden] hold, joined."""
    return row.astype("<i8").tobytes()


def hash_of(data: bytes) -> bytes:
    """The hash of a row from its bytes, which may be any but none: those of a row, or of what
    somebody signed in place of one."""
    return hashing.tree_roots(np.frombuffer(data, np.uint8)[None, :], BLOCK)
