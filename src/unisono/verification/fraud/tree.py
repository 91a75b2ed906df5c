"""Binary Merkle trees of fixed shape over blocks of integers.

A leaf is SHA-256(0x00, payload), a node SHA-256(0x01, left, right). A tree over n leaves has
depth ceil(log2 n); leaves that are missing on the right are 32 zero bytes. The number of leaves
is never part of a proof: both parties know the shape from the program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 256
"""Most bytes of a leaf."""
HASH = 32
EMPTY = bytes(HASH)

Format = str
"""How a tensor's integers are written: `i2`, `i4` or `i8`, two's complement, big-endian."""


def leaf_hash(payload: bytes) -> bytes:
    """The hash of a leaf with these bytes."""
    return hashlib.sha256(b"\0" + payload).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node with these children."""
    return hashlib.sha256(b"\1" + left + right).digest()


def depth_of(count: int) -> int:
    """Levels between the root and the leaves of a tree over `count` >= 1 leaves."""
    return (count - 1).bit_length()


class Tree:
    """All nodes of one tree, leaves first. Hash of a node: `level[d][i]`, d from the root."""

    __slots__ = ("_levels", "depth")

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.depth = depth_of(len(leaves))
        levels, empty = [list(leaves)], EMPTY
        for _ in range(self.depth):
            below = levels[-1]
            if len(below) % 2:
                below.append(empty)
            levels.append([node_hash(below[i], below[i + 1]) for i in range(0, len(below), 2)])
            empty = node_hash(empty, empty)
        self._levels = levels[::-1]

    @property
    def root(self) -> bytes:
        return self._levels[0][0]

    def node(self, depth: int, index: int) -> bytes:
        """The hash at a depth (0 is the root), of missing leaves too."""
        level = self._levels[depth]
        if index < len(level):
            return level[index]
        empty = EMPTY
        for _ in range(self.depth - depth):
            empty = node_hash(empty, empty)
        return empty


def per_block(format: Format) -> int:
    """Elements of a full leaf."""
    return BLOCK // int(format[1])


def block_count(size: int, format: Format) -> int:
    """Leaves of a tensor of `size` elements."""
    return -(-size // per_block(format))


def encode_block(values: Sequence[int] | NDArray[np.int64], format: Format) -> bytes:
    """The bytes of a leaf.

    Raises:
        OverflowError: a value does not fit the format.
    """
    array = np.asarray(values, dtype=np.int64)
    limit = 1 << (8 * int(format[1]) - 1)
    if array.size and (int(array.min()) < -limit or int(array.max()) >= limit):
        raise OverflowError(f"a value does not fit {8 * int(format[1])} bits")
    return array.astype(f">{format}").tobytes()


def decode_block(payload: bytes, format: Format) -> list[int]:
    """The integers of a leaf, whose length was checked."""
    return [int(x) for x in np.frombuffer(payload, f">{format}").tolist()]


def blocks(values: NDArray[np.int64], format: Format) -> list[bytes]:
    """The payloads of all leaves of a tensor."""
    data = encode_block(values, format)
    return [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)]


def tensor_tree(values: NDArray[np.int64], format: Format) -> Tree:
    """The tree over a tensor's leaves."""
    return Tree([leaf_hash(b) for b in blocks(values, format)])
