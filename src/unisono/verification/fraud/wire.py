"""What opens a dispute between two processes."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from unisono.errors import ModelError, PeerCheating
from unisono.models.rows import row_hashes
from unisono.types import canonical
from unisono.verification.fraud.moves import Challenge, Subject
from unisono.wire.bounds import MAX_POSITIONS, TokenId
from unisono.wire.claims import rows_root
from unisono.wire.rows import decode_rows, encode_rows

MAX_BYTES = 64 << 20
"""The largest body of a frame."""

Rows = NDArray[np.int64]


class Dispute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A game about a claim, and what came into the hop where the challenger knows it.

    Tokens or rows are taken only if they are what the claim signs as rows in. A hop that does not
    begin the model may have kept its rows.
    """

    subject: Subject
    challenge: Challenge
    answer: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_POSITIONS)] = ()
    """For a hop that begins the model and does not end it: the subject has no tokens then."""
    widths: bytes = b""
    """Of the rows, as in `wire.rows`; empty: none are given."""
    rows: bytes = b""

    @classmethod
    def of(
        cls,
        subject: Subject,
        challenge: Challenge,
        answer: tuple[int, ...],
        rows: Rows | None,
    ) -> Dispute:
        """A dispute that brings what the hop needs, rows only if they fit."""
        given = answer if subject.claim.layers.start == 0 and not subject.tokens else ()
        bare = cls(subject, challenge, given)
        if rows is None:
            return bare
        widths, encoded = encode_rows(rows)
        full = cls(subject, challenge, given, widths, b"".join(encoded))
        return full if len(canonical(full)) <= MAX_BYTES else bare

    def rows_in(self) -> Rows | None:
        """The rows that came in, int64 [positions, hidden]; None if none are given.

        Raises:
            PeerCheating: they are malformed, or not those that the claim signs.
        """
        if not self.widths:
            return None
        return checked_rows(self.subject, self.widths, self.rows)


def checked_rows(subject: Subject, widths: bytes, body: bytes) -> Rows:
    """Encoded rows as integers.

    Raises:
        PeerCheating: they are malformed, or not the rows in of the subject's claim.
    """
    if len(widths) > MAX_POSITIONS:
        raise PeerCheating(f"{len(widths)} rows")
    rows = decode_rows(widths, body, subject.manifest.config.hidden_size)
    if rows_root(row_hashes(rows)) != subject.claim.rows_in:
        raise PeerCheating("these rows are not those that came in")
    return rows


def decode_dispute(data: bytes) -> Dispute:
    """Read a dispute strictly.

    Raises:
        PeerCheating: it is too large, or anything but the canonical form of a dispute.
    """
    if len(data) > MAX_BYTES:
        raise PeerCheating(f"a dispute of {len(data)} bytes; at most {MAX_BYTES} are allowed")
    try:
        dispute = msgspec.msgpack.decode(data, type=Dispute)
        if canonical(dispute) == data:
            return dispute
    except (msgspec.DecodeError, UnicodeDecodeError, ModelError, OverflowError) as error:
        raise PeerCheating(f"not a dispute: {error}") from error
    raise PeerCheating("a dispute that is not in canonical form")
