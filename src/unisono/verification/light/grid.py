"""Openings of consecutive leaves of a Merkle tree (`unisono.merkle`'s, of a known size).

A cell's attention reads keys and values of many positions in a row: one path for all of them costs
at most two hashes per level. Leaves are given as hashes (`merkle.leaf_hash`), joined.
"""

from __future__ import annotations

from unisono.merkle import HASH_BYTES, Pairs, pair_hashes, seal


class Grid:
    """A tree over at least one leaf that can be opened."""

    def __init__(self, domain: str, hashes: bytes, pairs: Pairs = pair_hashes) -> None:
        self._levels = [hashes]
        while len(self._levels[-1]) > HASH_BYTES:
            self._levels.append(_parents(self._levels[-1], pairs))
        self.count = len(hashes) // HASH_BYTES
        self.root = seal(domain, self.count, self._levels[-1])

    def path(self, start: int, stop: int) -> bytes:
        """The neighbours that lead from leaves `start:stop` to the root, from the leaves up.

        Raises:
            ValueError: there are no such leaves.
        """
        if not 0 <= start < stop <= self.count:
            raise ValueError(f"leaves {start}:{stop} were asked for, of {self.count}")
        found: list[bytes] = []
        stop -= 1
        for level in self._levels[:-1]:
            if start % 2:
                found.append(_node(level, start - 1))
            if stop % 2 == 0:
                found.append(_node(level, stop + 1))  # nothing at the right edge
            start, stop = start // 2, stop // 2
        return b"".join(found)


def opens(domain: str, root: bytes, count: int, start: int, hashes: bytes, path: bytes) -> bool:
    """Whether `hashes` are the leaves from `start` of the tree of `count` leaves with this root.

    Anything may come in; what is malformed does not open.
    """
    if not hashes or len(hashes) % HASH_BYTES or len(path) % HASH_BYTES:
        return False
    stop, last, at = start + len(hashes) // HASH_BYTES - 1, count - 1, 0
    if not 0 <= start <= stop <= last:
        return False
    nodes = hashes
    while last:
        if start % 2:
            nodes = path[at : at + HASH_BYTES] + nodes
            at += HASH_BYTES
        if stop % 2 == 0 and stop != last:
            nodes += path[at : at + HASH_BYTES]
            at += HASH_BYTES
        if at > len(path):
            return False
        nodes = _parents(nodes, pair_hashes)
        start, stop, last = start // 2, stop // 2, last // 2
    return at == len(path) and seal(domain, count, nodes) == root


def _parents(nodes: bytes, pairs: Pairs) -> bytes:
    """The next level; a last node without a sibling goes up as it is."""
    even = len(nodes) - len(nodes) % (2 * HASH_BYTES)
    return pairs(nodes[:even]) + nodes[even:]


def _node(level: bytes, index: int) -> bytes:
    return level[HASH_BYTES * index : HASH_BYTES * (index + 1)]
