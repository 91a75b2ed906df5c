"""Weights cut into tiles, the leaves of a tensor's hash tree.

A tile of a matrix is `TILE` consecutive weights of one output row (the last of a row may be
shorter) with the multipliers of their groups: what a referee needs to recompute one chunk of a
product. A tile of a norm or bias is `VECTOR_TILE` consecutive values. A matrix of c columns has
ceil(c / 640) tiles per row; the tile at column 640 t of row i is leaf i · ceil(c / 640) + t.

    leaf data, matrix: int8 values, then uint16 multipliers, little-endian (at most 680 bytes)
    leaf data, vector: int32 values, little-endian (at most 256 bytes)
    root             = seal("tensor/1", leaves, top of the tree)        (`unisono.merkle`)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisono.merkle import Accumulator, seal
from unisono.native import hashing
from unisono.numerics.tensors import GROUP

TILE = 640
"""Weights of a matrix's tile: 20 groups."""
VECTOR_TILE = 64
"""Values of a vector's tile."""
DOMAIN = "tensor/1"
_BATCH = 1 << 20
"""Weights that are laid out for hashing at a time."""

_Bytes = NDArray[np.uint8]


def tiles_per_row(shape: Sequence[int]) -> int:
    """Tiles of one row of a tensor; a vector is one row."""
    return -(-shape[-1] // (TILE if len(shape) == 2 else VECTOR_TILE))


def tile_count(shape: Sequence[int]) -> int:
    """Leaves of a tensor's tree."""
    return math.prod(shape[:-1]) * tiles_per_row(shape)


def matrix_leaves(values: NDArray[np.int8], multipliers: NDArray[Any]) -> bytes:
    """Leaf hashes, joined, of consecutive rows of a matrix.

    Args:
        values: int8 [rows, columns], columns a multiple of 32.
        multipliers: 16-bit [rows, columns / 32].
    """
    rows, columns = values.shape
    count = tiles_per_row(values.shape)
    step = max(1, _BATCH // columns)
    parts: list[bytes] = []
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        leaves = np.empty((stop - start, count, 32), np.uint8)
        for tile in range(count):
            messages = _laid_out(values, multipliers, slice(start, stop), tile)
            leaves[:, tile] = hashing.hash_rows(0, messages)
        parts.append(leaves.tobytes())
    return b"".join(parts)


def _laid_out(
    values: NDArray[np.int8], multipliers: NDArray[Any], rows: slice, tile: int
) -> _Bytes:
    """One tile per row, values before multipliers: uint8 [rows, bytes]."""
    part = np.ascontiguousarray(values[rows, tile * TILE : (tile + 1) * TILE])
    groups = slice(tile * TILE // GROUP, (tile + 1) * TILE // GROUP)
    scales = np.ascontiguousarray(multipliers[rows, groups]).view(np.uint8)
    return np.concatenate([part.view(np.uint8), scales], axis=1)


def vector_leaves(values: NDArray[np.int32]) -> bytes:
    """Leaf hashes, joined, of a vector's int32 values."""
    return b"".join(
        hashlib.sha256(b"\0" + values[i : i + VECTOR_TILE].tobytes()).digest()
        for i in range(0, len(values), VECTOR_TILE)
    )


def tensor_leaves(parts: Sequence[NDArray[Any]]) -> bytes:
    """Leaf hashes, joined, of a stored tensor: values and multipliers, or the int32 values."""
    if len(parts) == 2:
        return matrix_leaves(parts[0], parts[1])
    return vector_leaves(parts[0])


def leaf_bytes(parts: Sequence[NDArray[Any]], row: int, tile: int) -> bytes:
    """The data of one leaf of a stored tensor; a vector is row 0."""
    if len(parts) == 2:
        return _laid_out(parts[0], parts[1], slice(row, row + 1), tile).tobytes()
    return parts[0][tile * VECTOR_TILE : (tile + 1) * VECTOR_TILE].tobytes()


def tensor_root(parts: Sequence[NDArray[Any]]) -> str:
    """64 hex digits that commit to every tile of a tensor."""
    return root_of_leaves([tensor_leaves(parts)])


def root_of_leaves(leaves: Iterable[bytes]) -> str:
    """The same from leaf hashes that come piece by piece."""
    tree = Accumulator(pairs)
    for piece in leaves:
        tree.extend(piece)
    return seal(DOMAIN, tree.count, tree.top()).hex()


def pairs(nodes: bytes | bytearray) -> bytes:
    """`merkle.pair_hashes` in one call."""
    return hashing.hash_rows(1, np.frombuffer(nodes, np.uint8).reshape(-1, 64)).tobytes()
