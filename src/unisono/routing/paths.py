"""The best chain of nodes for a request, under the present load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from math import sqrt

import numpy as np

from unisono.errors import (
    CapacityMissing,
    CoverageMissing,
    NetworkError,
    NetworkUnreachable,
    OfferMissing,
)
from unisono.routing.costs import Costs, Priced, lot
from unisono.routing.coverage import first_gap
from unisono.routing.demand import UNIT
from unisono.routing.links import Indices, Seconds
from unisono.types import ModelId, NodeId
from unisono.wire.records import NodeRecord

Path = tuple[NodeRecord, ...]

MAX_CANDIDATES = 512
"""More nodes than this that could serve are cut down before the exact search: it takes some
milliseconds of the gateway's loop, and the five-hundredth best of a block is nobody's choice."""
_LEAST_CANDIDATES = 8
"""Of one block, if there are that many."""
_MAX_STANDBYS = 64
"""Holders of one block that are compared: those that look best."""
_TABLE_CELLS = 1 << 20
"""Cells of the largest table of one step: bounds memory where thousands hold one block."""
_SMALL_TABLE = 512
_FIRST_BATCH = 4
_PRICE_ONLY = 1e6
"""Seconds per millionth of the unit: of a chain's costs only the price matters."""
_LEAST_WEIGHT = 1e-9
_HALVINGS = 12


def best_path(
    records: Iterable[NodeRecord],
    model: ModelId,
    layer_count: int,
    positions: int,
    costs: Costs,
    avoid: frozenset[NodeId] = frozenset(),
) -> Path:
    """The chain whose whole blocks tile the model and whose answer is expected first.

    Nodes that leave, that are in `avoid`, that promise less than `costs.demand` asks, or that have
    no room for `positions` are left out, and
    banned ones (`Reputation.banned`) unless nobody else is left, barred ones (`Reputation.barred`)
    always. Among equals the smaller node id
    wins, so that the order of `records` does not matter. Beyond `MAX_CANDIDATES` able nodes the
    choice is the best among a part of them. If the best chain is dearer than the demand's limit,
    the price weighs more until it is not.

    Raises:
        NetworkUnreachable: there is not one record.
        CoverageMissing: some layer has no holder.
        CapacityMissing: holders exist, but no chain has room for `positions`.
        OfferMissing: chains exist, but none on the demand's terms.
    """
    known = list(records)
    holders = [
        r
        for r in known
        if r.model == model and r.node not in avoid and not r.leaving and r.layers.count
    ]
    willing = [r for r in holders if costs.admits(r)]
    barred = {r.node for r in willing if costs.reputation.barred(r)}
    fitting = [r for r in willing if r.node not in barred and costs.load.room(r) >= positions]
    banned = costs.reputation.banned_among(fitting)
    path = None
    if banned:
        trusted = [r for r in fitting if r.node not in banned]
        path = _cheapest(_shortlist(trusted, costs), layer_count, costs)
    path = path or _cheapest(_shortlist(fitting, costs), layer_count, costs)
    if path is not None:
        return _within(path, fitting, layer_count, costs)
    if not known:
        raise NetworkUnreachable(
            "no node is known: check the addresses that this gateway joined with, or start "
            "a node with 'unisono node --join ADDRESS'"
        )
    gap = first_gap(holders, model, layer_count)
    if gap is None:
        unwilling = first_gap(willing, model, layer_count)
        if unwilling is not None:
            raise OfferMissing(
                f"no node that holds layer {unwilling} promises {costs.demand}, or this gateway "
                "cannot pay those that do: ask for less, or give it a chain"
            )
        without = first_gap([r for r in willing if r.node not in barred], model, layer_count)
        if without is not None:
            raise CapacityMissing(
                f"every node that says it holds layer {without} was convicted, or denied it: "
                "start another with 'unisono node --join ADDRESS'"
            )
        raise CapacityMissing(
            f"every chain of nodes is full: {positions} positions are needed; try again soon"
        )
    raise CoverageMissing(
        f"no live node holds layer {gap} of model {model[:12]}… "
        f"({len(holders)} nodes hold other layers): start one with "
        "'unisono node --join ADDRESS'"
    )


def _within(path: Path, records: list[NodeRecord], layer_count: int, costs: Costs) -> Path:
    """The best path whose price keeps the demand's limit, if `path` does not.

    A path that is best for some weight of the price is best among those that cost no more
    (Lagrangian relaxation; Everett 1963), so halving finds it but for ties.

    Raises:
        OfferMissing: even the cheapest costs more.
    """
    most = costs.demand.most
    if most is None or costs.worst_price(path, layer_count) <= most:
        return path
    able = [r for r in records if r.node not in costs.reputation.banned_among(records)] or records
    able = _shortlist(able, costs)

    def weighed(price_seconds: float) -> Path:
        found = _cheapest(able, layer_count, replace(costs, price_seconds=price_seconds))
        return found or path

    cheapest = weighed(_PRICE_ONLY)
    lowest = costs.worst_price(cheapest, layer_count)
    if lowest > most:
        raise OfferMissing(
            f"the cheapest offer for this request is {lowest / UNIT:.6f}, and its limit is "
            f"{most / UNIT:.6f}: raise the limit, or ask for fewer tokens"
        )
    low, high = costs.price_seconds, _PRICE_ONLY
    for _ in range(_HALVINGS):
        middle = sqrt(max(low, _LEAST_WEIGHT) * high)
        found = weighed(middle)
        if costs.worst_price(found, layer_count) <= most:
            high, cheapest = middle, found
        else:
            low = middle
    return cheapest


def ranked_paths(
    records: Iterable[NodeRecord],
    model: ModelId,
    layer_count: int,
    positions: int,
    costs: Costs,
    count: int,
    avoid: frozenset[NodeId] = frozenset(),
) -> list[Path]:
    """Up to `count` paths without a common node, the best first: each is the best of those that
    avoid all before it, so that no single failure takes two.

    Raises:
        NetworkUnreachable, CoverageMissing, CapacityMissing: there is not even one.
    """
    known = list(records)
    paths = [best_path(known, model, layer_count, positions, costs, avoid)]
    while len(paths) < count:
        avoid |= {hop.node for hop in paths[-1]}
        try:
            paths.append(best_path(known, model, layer_count, positions, costs, avoid))
        except NetworkError:
            break
    return paths


def standbys(
    path: Sequence[NodeRecord],
    records: Iterable[NodeRecord],
    positions: int,
    costs: Costs,
    avoid: frozenset[NodeId] = frozenset(),
) -> tuple[NodeRecord | None, ...]:
    """For each hop the node that would replace it best: it holds the same layers, has room, is
    not in the path, and makes the path with it in the hop's place the cheapest. None where there
    is none. Two hops may have the same standby only if they hold the same layers, which hops
    of one path never do.
    """
    used = avoid | {hop.node for hop in path}
    layer_count = path[-1].layers.stop
    candidates = [
        r
        for r in records
        if r.node not in used
        and r.model == path[0].model
        and not r.leaving
        and costs.load.room(r) >= positions
        and costs.admits(r)
        and not costs.reputation.banned(r)
    ]
    chosen: list[NodeRecord | None] = []
    for place, hop in enumerate(path):
        others = [r for i, r in enumerate(path) if i != place]
        able = nsmallest(
            _MAX_STANDBYS,
            (r for r in candidates if r.layers == hop.layers and _affordable([*others, r], costs)),
            key=lambda r: (costs.glance(r), r.node),
        )
        priced = costs.survey([*path, *able], layer_count)
        hops = list(range(len(path)))
        totals = [
            priced.total([*hops[:place], len(path) + i, *hops[place + 1 :]])
            for i in range(len(able))
        ]
        chosen.append(able[int(np.argmin(totals))] if able else None)
    return tuple(chosen)


def _affordable(path: Sequence[NodeRecord], costs: Costs) -> bool:
    most = costs.demand.most
    layer_count = max(r.layers.stop for r in path)
    return most is None or costs.worst_price(path, layer_count) <= most


def _shortlist(records: list[NodeRecord], costs: Costs) -> list[NodeRecord]:
    """At most about `MAX_CANDIDATES` of the records, and some of every block that there is.

    Half are those that look best by what they say and by the way to them, half are drawn, so
    that no crowd of boasters fills the list.
    """
    if len(records) <= MAX_CANDIDATES:
        return records
    blocks: dict[tuple[int, int], list[NodeRecord]] = {}
    for r in records:
        blocks.setdefault((r.layers.start, r.layers.stop), []).append(r)
    half = max(_LEAST_CANDIDATES, MAX_CANDIDATES // len(blocks)) // 2
    chosen: list[NodeRecord] = []
    for held in blocks.values():
        if len(held) > 2 * half:
            held.sort(key=lambda r: (costs.glance(r), r.node))
            drawn = sorted(held[half:], key=lambda r: lot(r.node, costs.prompt ^ costs.salt))
            held = held[:half] + drawn[:half]
        chosen += held
    return chosen


def _tiling(records: Sequence[NodeRecord], layer_count: int) -> list[NodeRecord]:
    """The records that are part of some chain of whole blocks from the first layer to the last."""
    blocks = sorted({(r.layers.start, r.layers.stop) for r in records})
    reached = {0}
    for start, stop in blocks:
        if start in reached and start < stop <= layer_count:
            reached.add(stop)
    leading = {layer_count}
    for start, stop in reversed(blocks):
        if stop in leading and start in reached:
            leading.add(start)
    if 0 not in leading:
        return []
    useful = reached & leading
    return [r for r in records if r.layers.start in useful and r.layers.stop in useful]


def _cheapest(records: Sequence[NodeRecord], layer_count: int, costs: Costs) -> Path | None:
    """The best path over these nodes, or None if they do not tile the model."""
    useful = _tiling(records, layer_count)
    if not useful:
        return None
    useful.sort(key=lambda r: r.node)
    priced = costs.survey(useful, layer_count)
    found = _Search.of(useful, layer_count, priced).best()
    return tuple(useful[i] for i in found)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A boundary between two layers: who ends there, who begins there, and the links between."""

    inner: Indices
    """Nodes that end here and are not the first of a chain."""
    firsts: Indices
    """Nodes that end here and are."""
    after: Indices
    """Nodes that begin here."""
    inner_edges: Seconds
    """[inner, after]"""
    first_edges: Seconds
    """[firsts, after]"""


@dataclass(frozen=True, slots=True)
class _Search:
    """Exact search for the cheapest cycle.

    A chain is a path through the boundaries between layers, and tokens return from its last hop
    to its first: a cycle through one of the first hops. For a fixed first hop, dynamic
    programming over the boundaries finds the best one. First hops are taken in the order of a
    lower bound (the best path that may return to any first hop) until none can beat the best.
    """

    priced: Priced
    count: int
    whole: Indices
    """Nodes that hold all layers: chains of one hop, without a return."""
    firsts: Indices
    lasts: Indices
    cuts: list[_Cut]
    """In the order of the layers."""
    returns: Seconds
    """[lasts, firsts]"""

    @classmethod
    def of(cls, nodes: Sequence[NodeRecord], layer_count: int, priced: Priced) -> _Search:
        starts = np.array([r.layers.start for r in nodes], dtype=np.intp)
        stops = np.array([r.layers.stop for r in nodes], dtype=np.intp)
        begins, ends = starts == 0, stops == layer_count
        firsts = np.flatnonzero(begins & ~ends)
        lasts = np.flatnonzero(ends & ~begins)
        by_start: dict[int, list[int]] = {}
        by_stop: dict[int, tuple[list[int], list[int]]] = {}
        for i, r in enumerate(nodes):
            if r.layers.start:
                by_start.setdefault(r.layers.start, []).append(i)
            if r.layers.stop < layer_count:
                by_stop.setdefault(r.layers.stop, ([], []))[r.layers.start == 0].append(i)
        pieces: list[tuple[Indices, int, Indices]] = []
        for x in sorted(by_start):
            inner, first = by_stop[x]
            tails = np.array([*inner, *first], dtype=np.intp)
            pieces.append((tails, len(inner), np.array(by_start[x], dtype=np.intp)))
        # one call for a large table, and one for all small ones: calls cost more than their cells
        small = [(t, after) for t, _, after in pieces if len(t) * len(after) <= _SMALL_TABLE]
        flat = np.zeros(0)
        if small:
            a = np.concatenate([np.repeat(t, len(after)) for t, after in small])
            b = np.concatenate([np.tile(after, len(t)) for t, after in small])
            flat = priced.edges(a, b)
        cuts: list[_Cut] = []
        offset = 0
        for tails, k, after in pieces:
            size = len(tails) * len(after)
            if size <= _SMALL_TABLE:
                table = flat[offset : offset + size].reshape(len(tails), len(after))
                offset += size
            else:
                table = priced.edges(tails[:, None], after[None, :])
            cuts.append(_Cut(tails[:k], tails[k:], after, table[:k], table[k:]))
        returns = priced.returns(lasts[:, None], firsts[None, :])
        return cls(priced, len(nodes), np.flatnonzero(begins & ends), firsts, lasts, cuts, returns)

    def best(self) -> list[int]:
        """Indices of the cheapest chain's nodes."""
        hop, end = self.priced.hop, self.priced.end
        best_seconds, best = float(np.inf), list[int]()
        if len(self.whole):
            alone = hop[self.whole] + 2 * end[self.whole]
            place = int(alone.argmin())
            best_seconds, best = float(alone[place]), [int(self.whole[place])]
        if not len(self.firsts):
            return best
        bounds = self._bounds()
        order = np.argsort(bounds, kind="stable")
        widest = max(1, *(c.inner_edges.size for c in self.cuts), self.returns.shape[0])
        most = max(1, _TABLE_CELLS // widest)
        taken, batch = 0, min(_FIRST_BATCH, most)
        while taken < len(order) and bounds[order[taken]] < best_seconds:
            chosen = order[taken : taken + batch]
            chosen = chosen[bounds[chosen] < best_seconds]
            reached = self._forward(chosen)
            closed = reached[:, self.lasts] + end[self.lasts] + self.returns[:, chosen].T
            row, last = divmod(int(closed.argmin()), len(self.lasts))
            if closed[row, last] < best_seconds:
                best_seconds = float(closed[row, last])
                best = self._trace(reached[row], int(self.lasts[last]))
            taken, batch = taken + batch, min(4 * batch, most)
        return best

    def _bounds(self) -> Seconds:
        """[firsts] No chain from this first hop is cheaper than this: the best way through all
        boundaries to any last hop, returning to whichever first hop is nearest to that one."""
        hop, end = self.priced.hop, self.priced.end
        onward = np.full(self.count, np.inf)
        onward[self.lasts] = end[self.lasts] + self.returns.min(axis=1)
        for cut in reversed(self.cuts):
            ahead = hop[cut.after] + onward[cut.after]
            if len(cut.inner):
                onward[cut.inner] = (cut.inner_edges + ahead).min(axis=1)
            if len(cut.firsts):
                onward[cut.firsts] = (cut.first_edges + ahead).min(axis=1)
        return end[self.firsts] + hop[self.firsts] + onward[self.firsts]

    def _forward(self, chosen: Indices) -> Seconds:
        """[chosen, n] The cheapest way from each chosen first hop to each node, both included."""
        hop, end = self.priced.hop, self.priced.end
        reached = np.full((len(chosen), self.count), np.inf)
        rows = np.arange(len(chosen))
        nodes = self.firsts[chosen]
        reached[rows, nodes] = end[nodes] + hop[nodes]
        for cut in self.cuts:
            arriving = np.full((len(chosen), len(cut.after)), np.inf)
            if len(cut.inner):
                arriving = (reached[:, cut.inner, None] + cut.inner_edges).min(axis=1)
            for place in np.flatnonzero(np.isin(cut.firsts, nodes)):
                first = cut.firsts[place]
                row = int(np.flatnonzero(nodes == first)[0])
                direct = reached[row, first] + cut.first_edges[place]
                arriving[row] = np.minimum(arriving[row], direct)
            reached[:, cut.after] = arriving + hop[cut.after]
        return reached

    def _trace(self, reached: Seconds, last: int) -> list[int]:
        """The chain that reaches `last` at this cost, from the costs of one first hop."""
        chain = [last]
        for cut in reversed(self.cuts):
            place = np.flatnonzero(cut.after == chain[0])
            if not len(place):
                continue
            before = np.concatenate([cut.inner, cut.firsts])
            edges = np.concatenate([cut.inner_edges, cut.first_edges])[:, place[0]]
            chain.insert(0, int(before[(reached[before] + edges).argmin()]))
        return chain
