"""Keys and values in pages: who holds which page, what is shared, what is given up.

A page holds `PAGE` positions of one *group* of layers: those that see equally far. Sessions
hold pages through tables; a page that several sessions share is copied before one of them
writes to it. Layers with a sliding window give back the pages that no later position sees.
Complete pages of a prompt may be kept under a key after their session has gone, and are the
first to be given up when memory runs out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unisono.errors import UnisonoError
from unisono.models.config import DecoderConfig
from unisono.types import LayerRange

PAGE = 64
"""Positions of a page."""
PREFIX_ROWS_BYTES = 256 << 20
"""Of the rows that kept prefixes hold beside their keys and values."""
REACH_BACK = 64
"""A session may go back this many positions: layers with a window keep what they then see."""


class OutOfPages(UnisonoError):
    """No memory for keys and values is left: some session must wait or be moved out."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers of a block that see `window` positions (0: all)."""

    window: int
    layers: tuple[int, ...]


def layer_groups(config: DecoderConfig, layers: LayerRange) -> tuple[LayerGroup, ...]:
    """The groups of a block, by descending reach."""
    windows = sorted({config.windows[i] for i in range(layers.start, layers.stop)})
    return tuple(
        LayerGroup(w, tuple(i for i in range(layers.start, layers.stop) if config.windows[i] == w))
        for w in windows
    )


def page_bytes(config: DecoderConfig, group: LayerGroup) -> int:
    """Memory of a page: 16-bit mantissas and one 16-bit exponent per head and position, of keys
    and of values, in every layer of the group."""
    return len(group.layers) * 2 * config.kv_head_count * (config.head_size + 1) * 2 * PAGE


class Memory(Protocol):
    """What a decoder does with the pages themselves."""

    def read_page(self, group: int, page: int) -> bytes:
        """A page's content."""
        ...

    def write_page(self, group: int, page: int, data: bytes) -> None:
        """Replace a page's content by what `read_page` gave."""
        ...

    def discard_page(self, group: int, page: int) -> None:
        """A page is no longer in use: its memory may go back to the system."""
        ...


@dataclass(frozen=True, slots=True)
class Prefix:
    """One complete page of a prompt that stays after its session: a page per group."""

    pages: tuple[int, ...]
    hashes: tuple[tuple[bytes, ...], tuple[bytes, ...]]
    """Hashes of the rows in and out of its positions, which claims of later sessions sign."""
    rows: tuple[memoryview, ...] = ()
    """The encoded rows in, where they are kept for those who ask about a claim."""

    @property
    def row_bytes(self) -> int:
        """Memory that its rows take."""
        return sum(len(row) for row in self.rows)


class PageStore:
    """The pages of one decoder. Not for use from several threads at once."""

    def __init__(self, config: DecoderConfig, layers: LayerRange, budget: int) -> None:
        """`budget` is the memory in bytes for all pages together."""
        self.groups = layer_groups(config, layers)
        self.bytes = tuple(page_bytes(config, g) for g in self.groups)
        self.budget = budget
        self.used = 0
        """Bytes of pages in use, kept prefixes included."""
        self.memory: Memory | None = None
        """The decoder whose pages these are."""
        self._limits = tuple(max(1, budget // b) for b in self.bytes)
        self._fresh = [0] * len(self.groups)
        self._free: list[list[int]] = [[] for _ in self.groups]
        self._holders: list[dict[int, int]] = [{} for _ in self.groups]
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()
        self._row_bytes = 0
        """Of all kept prefixes."""

    @property
    def limits(self) -> tuple[int, ...]:
        """Pages that each group may ever have."""
        return self._limits

    @property
    def kept(self) -> int:
        """Prefixes kept now."""
        return len(self._prefixes)

    def pages_for(self, positions: int) -> tuple[int, ...]:
        """Pages per group that a session of this length holds at once."""
        return tuple(
            min(
                -(-positions // PAGE),
                -(-(g.window + REACH_BACK) // PAGE) + 1 if g.window else positions,
            )
            for g in self.groups
        )

    def bytes_for(self, positions: int) -> int:
        """Memory that a session of this length holds at once."""
        pages = self.pages_for(positions)
        return sum(n * b for n, b in zip(pages, self.bytes, strict=True))

    def fits(self, positions: int) -> bool:
        """Whether a session of this length can ever be held."""
        pages = self.pages_for(positions)
        enough = all(n <= limit for n, limit in zip(pages, self._limits, strict=True))
        return enough and self.bytes_for(positions) <= self.budget

    def share_equally(self) -> None:
        """Give every group as many pages as fit for all of them: for a device whose memory is
        taken at once. Before the first page is taken."""
        assert self.used == 0
        self._limits = (max(1, self.budget // sum(self.bytes)),) * len(self.groups)

    def take(self, group: int) -> int:
        """A page for one holder; kept prefixes make room if they must.

        Raises:
            OutOfPages: sessions hold all of the budget.
        """
        while not self._has_room(group):
            if not self._prefixes:
                raise OutOfPages(
                    f"the memory for keys and values ({self.budget / (1 << 20):.1f} MiB) is in use"
                )
            self._give_up(next(iter(self._prefixes)))
        if self._free[group]:
            page = self._free[group].pop()
        else:
            page = self._fresh[group]
            self._fresh[group] += 1
        self._holders[group][page] = 1
        self.used += self.bytes[group]
        return page

    def share(self, group: int, page: int) -> None:
        """One more holder."""
        self._holders[group][page] += 1

    def release(self, group: int, page: int) -> None:
        """One holder less; the last one frees the page."""
        left = self._holders[group][page] - 1
        if left:
            self._holders[group][page] = left
            return
        del self._holders[group][page]
        self._free[group].append(page)
        self.used -= self.bytes[group]
        if self.memory is not None:
            self.memory.discard_page(group, page)

    def is_shared(self, group: int, page: int) -> bool:
        """Whether a page has more than one holder."""
        return self._holders[group][page] > 1

    def keep(self, keys: Sequence[bytes], prefix: Prefix) -> None:
        """Keep a page under the last of these keys, each of which names the tokens up to the end
        of one page; a page that is there already stays."""
        if keys[-1] not in self._prefixes:
            for group, page in enumerate(prefix.pages):
                self.share(group, page)
            self._prefixes[keys[-1]] = prefix
            self._row_bytes += prefix.row_bytes
        self._renew(keys)
        while self._row_bytes > PREFIX_ROWS_BYTES:
            self._give_up(next(iter(self._prefixes)))

    def find(self, keys: Sequence[bytes]) -> list[Prefix]:
        """The longest run of kept pages for consecutive keys."""
        found: list[Prefix] = []
        for key in keys:
            prefix = self._prefixes.get(key)
            if prefix is None:
                break
            found.append(prefix)
        self._renew(keys[: len(found)])
        return found

    def _renew(self, keys: Sequence[bytes]) -> None:
        """Let these be given up last, and the end of a prefix before its start."""
        for key in reversed(keys):
            if key in self._prefixes:
                self._prefixes.move_to_end(key)

    def _has_room(self, group: int) -> bool:
        some = bool(self._free[group]) or self._fresh[group] < self._limits[group]
        return some and self.used + self.bytes[group] <= self.budget

    def forget(self) -> None:
        """Give up all kept prefixes."""
        while self._prefixes:
            self._give_up(next(iter(self._prefixes)))

    def _give_up(self, key: bytes) -> None:
        prefix = self._prefixes.pop(key)
        self._row_bytes -= prefix.row_bytes
        for group, page in enumerate(prefix.pages):
            self.release(group, page)


class SessionCache:
    """One session's pages. Writing from an earlier position on replaces what followed it."""

    def __init__(self, store: PageStore, capacity: int) -> None:
        """Holds up to `capacity` positions; takes no page before it needs one."""
        self.store = store
        self.capacity = capacity
        self.length = 0
        pages = -(-capacity // PAGE)
        self.tables: NDArray[np.int64] = np.full((len(store.groups), pages), -1, dtype=np.int64)
        """Page of every `PAGE` positions, per group; -1 where none is held."""
        self._dropped = [0] * len(store.groups)
        self._moved_out: list[tuple[int, int, bytes]] | None = None

    @property
    def moved_out(self) -> bool:
        """Whether the pages lie outside the decoder's memory."""
        return self._moved_out is not None

    @property
    def held(self) -> int:
        """Pages held now."""
        return int((self.tables >= 0).sum())

    def adopt(self, prefixes: Sequence[Prefix]) -> None:
        """Hold kept pages; `begin` says how many of them the session begins with."""
        assert self.length == 0
        for i, prefix in enumerate(prefixes):
            for group, page in enumerate(prefix.pages):
                self.store.share(group, page)
                self.tables[group, i] = page
        self.length = len(prefixes) * PAGE

    def begin(self, pages: int) -> None:
        """The session begins behind the first so many adopted pages and gives back the others."""
        for group, i in zip(*np.nonzero(self.tables >= 0), strict=True):
            if i >= pages:
                self._release(int(group), int(i))
        self.length = min(self.length, pages * PAGE)
        self.drop_unseen()
        if self._moved_out is not None:
            self._moved_out = [
                (group, i, data)
                for group, i, data in self._moved_out
                if self._dropped[group] <= i < pages
            ]

    def page(self, index: int) -> tuple[int, ...] | None:
        """The pages of positions `index * PAGE` on, one per group, if all are held."""
        pages = self.tables[:, index]
        return tuple(int(p) for p in pages) if (pages >= 0).all() else None

    def reserve(self, start: int, stop: int) -> None:
        """Make positions `start` to `stop` writable; what lay behind `start` is given up.

        Raises:
            UnisonoError: beyond `capacity`, a gap, or so far back that a window's pages are gone.
            OutOfPages: no memory is left; the session keeps what it had.
        """
        if self.moved_out:
            raise UnisonoError("the session was moved out: move it in before it goes on")
        if stop > self.capacity:
            raise UnisonoError(
                f"position {stop - 1} does not fit a session of {self.capacity} positions"
            )
        if start > self.length:
            raise UnisonoError(f"position {start} of a session came before position {self.length}")
        for group, layers in enumerate(self.store.groups):
            seen = max(0, start - layers.window + 1) if layers.window else 0
            if seen // PAGE < self._dropped[group]:
                raise UnisonoError(
                    f"position {start} sees positions that the session has given up: it is at "
                    f"position {self.length}"
                )
        wanted = [
            (group, i, page)
            for group, table in enumerate(self.tables.tolist())
            for i, page in enumerate(table[start // PAGE : -(-stop // PAGE)], start // PAGE)
            if page < 0 or self.store.is_shared(group, page)
        ]
        taken: list[int] = []
        try:
            for group, _, _ in wanted:
                taken.append(self.store.take(group))
        except OutOfPages:
            for (group, _, _), page in zip(wanted, taken, strict=False):
                self.store.release(group, page)
            raise
        for (group, i, page), fresh in zip(wanted, taken, strict=True):
            if page >= 0:  # shared: others still read it
                if i * PAGE < start and self.store.memory is not None:
                    memory = self.store.memory
                    memory.write_page(group, fresh, memory.read_page(group, page))
                self.store.release(group, page)
            self.tables[group, i] = fresh

    def advance(self, length: int) -> None:
        """Positions below `length` are written."""
        self.length = length
        self.drop_unseen()

    def drop_unseen(self) -> None:
        """Give back pages that no later position sees."""
        for group, layers in enumerate(self.store.groups):
            if not layers.window:
                continue
            first = max(0, self.length - REACH_BACK - layers.window + 1) // PAGE
            for i in range(self._dropped[group], first):
                self._release(group, i)
            self._dropped[group] = max(self._dropped[group], first)

    def move_out(self) -> None:
        """Copy the pages out of the decoder's memory and free it."""
        assert self.store.memory is not None
        assert self._moved_out is None
        kept: list[tuple[int, int, bytes]] = []
        for group, i in zip(*np.nonzero(self.tables >= 0), strict=True):
            data = self.store.memory.read_page(int(group), int(self.tables[group, i]))
            kept.append((int(group), int(i), data))
            self._release(int(group), int(i))
        self._moved_out = kept

    def move_in(self) -> None:
        """Undo `move_out`.

        Raises:
            OutOfPages: there is no room yet; nothing has changed.
        """
        assert self.store.memory is not None
        taken: list[tuple[int, int, int]] = []
        try:
            for group, i, _ in self._moved_out or ():
                taken.append((group, i, self.store.take(group)))
        except OutOfPages:
            for group, _, page in taken:
                self.store.release(group, page)
            raise
        for (group, i, page), (_, _, data) in zip(taken, self._moved_out or (), strict=True):
            self.store.memory.write_page(group, page, data)
            self.tables[group, i] = page
        self._moved_out = None

    def close(self) -> None:
        """Release every page; idempotent."""
        self._moved_out = None
        for group, i in zip(*np.nonzero(self.tables >= 0), strict=True):
            self._release(int(group), int(i))

    def _release(self, group: int, i: int) -> None:
        page = int(self.tables[group, i])
        if page >= 0:
            self.tables[group, i] = -1
            self.store.release(group, page)
