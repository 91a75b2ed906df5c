"""Rows that came in, kept for a while: a hop that does not begin the model is asked about them.

Whoever begins the model is given the tokens again. Any other hop can show how its rows out follow
only as long as it knows what came in.
"""

from __future__ import annotations

from collections.abc import Sequence

from unisono.clock import Clock
from unisono.wire.claims import EPOCH_SECONDS, RETENTION_EPOCHS, HopClaim, epoch_at

KEPT_BYTES = 256 << 20
"""Of all sessions together, those that still run included."""
KEPT_CLAIMS = 4096

Encoded = Sequence[memoryview]
"""Rows in their canonical encoding (`wire.rows`), one view each."""


class KeptRows:
    """Rows in of signed claims, the oldest going first when there is no room."""

    def __init__(
        self,
        clock: Clock,
        limit: int = KEPT_BYTES,
        most_claims: int = KEPT_CLAIMS,
        epoch_seconds: int = EPOCH_SECONDS,
    ) -> None:
        """`limit`: bytes of all rows, `most_claims`: claims that rows are kept of."""
        self._epoch_seconds = epoch_seconds
        self._clock = clock
        self._limit, self._most_claims = limit, most_claims
        self._claims: dict[bytes, tuple[int, Encoded]] = {}
        """Digest of a claim → its epoch and its rows, the oldest first."""
        self.bytes = 0
        """Of all rows now."""

    def recorder(self) -> Recorder:
        """For the rows of one session."""
        return Recorder(self)

    def keep(self, claim: HopClaim, rows: Encoded) -> None:
        """Keep the rows in of a claim that was signed now; counted once its session has ended."""
        self._forget()
        size = _size(rows)
        if self.make_room(size):
            self._claims[claim.signed_bytes()] = claim.epoch, rows
            self.bytes += size

    def rows(self, claim: HopClaim) -> Encoded | None:
        """The rows in of a claim; None if they are not here, or not any more."""
        self._forget()
        found = self._claims.get(claim.signed_bytes())
        return None if found is None else found[1]

    def make_room(self, size: int) -> bool:
        """Drop rows until `size` bytes more fit; whether they do."""
        while self._claims and (
            self.bytes + size > self._limit or len(self._claims) >= self._most_claims
        ):
            self._drop(next(iter(self._claims)))
        return self.bytes + size <= self._limit

    def _forget(self) -> None:
        due = epoch_at(self._clock.now(), self._epoch_seconds) - RETENTION_EPOCHS
        for name, (epoch, _) in list(self._claims.items()):
            if epoch >= due:
                break
            self._drop(name)

    def _drop(self, name: bytes) -> None:
        _, rows = self._claims.pop(name)
        self.bytes -= _size(rows)


class Recorder:
    """The rows in of a session that runs. It gives up when there is no room for them."""

    def __init__(self, kept: KeptRows) -> None:
        self._kept = kept
        self._rows: list[memoryview] = []
        self._size = 0
        self._whole = True

    def put(self, position: int, rows: Encoded) -> None:
        """Rows from `position` on; they replace what was there and behind it."""
        self.truncate(position)
        size = _size(rows)
        if not self._whole or position != len(self._rows) or not self._kept.make_room(size):
            self._whole = False
            self.close()
            return
        self._rows += rows
        self._size += size
        self._kept.bytes += size

    def rows(self, start: int, stop: int) -> Encoded | None:
        """Rows of these positions; None if they are not here."""
        return self._rows[start:stop] if self._whole and stop <= len(self._rows) else None

    def truncate(self, position: int) -> None:
        """Rows from `position` on are void."""
        gone = _size(self._rows[position:])
        del self._rows[position:]
        self._size -= gone
        self._kept.bytes -= gone

    def signed(self, claim: HopClaim) -> None:
        """The claim covers the first rows: keep those of them that are here."""
        rows = self._rows[: claim.positions]
        self.close()
        if self._whole and len(rows) == claim.positions:
            self._kept.keep(claim, rows)
        self._whole = False

    def close(self) -> None:
        """The session has ended; what no claim covers goes."""
        self.truncate(0)


def _size(rows: Encoded) -> int:
    return sum(len(row) for row in rows)
