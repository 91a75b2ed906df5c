"""A Merkle tree over a fixed number of leaves, with openings of consecutive ones.

Leaves are 32-byte hashes; the count is known to both sides and padded to a power of two. A parent
is `digest("light-node/1", left, right)`, which no leaf of an audit is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
_PREFIX = b"unisono/light-node/1\0"
_PADDING = hashlib.sha256(b"unisono/light-padding/1\0").digest()


def parent(left: bytes, right: bytes) -> bytes:
    """The hash over two nodes."""
    return hashlib.sha256(_PREFIX + left + right).digest()


class Tree:
    """A tree that can be opened."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        """`leaves`: at least one hash of 32 bytes."""
        self.count = len(leaves)
        size = 1 << depth(self.count)
        self._levels = [[*leaves, *[_PADDING] * (size - self.count)]]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            self._levels.append([parent(*below[i : i + 2]) for i in range(0, len(below), 2)])

    @property
    def root(self) -> bytes:
        return self._levels[-1][0]

    def path(self, start: int, stop: int) -> bytes:
        """The neighbours that lead from leaves `start:stop` to the root, from the leaves up."""
        if not 0 <= start < stop <= self.count:
            raise ValueError(f"leaves {start}:{stop} of a tree of {self.count}")
        found: list[bytes] = []
        stop -= 1
        for level in self._levels[:-1]:
            if start % 2:
                found.append(level[start - 1])
            if stop % 2 == 0:
                found.append(level[stop + 1])
            start, stop = start // 2, stop // 2
        return b"".join(found)


def depth(count: int) -> int:
    """Levels between the leaves and the root."""
    return (count - 1).bit_length()


def opens(root: bytes, count: int, start: int, leaves: Sequence[bytes], path: bytes) -> bool:
    """Whether `leaves` are those from `start` of the tree of `count` leaves with this root.

    Anything may come in; what is malformed does not open.
    """
    stop = start + len(leaves) - 1
    if not leaves or not 0 <= start <= stop < count or len(path) % HASH_BYTES:
        return False
    nodes, at = list(leaves), 0

    def step() -> bytes:
        nonlocal at
        at += HASH_BYTES
        return path[at - HASH_BYTES : at]

    for _ in range(depth(count)):
        if start % 2:
            nodes.insert(0, step())
        if stop % 2 == 0:
            nodes.append(step())
        nodes = [parent(*nodes[i : i + 2]) for i in range(0, len(nodes), 2)]
        start, stop = start // 2, stop // 2
    return at == len(path) and nodes == [root]
