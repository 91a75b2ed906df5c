"""Merkle trees of fixed shape over blocks of integers: what is revealed level by level.

Leaves and nodes are hashed as in `unisono.merkle`. A tree over n leaves has depth ceil(log2 n);
leaves that are missing on the right are 32 zero bytes, so that the nodes some levels below any
node are always a power of two. The number of leaves is never part of a proof: both parties know
the shape from the program.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unisono.merkle import leaf_hash, node_hash

BLOCK = 256
"""Most bytes of a leaf."""
HASH = 32
EMPTY = bytes(HASH)

Format = str
"""How a tensor's integers are written: `i2`, `i4` or `i8`, two's complement, little-endian."""


def depth_of(count: int) -> int:
    """Levels between the root and the leaves of a tree over `count` >= 1 leaves."""
    return (count - 1).bit_length()


class Tree:
    """All nodes of one tree; `empty` is what stands for a leaf that is missing on the right."""

    __slots__ = ("_empty", "_levels", "depth")

    def __init__(self, leaves: Sequence[bytes], empty: bytes = EMPTY) -> None:
        self.depth = depth_of(len(leaves))
        levels, empties = [list(leaves)], [empty]
        for _ in range(self.depth):
            below, gap = levels[-1], empties[-1]
            if len(below) % 2:
                below.append(gap)
            levels.append([node_hash(below[i], below[i + 1]) for i in range(0, len(below), 2)])
            empties.append(node_hash(gap, gap))
        self._levels, self._empty = levels[::-1], empties[::-1]

    @property
    def root(self) -> bytes:
        return self._levels[0][0]

    def node(self, depth: int, index: int) -> bytes:
        """The hash at a depth (0 is the root), of missing leaves too."""
        level = self._levels[depth]
        return level[index] if index < len(level) else self._empty[depth]


def empty_root(depth: int) -> bytes:
    """The root of a tree of some depth that has no leaf at all."""
    root = EMPTY
    for _ in range(depth):
        root = node_hash(root, root)
    return root


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
    return array.astype(f"<{format}").tobytes()


def decode_block(payload: bytes, format: Format) -> list[int]:
    """The integers of a leaf, whose length was checked."""
    return [int(x) for x in np.frombuffer(payload, f"<{format}").tolist()]


def blocks(values: NDArray[np.int64], format: Format) -> list[bytes]:
    """The payloads of all leaves of a tensor."""
    data = encode_block(values, format)
    return [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)]


def tensor_tree(values: NDArray[np.int64], format: Format) -> Tree:
    """The tree over a tensor's leaves."""
    return Tree([leaf_hash(b) for b in blocks(values, format)])
