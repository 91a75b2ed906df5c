"""What was observed of nodes, window by window: folded from heartbeats, verdicts and sessions, and
kept in SQLite.

A gateway keeps one about its nodes, a node that sells one about itself. Both fold heartbeats by the
same rules (`presence`), and so come to the same figures.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec

from unisono.database import open_database
from unisono.errors import ConfigurationError
from unisono.market.presence import Seen, Sight, downs
from unisono.market.sla import SETTLE_SECONDS, credit_share, is_doubtful, uptime, window_at
from unisono.types import NodeId

VERSION = 1
MAX_NODES = 4096
WINDOWS_KEPT = 32
_SCHEMA = """
CREATE TABLE IF NOT EXISTS nodes (node TEXT PRIMARY KEY, seen BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS windows (
    number INTEGER NOT NULL, node TEXT NOT NULL, figures BLOB NOT NULL,
    PRIMARY KEY (number, node)
);
CREATE TABLE IF NOT EXISTS observer (id INTEGER PRIMARY KEY, sight BLOB NOT NULL, judged INTEGER);
"""


class Figures(msgspec.Struct):
    """Of one node in one window."""

    tier: int = 0
    """The highest that its records promised in the window."""
    down: int = 0
    """Milliseconds."""
    valid: int = 0
    invalid: int = 0
    inconclusive: int = 0
    """Audits by their verdict."""
    convicted: bool = False
    """A claim that it signed in the window is proven false."""
    completed: int = 0
    broken: int = 0
    """Sessions with the observer, by their end."""
    outcome: str = ""
    """Of a credit that was due: `asked`, `granted`, `short`, `refused`; empty: none was."""
    credit: int = 0
    """Units that came back."""

    def share(self, window_ms: int) -> int:
        """Thousandths of what was paid that go back (`sla.credit_share`)."""
        return credit_share(self.tier, self.down, window_ms, convicted=self.convicted)

    def uptime(self, window_ms: int) -> int:
        """Thousandths."""
        return uptime(self.down, window_ms)

    @property
    def doubtful(self) -> bool:
        """See `sla.is_doubtful`."""
        return is_doubtful(self.valid + self.invalid + self.inconclusive, self.inconclusive)


class ServiceLog:
    """Use: `look` about once a second, and after it `heard` and the other events; `close`.

    What is changed is written with the next `look`: a killed process loses what it learnt in its
    last second, except outcomes of credits, which are written at once.
    """

    def __init__(
        self,
        path: Path | str | None,
        window_seconds: int,
        lease_seconds: float,
        now: float,
        *,
        of_itself: bool = False,
    ) -> None:
        """Open the file, or make it; None keeps figures in memory.

        `of_itself`: a node that keeps its own: while it was off it was down, whoever looks.

        Raises:
            ConfigurationError: the file cannot be used, or is of another version, or a window is
                shorter than a lease.
        """
        if window_seconds < lease_seconds:
            raise ConfigurationError(
                f"a service window of {window_seconds} s is shorter than a lease: make it longer"
            )
        self.window_ms = window_seconds * 1000
        self._lease_ms = int(lease_seconds * 1000)
        self._of_itself = of_itself
        self._seen: dict[NodeId, Seen] = {}
        self._figures: dict[int, dict[NodeId, Figures]] = {}
        self._changed: set[tuple[int, NodeId]] = set()
        self._renewed: set[NodeId] = set()
        now_ms = int(now * 1000)
        self._sight = Sight(now_ms, now_ms, [])
        self._judged = window_at(now_ms, self.window_ms) - 1
        """The last window that is closed."""
        try:
            self._database = _open(path)
            self._load()
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            raise ConfigurationError(
                f"cannot keep service levels in {path}: {error}; name a file that this user may "
                "write and that no other program uses"
            ) from error

    def _load(self) -> None:
        for node, seen in self._database.execute("SELECT node, seen FROM nodes"):
            self._seen[NodeId(node)] = msgspec.msgpack.decode(seen, type=Seen)
        for number, node, figures in self._database.execute("SELECT * FROM windows"):
            known = msgspec.msgpack.decode(figures, type=Figures)
            self._figures.setdefault(number, {})[NodeId(node)] = known
        row = self._database.execute("SELECT sight, judged FROM observer").fetchone()
        if row is not None:
            self._sight = msgspec.msgpack.decode(row[0], type=Sight)
            self._judged = row[1]

    # what happens

    def heard(self, node: NodeId, expires: int, *, leaving: bool, tier: int) -> None:
        """A record of the node that was not heard before, whoever passed it on; its signature is
        good. `expires` is in Unix milliseconds."""
        seen = self._seen.get(node)
        signed = expires - self._lease_ms
        if seen is None:
            if len(self._seen) >= MAX_NODES:
                del self._seen[min(self._seen, key=lambda n: self._seen[n].until)]
            self._seen[node] = Seen(expires, leaving, tier, signed)
        elif expires <= seen.until:
            return
        else:
            if not seen.leaving:
                self._down(node, max(seen.until, seen.counted), signed)
            seen.until, seen.leaving, seen.tier = expires, leaving, tier
        self._promise(window_at(signed, self.window_ms), node, tier)
        self._renewed.add(node)

    def audited(self, node: NodeId, verdict: str, now: float) -> None:
        """An audit of the node has ended: `VALID`, `INVALID` or `INCONCLUSIVE`."""
        figures = self._at(self.window(now), node)
        if verdict == "VALID":
            figures.valid += 1
        elif verdict == "INVALID":
            figures.invalid += 1
        else:
            figures.inconclusive += 1

    def convicted(self, node: NodeId, signed: float) -> None:
        """The node is proven to have signed something false, at that time."""
        window = self.window(signed)
        if window < self._judged - WINDOWS_KEPT:
            return
        figures = self._at(window, node)
        if not figures.convicted:
            figures.convicted = True
            figures.outcome = ""  # more is due than before

    def session(self, node: NodeId, completed: bool, now: float) -> None:
        """A session with the node has ended, as agreed or not."""
        figures = self._at(self.window(now), node)
        if completed:
            figures.completed += 1
        else:
            figures.broken += 1

    def own_down(self, node: NodeId, start: float, stop: float) -> None:
        """The observer itself could not serve."""
        for window, lost in downs(int(start * 1000), int(stop * 1000), (), self.window_ms).items():
            self._at(window, node).down += lost

    def settled(self, window: int, node: NodeId, outcome: str, credit: int) -> None:
        """What became of a credit that was due; kept at once."""
        figures = self._at(window, node)
        figures.outcome, figures.credit = outcome, credit
        self._write()

    def look(self, now: float) -> None:
        """Take note of the time, close windows that are over, and write what has changed."""
        now_ms = int(now * 1000)
        if not self._of_itself:
            leases = [seen.until for seen in self._seen.values() if not seen.leaving]
            self._sight.look(now_ms, leases, self._lease_ms)
        over = window_at(now_ms - int(SETTLE_SECONDS * 1000), self.window_ms) - 1
        closed = range(max(self._judged + 1, over - WINDOWS_KEPT + 1), over + 1)
        for window in closed:
            self._close(window)
        if closed:
            self._judged = over
            self._forget(over)
        self._write()

    # what is known

    @property
    def looked(self) -> float:
        """When the observer looked last, in Unix seconds."""
        return self._sight.looked / 1000

    def window(self, now: float) -> int:
        """The number of the window of a moment."""
        return window_at(int(now * 1000), self.window_ms)

    @property
    def last_closed(self) -> int:
        """The last window whose figures do not change, except by convictions."""
        return self._judged

    def windows(self) -> list[int]:
        """Those of which something is known, ascending."""
        return sorted(self._figures)

    def figures(self, window: int) -> dict[NodeId, Figures]:
        """Of every node in a window. Of the running one, gaps that have not ended are missing."""
        return dict(self._figures.get(window, {}))

    def down_now(self, now: float) -> dict[NodeId, int]:
        """Milliseconds of this window that nodes without a lease have been down, up to now."""
        now_ms = int(now * 1000)
        window = window_at(now_ms, self.window_ms)
        found: dict[NodeId, int] = {}
        for node, seen in self._seen.items():
            start = max(seen.until, seen.counted)
            if not seen.leaving and start < now_ms:
                found[node] = self._downs(start, now_ms).get(window, 0)
        return found

    def figures_of(self, window: int, node: NodeId) -> Figures:
        """Of one node in a window."""
        return self._figures.get(window, {}).get(node) or Figures()

    def nodes(self) -> set[NodeId]:
        """Those that were heard lately."""
        return set(self._seen)

    def known(self, node: NodeId) -> bool:
        """Whether the node was heard lately."""
        return node in self._seen

    def promised(self, node: NodeId) -> int:
        """The tier of its newest record."""
        seen = self._seen.get(node)
        return 0 if seen is None else seen.tier

    def close(self) -> None:
        """Write everything and close the file; idempotent."""
        if self._renewed or self._changed:
            self._write()
        self._database.close()

    def _downs(self, start: int, stop: int) -> dict[int, int]:
        spans = () if self._of_itself else self._sight.spans
        return downs(start, stop, spans, self.window_ms)

    def _down(self, node: NodeId, start: int, stop: int) -> None:
        oldest = (self._judged + 1) * self.window_ms
        for window, lost in self._downs(max(start, oldest), stop).items():
            self._at(window, node).down += lost

    def _promise(self, window: int, node: NodeId, tier: int) -> None:
        known = self._figures.get(window, {}).get(node)
        if known is None or known.tier < tier:
            self._at(window, node).tier = tier

    def _at(self, window: int, node: NodeId) -> Figures:
        self._changed.add((window, node))
        return self._figures.setdefault(window, {}).setdefault(node, Figures())

    def _close(self, window: int) -> None:
        """Count what is still silent."""
        end = (window + 1) * self.window_ms
        for node, seen in self._seen.items():
            start = max(seen.until, seen.counted, window * self.window_ms)
            if not seen.leaving and start < end:
                # what it promised last holds while it is silent
                self._promise(window, node, seen.tier)
                for lost in self._downs(start, end).values():
                    self._at(window, node).down += lost
                seen.counted = end
                self._renewed.add(node)

    def _forget(self, window: int) -> None:
        before = (window - 1) * self.window_ms
        self._sight.forget(before)
        for node in [n for n, seen in self._seen.items() if seen.until < before]:
            del self._seen[node]
            self._database.execute("DELETE FROM nodes WHERE node = ?", (node,))
        oldest = window - WINDOWS_KEPT
        self._figures = {w: each for w, each in self._figures.items() if w > oldest}
        self._database.execute("DELETE FROM windows WHERE number <= ?", (oldest,))

    def _write(self) -> None:
        """Raises:
        ConfigurationError: the file can no longer be written.
        """
        encode = msgspec.msgpack.encode
        nodes = [(n, encode(self._seen[n])) for n in self._renewed if n in self._seen]
        figures = [
            (window, node, encode(self._figures[window][node]))
            for window, node in self._changed
            if window in self._figures
        ]
        try:
            with self._database as database:
                database.executemany("INSERT OR REPLACE INTO nodes VALUES (?, ?)", nodes)
                database.executemany("INSERT OR REPLACE INTO windows VALUES (?, ?, ?)", figures)
                database.execute(
                    "INSERT OR REPLACE INTO observer VALUES (1, ?, ?)",
                    (encode(self._sight), self._judged),
                )
        except sqlite3.Error as error:
            raise ConfigurationError(f"cannot write service levels: {error}") from error
        self._renewed.clear()
        self._changed.clear()


def outcomes(log: ServiceLog, windows: Iterable[int], bad: frozenset[str]) -> frozenset[NodeId]:
    """The nodes whose credit had one of these outcomes in one of these windows."""
    return frozenset(
        node for window in windows for node, f in log.figures(window).items() if f.outcome in bad
    )


def _open(path: Path | str | None) -> sqlite3.Connection:
    return open_database(
        path,
        _SCHEMA,
        VERSION,
        lambda found: (
            f"{path} holds service levels of version {found}; this program reads {VERSION}"
        ),
    )
