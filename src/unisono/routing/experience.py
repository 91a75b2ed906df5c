"""What a gateway learns of its nodes from the sessions it has with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from unisono.clock import Clock
from unisono.routing.coordinates import ORIGIN, Coordinate
from unisono.routing.costs import ROW_BYTES, Costs, crowded
from unisono.routing.demand import ANY, Demand
from unisono.routing.links import Links, Seconds
from unisono.routing.load import Load
from unisono.routing.paths import Path
from unisono.routing.prefixes import PREFIX_TOKENS, Prefixes
from unisono.routing.reputation import Deed, Reputation
from unisono.types import NodeId
from unisono.wire.records import NodeRecord
from unisono.wire.sold import Wallet

TYPICAL_TOKENS = 128.0
"""Tokens of an answer, before any has ended."""
CAUTION = 20.0
"""How many times worse a second failure of one request is than a first."""
MEASURED_LOOPS = 8
"""A shorter answer says little about speed."""
MEASURED_TOKENS_PER_LOOP = 1.2
MEASURED_ROWS = 128
"""A shorter prompt says little about the speed of reading."""
_GAIN = 1 / 16
_LEAST_SHARE = 0.05
"""Of the measured time, what nodes are taken to compute at the least, however long the links."""


class Experience:
    """Links, load, reputation and prefixes as one gateway knows them.

    `costs` says what a request would cost; a `Trial` watches one attempt at it and teaches.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        here: Callable[[], Coordinate] = lambda: ORIGIN,
        salt: int = 0,
        price_seconds: float = 0.0,
        wallets: frozenset[Wallet] = frozenset(),
    ) -> None:
        """`here` tells the gateway's own coordinate; `salt` differs between gateways; the others
        are explained in `Costs`."""
        self.clock = clock
        self.links = Links(here)
        self.load = Load(clock)
        self.reputation = Reputation(clock)
        self.prefixes = Prefixes(clock)
        self._salt = salt
        self._price_seconds = price_seconds
        self._wallets = wallets
        self._typical = TYPICAL_TOKENS
        self._per_loop = 1.0

    def costs(
        self,
        tokens: Sequence[int],
        max_tokens: int,
        *,
        keys: Sequence[bytes],
        retry: bool = False,
        demand: Demand = ANY,
        row_bytes: int = ROW_BYTES,
    ) -> Costs:
        """The costs of a request of which `tokens` (the prompt, and what was answered already) are
        known and `max_tokens` at most follow. `keys` are those of `prefix_keys(tokens)`.

        `retry`: an attempt has failed before; nodes that proved themselves are preferred.
        `row_bytes`: of a row of the model between two hops.
        """
        return Costs(
            links=self.links,
            load=self.load,
            reputation=self.reputation,
            prompt=max(1, len(tokens)),
            tokens=max(1, min(max_tokens, round(self._typical))),
            held=self.prefixes.held(keys),
            tokens_per_loop=self._per_loop,
            wallets=self._wallets,
            row_bytes=row_bytes,
            price_seconds=self._price_seconds,
            caution=CAUTION if retry else 1.0,
            salt=self._salt,
            demand=demand,
            most_tokens=max_tokens,
        )

    def trial(
        self, path: Path, costs: Costs, positions: int, *, keys: Sequence[bytes] = ()
    ) -> Trial:
        """Begin an attempt over a path; its sessions weigh on choices until `Trial.close`."""
        return Trial(self, path, costs, positions, keys)

    def dissented(self, path: Path) -> None:
        """A majority of a quorum computed another answer than these nodes did."""
        deed = Deed.DISSENTED if len(path) == 1 else Deed.DOUBTED
        for record in path:
            self.reputation.saw(record, deed)

    def answered(self, tokens: int, loops: int) -> None:
        """An answer of so many tokens has ended, which went around its chain `loops` times."""
        self._typical += _GAIN * (tokens - self._typical)
        self._per_loop += _GAIN * (max(1.0, tokens / max(1, loops)) - self._per_loop)


class Trial:
    """One attempt at an answer over one path.

    Call `opened`, then `arrived` whenever tokens come, `refused` or `lost` when a hop is at fault,
    `replaced` when others take over, and `completed` at the end of the answer; `close` in any
    case.
    """

    def __init__(
        self,
        experience: Experience,
        path: Path,
        costs: Costs,
        positions: int,
        keys: Sequence[bytes],
    ) -> None:
        self._experience = experience
        self._keys = keys
        self._positions = positions
        self.path = path
        self.costs = costs
        self._rooms = {r.node: experience.load.room(r) for r in path}
        # before this session counts among those that are on the nodes already
        self._nodes = costs.workloads(path)
        self._stay = experience.load.open(path, positions)
        self._opened: float | None = None
        self._first = self._last = 0.0
        self._tokens = self._loops = 0
        self._timed = True
        self._spared = 0
        """Tokens of the prompt that no hop of a chain read."""
        self._closed = False

    def opened(self) -> None:
        """Every hop has opened its session."""
        self._opened = self._experience.clock.monotonic()

    def spared(self, pages: int) -> None:
        """The chain had so many pages of the prompt, as its first hop says."""
        self._spared = min(pages * PREFIX_TOKENS, self.costs.prompt - 1)

    def arrived(self, tokens: int = 1) -> None:
        """Tokens have come, of one loop around the chain."""
        self._last = self._experience.clock.monotonic()
        if not self._loops:
            self._first = self._last
            if self._timed:
                self._learn_reading()
        self._tokens += tokens
        self._loops += 1

    def refused(self, node: NodeId, code: str) -> None:
        """A hop said no; `code` is the protocol's."""
        record = self._record(node)
        if record is None:
            return
        if code == "not_held":
            self._saw(record, Deed.NOT_HELD)
        elif code == "capacity" and self._rooms[node] >= self._positions:
            self._saw(record, Deed.REFUSED)
        elif code == "price":
            self._saw(record, Deed.PRICE_BROKEN)

    def lost(self, node: NodeId) -> None:
        """A hop cannot be reached, went silent, or broke the protocol."""
        record = self._record(node)
        if record is None:
            return
        if self._opened is None:
            self._saw(record, Deed.UNREACHABLE)
        else:
            self._saw(record, Deed.LOST if self._loops else Deed.FAILED)

    def outrun(self) -> None:
        """A chain that was opened later has given the first token. Of several hops nobody knows
        which one was late: each gets a little blame."""
        if self._opened is not None and not self._loops:
            for record in self.path:
                self._saw(record, Deed.LATE)

    def replaced(self, path: Path) -> None:
        """Other nodes are in the places of hops that were lost; the answer goes on over `path`."""
        load = self._experience.load
        load.close(self.path, self._stay)
        self._rooms = {r.node: load.room(r) for r in path}
        self._stay = load.open(path, self._positions)
        self.path = path
        self._timed = False

    def completed(self) -> None:
        """The answer has ended and every hop has signed."""
        for record in self.path:
            self._saw(record, Deed.COMPLETED)
        self._experience.answered(self._tokens, self._loops)
        # rounds that carry guesses overlap: the time between them is not that of a loop
        guessed = self._tokens > MEASURED_TOKENS_PER_LOOP * self._loops
        if self._timed and not guessed and self._loops >= MEASURED_LOOPS:
            self._learn_decoding()

    def close(self) -> None:
        """The sessions have ended; idempotent."""
        if not self._closed:
            self._closed = True
            self._experience.load.close(self.path, self._stay)

    def _record(self, node: NodeId) -> NodeRecord | None:
        return next((r for r in self.path if r.node == node), None)

    def _saw(self, record: NodeRecord, deed: Deed) -> None:
        self._experience.reputation.saw(record, deed)

    def _loop_links(self) -> float:
        """Seconds that the links of one loop take."""
        links = self._experience.links
        if len(self.path) == 1:
            return 0.0
        size = self.costs.row_bytes
        there = sum(links.time(a, b, size) for a, b in pairwise(self.path))
        return there + links.time(self.path[-1], self.path[0])

    def _learn_decoding(self) -> None:
        """Divide the time of a loop among the hops, and remember each one's."""
        experience = self._experience
        loop = (self._last - self._first) / (self._loops - 1)
        computed = max(loop - self._loop_links(), _LEAST_SHARE * loop)
        nodes = self.costs.workloads(self.path)
        # this session counts among those on the node: only the others make it slower
        crowds = crowded(nodes.others - 1)
        parts = attributed(computed, nodes.step * crowds, nodes.decode_doubt)
        for record, pace in zip(self.path, parts / crowds / nodes.count, strict=True):
            experience.reputation.decoded(record.node, float(pace))

    def _learn_reading(self) -> None:
        """Divide the time to the first token among the hops, if the prompt was long enough.

        On a single hop that was believed to hold the prompt's beginning, a time that fits the
        whole prompt better says that it does not.
        """
        if self._opened is None:
            return
        experience, costs, nodes = self._experience, self.costs, self._nodes
        links, first, alone = experience.links, self.path[0], len(self.path) == 1
        passing = links.time(None, first) + links.time(self.path[-1], None)
        if not alone:
            size = (costs.prompt - self._spared) * costs.row_bytes
            passing += self._loop_links() + sum(size / links.bandwidth(r) for r in self.path[:-1])
            if self._spared:  # the question to all hops, and its way back
                passing += 2 * self._loop_links()
        taken = max(self._first - self._opened - passing, 0.0)
        expected = costs.prefills(nodes, self._spared)
        if alone and nodes.held[0]:
            if taken > (expected[0] + costs.prefills(nodes, nodes.held)[0]) / 2:
                pages = int(nodes.held[0]) // PREFIX_TOKENS + 1
                experience.prefixes.lost(first.node, self._keys[:pages])
        elif costs.prompt - self._spared >= MEASURED_ROWS:
            parts = attributed(taken, expected, nodes.read_doubt)
            paces = nodes.row * parts / expected / nodes.count
            for record, pace in zip(self.path, paces, strict=True):
                experience.reputation.read(record.node, float(pace))
        for record in self.path:
            experience.prefixes.read(record.node, self._keys)


def attributed(total: float, expected: Seconds, doubts: Seconds) -> Seconds:
    """Divide a measured total among parts of which only the sum was seen.

    The difference to what was expected goes to each part in proportion to the square of its
    expectation and to the doubt about it (a Kalman filter's gain for independent relative
    errors): strangers among well-known nodes take the blame, or the praise. No part changes by
    more than eight times at once.
    """
    weights = doubts * expected * expected
    moved = expected + (total - expected.sum()) * weights / weights.sum()
    return np.clip(moved, expected / 8, expected * 8)
