"""What a hop sends on, kept as a journal: a neighbour that is lost can be given it again."""

from __future__ import annotations

from collections.abc import Sequence

from unisono.errors import PeerRefused
from unisono.types import SampledToken, SessionId
from unisono.wire.bounds import MAX_DRAFT_ROWS, MAX_ROWS
from unisono.wire.link import Link
from unisono.wire.messages import Pages, Rows, Tokens
from unisono.wire.packing import pack
from unisono.wire.rows import decode_rows

CHUNK_BYTES = 1 << 20
"""Rows of a prompt in one message: the next hop starts on them while more are on the way."""
JOURNAL_BYTES = 256 << 20
"""Rows that one session's journal keeps; a session that outgrows it is replayed from its start."""


class RowsOutlet:
    """Rows for the next hop, by position; what is replaced is sent again."""

    def __init__(self, session: SessionId, prompt: int) -> None:
        self.link: Link | None = None
        self._session = session
        self._prompt = prompt
        self._rows: list[bytes] = []
        self._widths = bytearray()
        self._tokens: list[int] = []
        self._first = 0
        """Position of the oldest row kept."""
        self._bytes = 0
        self._cursor = 0
        self._floor = 0
        """What the next hop has for good of rows that this one only computes to catch up."""
        self._names: bytes | None = None
        """Of pages that the next hop is asked about, until the first row is known to be due."""
        self.turn = 0
        """Of the question that was asked last."""

    @property
    def position(self) -> int:
        """Where the next row goes."""
        return self._first + len(self._rows)

    def add(
        self, position: int, rows: Sequence[bytes], widths: bytes, tokens: Sequence[int]
    ) -> None:
        """Rows of consecutive positions, each with its token (any number for rows of the prompt).

        They replace what was there from `position` on.
        """
        self._names = None
        self._truncate(position)
        self._rows += rows
        self._widths += widths
        self._tokens += tokens
        self._bytes += sum(len(row) for row in rows)
        self.pump()
        self._forget()

    @property
    def asking(self) -> bool:
        """Whether the next hop's answer is still awaited."""
        return self._names is not None

    def ask(self, names: bytes) -> None:
        """Ask the next hop which of the named pages it has. No row was added yet."""
        self._names = names
        self._ask()

    def _ask(self) -> None:
        self.turn += 1
        if self.link is not None and self._names is not None:
            self.link.post(Pages(self._session, self.turn), self._names)

    def begin(self, position: int) -> None:
        """The next hop has what lies before `position`, and no row was added yet."""
        self._names = None
        self._first = position
        self._cursor = max(self._cursor, position)

    def _forget(self) -> None:
        """Give up the oldest rows that were sent, if the journal is full."""
        count = 0
        while self._bytes > JOURNAL_BYTES and self._first + count < self._cursor:
            self._bytes -= len(self._rows[count])
            count += 1
        del self._rows[:count], self._widths[:count], self._tokens[:count]
        self._first += count

    def _truncate(self, position: int) -> None:
        if position >= self.position:
            return
        keep = max(0, position - self._first)
        self._first = min(self._first, position)
        self._bytes -= sum(len(row) for row in self._rows[keep:])
        del self._rows[keep:], self._widths[keep:], self._tokens[keep:]
        self._cursor = max(self._floor, min(self._cursor, position))

    def rewire(self, link: Link | None, position: int) -> None:
        """Send to `link` from now on, beginning again at `position`.

        Raises:
            PeerRefused: the journal does not reach back that far.
        """
        if position < self._first:
            raise PeerRefused(
                f"the journal begins at position {self._first}, not at {position}", "journal_gone"
            )
        self.link, self._cursor = link, position
        self._floor = position if position > self.position else 0
        self._ask()
        self.pump()

    def pump(self) -> None:
        """Post what has not been sent yet."""
        while self.link is not None and self._cursor < self.position:
            if not self.link.has_room:
                self.link.when_room(self.pump)
                return
            start = self._cursor - self._first
            prompt = self._cursor < self._prompt
            limit = start + (MAX_ROWS if prompt else MAX_DRAFT_ROWS)
            if prompt:
                limit = min(limit, self._prompt - self._first)
            stop, size = start, 0
            while stop < min(limit, len(self._rows)) and size < CHUNK_BYTES:
                size += len(self._rows[stop])
                stop += 1
            tokens = () if prompt else tuple(self._tokens[start:stop])
            widths, rows = bytes(self._widths[start:stop]), self._rows[start:stop]
            values = decode_rows(widths, b"".join(rows), len(rows[0]) // widths[0])
            low, apart, body = pack(values)
            message = Rows(self._session, self._cursor, widths, tokens, low, apart)
            self._cursor += stop - start
            self.link.post(message, body)


class TokensOutlet:
    """Tokens for the first hop and for the gateway."""

    def __init__(self, session: SessionId, gateway: Link, known: Sequence[int], position: int):
        """`known`: prompt and answer so far, of which the first hop lacks those from `position`."""
        self.link: Link | None = None
        self._session = session
        self._gateway = gateway
        self._first = position
        self._tokens = [SampledToken(i, known[i]) for i in range(position, len(known))]
        self._cursor = position

    def add(self, tokens: Sequence[SampledToken]) -> None:
        """Tokens that follow."""
        self._tokens += tokens
        for chunk in _chunks(tokens):
            self._gateway.post(Tokens(self._session, chunk))
        self.pump()

    def rewire(self, link: Link | None, position: int) -> None:
        """Send to `link` from now on, beginning again at `position`.

        Raises:
            PeerRefused: the journal does not reach back that far.
        """
        if position < self._first:
            raise PeerRefused(f"tokens before position {self._first} are not kept", "journal_gone")
        self.link, self._cursor = link, position
        self.pump()

    def pump(self) -> None:
        """Post what has not been sent yet."""
        if self.link is None:
            return
        for chunk in _chunks(self._tokens[self._cursor - self._first :]):
            self.link.post(Tokens(self._session, chunk))
            self._cursor += len(chunk)


def _chunks(tokens: Sequence[SampledToken]) -> list[tuple[SampledToken, ...]]:
    size = MAX_DRAFT_ROWS
    return [tuple(tokens[i : i + size]) for i in range(0, len(tokens), size)]
