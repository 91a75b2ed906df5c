"""The Merkle mountain range over the rows of an answer: what the roots in a claim stand for.

Leaf p is the hash of the row at position p (`models.rows`). The tree is that of
`unisono.merkle`, sealed under the domain `rows/3` with the number of positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from unisono.errors import PeerCheating
from unisono.merkle import HASH_BYTES, Accumulator, Tree, leaf_hash, path_length, seal, top_of
from unisono.types import is_hex
from unisono.wire.bounds import MAX_POSITIONS

DOMAIN = "rows/3"
_HEADER_BYTES = 16
MAX_PROOF_BYTES = _HEADER_BYTES + HASH_BYTES * (1 + MAX_POSITIONS.bit_length())


class RowProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That a row hash stands at `position` under the root of the first `count` positions."""

    position: int
    count: int
    path: bytes
    """Sibling hashes from the leaf upwards, joined."""

    def holds(self, root: str, row_hash: bytes) -> bool:
        """Whether `root` (64 hex digits) commits to this row hash at this position.

        Malformed roots, hashes and paths are just False.
        """
        if len(row_hash) != HASH_BYTES or not is_hex(root, HASH_BYTES):
            return False
        if not 0 <= self.position < self.count <= MAX_POSITIONS:
            return False
        try:
            top = top_of(leaf_hash(row_hash), self.position, self.count, self.path)
        except ValueError:
            return False
        return seal(DOMAIN, self.count, top).hex() == root

    def to_bytes(self) -> bytes:
        """Position and count in 8 bytes each, then the path."""
        numbers = self.position.to_bytes(8, "little") + self.count.to_bytes(8, "little")
        return numbers + self.path

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> RowProof:
        """Read a proof from a peer.

        Raises:
            PeerCheating: it is no proof for a position below `MAX_POSITIONS`, or has another
                length than its numbers ask for.
        """
        position = int.from_bytes(data[:8], "little")
        count = int.from_bytes(data[8:_HEADER_BYTES], "little")
        if not (len(data) >= _HEADER_BYTES and position < count <= MAX_POSITIONS):
            raise PeerCheating(f"a proof for position {position} of {count} in {len(data)} bytes")
        expected = _HEADER_BYTES + HASH_BYTES * path_length(position, count)
        if len(data) != expected:
            raise PeerCheating(
                f"a proof for position {position} of {count} has {expected} bytes; got {len(data)}"
            )
        return cls(position, count, bytes(data[_HEADER_BYTES:]))


class MountainRange:
    """The rows of a session so far: it grows, shrinks with rejected guesses, and answers for any
    earlier length."""

    __slots__ = ("_tree",)

    def __init__(self, hashes: Sequence[bytes] = ()) -> None:
        self._tree = Tree(_leaves(hashes))

    def __len__(self) -> int:
        return len(self._tree)

    def append(self, row_hash: bytes) -> None:
        """Add the row of the next position, by its hash."""
        self._tree.append(leaf_hash(row_hash))

    def extend(self, hashes: Sequence[bytes]) -> None:
        """Add rows of the next positions."""
        self._tree.extend(_leaves(hashes))

    def truncate(self, positions: int) -> None:
        """Rows from `positions` on are void."""
        self._tree.truncate(positions)

    def root(self, positions: int | None = None) -> str:
        """64 hex digits that commit to the first `positions` rows (default: all).

        Raises:
            ValueError: there are fewer rows.
        """
        count = len(self) if positions is None else positions
        return seal(DOMAIN, count, self._tree.top(count)).hex()

    def prove(self, position: int, positions: int | None = None) -> RowProof:
        """Open one position under the root of the first `positions` rows.

        Raises:
            ValueError: there is no such position.
        """
        count = len(self) if positions is None else positions
        return RowProof(position, count, self._tree.path(position, count))


def rows_root(hashes: Sequence[bytes]) -> str:
    """The root of the row hashes of positions 0, 1, …: `MountainRange(hashes).root()`, without
    keeping the nodes."""
    tree = Accumulator()
    tree.extend(_leaves(hashes))
    return seal(DOMAIN, tree.count, tree.top()).hex()


def _leaves(hashes: Sequence[bytes]) -> bytes:
    return b"".join([leaf_hash(h) for h in hashes])
