"""Pages of keys and values that a session takes over from earlier ones, and leaves to later ones.

A page is found by a name, and everybody computes names from what they know themselves. A hop that
begins the model names pages by their tokens. Any other hop names them by the hashes of the rows
that came in, which it took from the rows: keys and values follow from these rows alone, so a page
under a name is right for whoever sends rows with these hashes, whoever's session left it.

Both kinds of name are chained: each stands for everything up to the end of its page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from unisono.execution.engine import Engine
from unisono.execution.session import HopSession
from unisono.models.cache import PAGE, REACH_BACK, Prefix
from unisono.types import digest

NAME_BYTES = 32


def token_names(tokens: Sequence[int], count: int, known: Sequence[bytes] = ()) -> list[bytes]:
    """Names of the first `count` pages of a sequence of tokens; `known` are the first of them."""
    packed = (
        np.array(tokens[page * PAGE : (page + 1) * PAGE], dtype="<u4").tobytes()
        for page in range(len(known), count)
    )
    return _chained("prefix/1", known, packed)


def row_names(hashes: Sequence[bytes], count: int, known: Sequence[bytes] = ()) -> list[bytes]:
    """Names of the first `count` pages of rows with these hashes; `known` are the first of them."""
    joined = (
        b"".join(hashes[page * PAGE : (page + 1) * PAGE]) for page in range(len(known), count)
    )
    return _chained("prefix-rows/1", known, joined)


def _chained(domain: str, known: Sequence[bytes], parts: Iterable[bytes]) -> list[bytes]:
    names = list(known)
    for part in parts:
        names.append(digest(domain, names[-1] if names else b"", part))
    return names


def split_names(body: bytes) -> tuple[bytes, ...]:
    """Names that were joined."""
    return tuple(body[i : i + NAME_BYTES] for i in range(0, len(body), NAME_BYTES))


class SessionPages:
    """Those of one session on one hop."""

    def __init__(self, engine: Engine, session: HopSession) -> None:
        self._engine = engine
        self._session = session
        self._found: list[Prefix] = []
        self._names: list[bytes] = []

    @property
    def found(self) -> int:
        """Pages that are held and that the session may still begin with."""
        return len(self._found)

    async def find(self, names: Sequence[bytes]) -> int:
        """Hold the pages that are here under these names, in place of those held before; returns
        how many. `begin` follows before anything is computed."""
        if self._found:
            self.begin(0)
        self._found = await self._engine.adopt(self._session.cache, names) if names else []
        self._names = list(names[: self.found])
        return self.found

    def onward(self) -> bytes:
        """Names of what was found by its rows out, joined: the next hop knows it by these."""
        hashes = [h for prefix in self._found for h in prefix.hashes[1]]
        return b"".join(row_names(hashes, self.found))

    def begin(self, pages: int) -> int:
        """Begin behind the first `pages` of what was found; returns the position."""
        found, names = self._found[:pages], self._names[:pages]
        if self._found:
            self._engine.begin(self._session.cache, len(found))
        self._found, self._names = [], []
        self._session.begin(found, names)
        return len(found) * PAGE

    def keep(self) -> None:
        """Leave the pages that are complete. Rows that may still be replaced are not part of one
        but in the prompt, where nothing is guessed."""
        session = self._session
        computed = len(session.in_hashes)
        if session.is_first:
            final = len(session.tokens) - 1
        else:
            final = max(session.opened.prompt, computed - REACH_BACK)
        first, last = len(session.names), min(computed, final) // PAGE
        if last <= first:
            return
        if session.is_first:
            session.names = token_names(session.tokens, last, session.names)
        else:
            session.names = row_names(session.in_hashes, last, session.names)
        for page in range(first, last):
            here = slice(page * PAGE, (page + 1) * PAGE)
            rows = self._rows(here)
            if rows is not None:
                hashes = session.in_hashes[here], session.out_hashes[here]
                self._engine.keep(session.cache, session.names[: page + 1], hashes, rows)

    def _rows(self, here: slice) -> Sequence[memoryview] | None:
        """Copies of a page's rows in: without them no later claim could be answered for. Empty
        where none are kept, None where they should be and are not."""
        recorder = self._session.rows_in
        if recorder is None:
            return ()
        rows = recorder.rows(here.start, here.stop)
        if rows is None:
            return None
        joined, views, start = memoryview(b"".join(rows)), list[memoryview](), 0
        for row in rows:
            views.append(joined[start : start + len(row)])
            start += len(row)
        return views
