"""Merkle trees over any number of leaves, in one form for rows, weights, tables and fields.

The tree is that of RFC 6962: with n leaves, the left half holds the largest power of two below n.
Built from the left, it is a Merkle mountain range (a full tree for each bit of n) whose peaks are
bagged from the right, so that appending costs one node per leaf on average. Leaves and inner nodes
are hashed under different first bytes. A root seals the tree's top with a domain and the count of
leaves: a contract checks a leaf with one SHA-256 per level and one more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from unisono.types import digest

HASH_BYTES = 32
MAX_LEAVES = 1 << 32
EMPTY = bytes(HASH_BYTES)
"""The top of a tree without leaves."""

_PAIR = 2 * HASH_BYTES
_sha256 = hashlib.sha256


def leaf_hash(data: bytes | bytearray | memoryview) -> bytes:
    """SHA-256 of 0x00 and the leaf's bytes."""
    return _sha256(b"\x00" + bytes(data)).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 of 0x01 and both children."""
    return _sha256(b"\x01" + left + right).digest()


Pairs = Callable[[bytes | bytearray], bytes]
"""What makes the parents of an even number of nodes, both joined: `pair_hashes`, or faster."""


def pair_hashes(nodes: bytes | bytearray) -> bytes:
    """The parents of an even number of nodes; both joined."""
    return b"".join(
        [_sha256(b"\x01" + nodes[i : i + _PAIR]).digest() for i in range(0, len(nodes), _PAIR)]
    )


def seal(domain: str, count: int, top: bytes) -> bytes:
    """The root of a tree of `count` leaves: `digest(domain, count in 8 bytes, top)`."""
    return digest(domain, count.to_bytes(8, "little"), top)


def path_length(index: int, count: int) -> int:
    """How many hashes prove leaf `index` of `count`: at most one more than the bits of `count`.

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= index < count <= MAX_LEAVES:
        raise ValueError(f"there is no leaf {index} in a tree of {count}")
    place, last, length = index, count - 1, 0
    while last:
        # a node at the right edge whose index is even has no sibling at this level
        length += place & 1 or place != last
        place >>= 1
        last >>= 1
    return length


def top_of(leaf: bytes, index: int, count: int, path: bytes | memoryview) -> bytes:
    """The top that a leaf's hash and its path lead to; compare it with the known one.

    The path holds siblings from the leaf upwards, joined. Its length follows from index and count,
    so that no two positions accept the same path. Source: RFC 9162, section 2.1.3.2.

    Raises:
        ValueError: there is no such leaf, or the path has another length.
    """
    expected = path_length(index, count)
    if len(leaf) != HASH_BYTES or len(path) != expected * HASH_BYTES:
        raise ValueError(
            f"a path of {len(path)} bytes for leaf {index} of {count}: "
            f"expected {expected} hashes of {HASH_BYTES} bytes"
        )
    node, place, last, at = leaf, index, count - 1, 0
    while last:
        if place & 1 or place != last:
            sibling = bytes(path[at : at + HASH_BYTES])
            at += HASH_BYTES
            node = node_hash(sibling, node) if place & 1 else node_hash(node, sibling)
        place >>= 1
        last >>= 1
    return node


class Accumulator:
    """The top of a tree whose leaves come in order, in memory for one hash per level."""

    __slots__ = ("_pairs", "_pending", "count")

    def __init__(self, pairs: Pairs = pair_hashes) -> None:
        self.count = 0
        self._pairs = pairs
        self._pending: list[bytes] = []

    def extend(self, leaves: bytes) -> None:
        """Append leaf hashes, joined."""
        self.count += len(leaves) // HASH_BYTES
        nodes, level = leaves, 0
        while nodes:
            if level == len(self._pending):
                self._pending.append(b"")
            nodes = self._pending[level] + nodes
            even = len(nodes) - len(nodes) % _PAIR
            self._pending[level] = nodes[even:]
            nodes = self._pairs(nodes[:even])
            level += 1

    def top(self) -> bytes:
        """The top of the tree of all leaves so far."""
        return _bagged([peak for peak in reversed(self._pending) if peak])


class Tree:
    """All nodes of a tree that grows and shrinks at its end: 64 bytes per leaf.

    Every question may be asked of the tree of any first `count` leaves.
    """

    __slots__ = ("_levels", "_pairs")

    def __init__(self, leaves: bytes = b"", pairs: Pairs = pair_hashes) -> None:
        self._pairs = pairs
        self._levels: list[bytearray] = [bytearray()]
        self.extend(leaves)

    def __len__(self) -> int:
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash: one more node is hashed on average."""
        levels, level = self._levels, 0
        nodes = levels[0]
        nodes += leaf
        while not len(nodes) % _PAIR:
            parent = _sha256(b"\x01" + nodes[-_PAIR:]).digest()
            level += 1
            if level == len(levels):
                levels.append(bytearray())
            nodes = levels[level]
            nodes += parent

    def extend(self, leaves: bytes) -> None:
        """Add leaf hashes, joined."""
        self._levels[0] += leaves
        level = 0
        while len(self._levels[level]) >= _PAIR:
            if level + 1 == len(self._levels):
                self._levels.append(bytearray())
            nodes, parents = self._levels[level], self._levels[level + 1]
            even = len(nodes) - len(nodes) % _PAIR
            parents += self._pairs(nodes[2 * len(parents) : even])
            level += 1

    def truncate(self, count: int) -> None:
        """Keep the first `count` leaves."""
        for level, nodes in enumerate(self._levels):
            del nodes[HASH_BYTES * (count >> level) :]

    def leaf(self, index: int) -> bytes:
        """The hash of a leaf."""
        return self._node(0, index)

    def top(self, count: int | None = None) -> bytes:
        """The top of the tree of the first `count` leaves (default: all).

        Raises:
            ValueError: there are fewer leaves.
        """
        count = self._checked(count)
        return _bagged([self._node(h, (count >> h) - 1) for h in _heights(count)])

    def path(self, index: int, count: int | None = None) -> bytes:
        """What `top_of` takes: the siblings of leaf `index` in the tree of the first `count`.

        Raises:
            ValueError: there is no such leaf.
        """
        count = self._checked(count)
        path_length(index, count)
        heights = _heights(count)
        place = next(i for i, h in enumerate(heights) if index >> h < count >> h)
        siblings = [self._node(h, (index >> h) ^ 1) for h in range(heights[place])]
        peaks = [self._node(h, (count >> h) - 1) for h in heights]
        if place + 1 < len(peaks):
            siblings.append(_bagged(peaks[place + 1 :]))
        return b"".join([*siblings, *reversed(peaks[:place])])

    def _node(self, level: int, index: int) -> bytes:
        return bytes(self._levels[level][HASH_BYTES * index : HASH_BYTES * (index + 1)])

    def _checked(self, count: int | None) -> int:
        count = len(self) if count is None else count
        if not 0 <= count <= len(self):
            raise ValueError(f"the tree of {count} leaves was asked for, of {len(self)}")
        return count


def _heights(count: int) -> list[int]:
    """Heights of a range's mountains, from the left."""
    return [h for h in range(count.bit_length() - 1, -1, -1) if count >> h & 1]


def _bagged(peaks: list[bytes]) -> bytes:
    """One hash over peaks, given from the left."""
    if not peaks:
        return EMPTY
    node = peaks[-1]
    for peak in reversed(peaks[:-1]):
        node = node_hash(peak, node)
    return node
