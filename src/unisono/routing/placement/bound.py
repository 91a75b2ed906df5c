"""A proven lower bound of the expected time per token, for every placement there is.

Relaxed are: that a node holds one block (here it may share its time among many), and that the last
hop's distance to the first counts. What remains is convex: with y the work (layers × tokens per
time) of a node, its cost is a·y / (1 − b·y), and the flow of tokens takes paths over (layer, node).
For every vector of prices p ≥ a per work,

    X · shortest_path(p) − Σ (√p − √a)² / b

is a lower bound (the Lagrangian dual; the second term is the convex conjugate of the cost). Prices
are improved with a smoothed shortest path, whose gradient spreads over many paths; the bound
that is returned is computed with the true one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unisono.routing.placement.fleet import Fleet, Floats
from unisono.routing.placement.plans import Cut, Loads

_HEATS = (0.02, 0.003)
_PACES = (0.15, 0.01)
"""First and last smoothing, and length of steps: from far to near."""


class Bound(NamedTuple):
    """What `lower_bound` found."""

    token_us: float
    prices: Floats
    """Microseconds per layer and token of each node, at which the bound holds."""


def lower_bound(fleet: Fleet, cuts: Sequence[Cut] = (), rounds: int = 150) -> Bound:
    """A lower bound of `Plan.token_us` over all plans; better with more rounds.

    It starts at the prices that the plan `cuts` would set, and climbs with a method of adaptive
    steps (Kingma & Ba, Adam, ICLR 2015), over u = −log(1 − busy share), with p = a · e^2u.
    A round takes some layers · N² operations.
    """
    wanted = fleet.model.tokens_per_second / 1e6
    paths = _Paths(fleet)
    free = -np.log(1 - np.minimum(0.995, _busy(fleet, cuts)))
    best = Bound(-np.inf, fleet.step)
    slope, square = np.zeros(len(fleet)), np.zeros(len(fleet))
    for turn in range(rounds):
        done = turn / max(1, rounds - 1)
        prices = fleet.step * np.exp(2 * free)
        found = paths.bound(prices, wanted)
        if found > best.token_us:
            best = Bound(found, prices)
        there = wanted * paths.smoothed(prices, _HEATS[0] * (_HEATS[1] / _HEATS[0]) ** done)
        here = (1 - np.exp(-free)) / fleet.row
        off = (there - here) / (there + here + 0.02 / fleet.row)
        slope, square = 0.8 * slope + 0.2 * off, 0.95 * square + 0.05 * off * off
        pace = _PACES[0] * (_PACES[1] / _PACES[0]) ** done
        free = np.maximum(0.0, free + pace * slope / (np.sqrt(square) + 1e-3))
    return best


def _busy(fleet: Fleet, cuts: Sequence[Cut]) -> Floats:
    """The share of time that each node computes under a plan."""
    busy = np.zeros(len(fleet))
    for (nodes, layers), flow in zip(cuts, Loads(fleet, cuts).flow, strict=True):
        index = np.array(nodes, dtype=np.int64)
        work = np.array(layers, dtype=np.float64)
        work[-1] += fleet.model.head_work
        busy[index] = fleet.row[index] * work * flow
    return busy


class _Paths:
    """Paths over (layer, node): blocks of consecutive layers, each within a node's memory."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        whole = fleet.whole
        self.alone = np.flatnonzero(whole)
        self.split = np.flatnonzero(~whole & (fleet.middle >= 1))
        members = self.split
        self.middle, self.end = fleet.middle[members], fleet.end[members]
        self.toll = fleet.toll[members]
        places = fleet.place[members]
        square = (places**2).sum(axis=1)
        away = square[:, None] + square[None] - 2 * places @ places.T
        self.away: Floats = np.sqrt(np.maximum(away, 0.0)) * (1 - 1e-9)
        np.fill_diagonal(self.away, np.inf)
        longest = int(self.middle.max()) if len(members) else 0
        lengths = np.arange(1, longest + 1)[:, None]
        self.lengths = lengths.astype(np.float64)
        self.in_middle = np.where(lengths <= self.middle, 0.0, np.inf)
        self.at_end = np.where(lengths <= self.end, 0.0, np.inf)

    def bound(self, prices: Floats, wanted: float) -> float:
        """The bound in microseconds per token that these prices prove."""
        fleet = self.fleet
        conjugate = ((np.sqrt(prices) - np.sqrt(fleet.step)) ** 2 / fleet.row).sum()
        shortest = min(self.shortest(prices), fleet.model.unserved_us)
        return float(shortest - conjugate / wanted)

    def shortest(self, prices: Floats) -> float:
        """The least cost of a path per token."""
        model = self.fleet.model
        total, head = model.layers, model.head_work
        found = np.inf
        if len(self.alone):
            found = float((prices[self.alone] * (total + head)).min())
        if not len(self.split):
            return found
        price = prices[self.split]
        blocks = self.lengths * price
        middle, end = blocks + self.in_middle + self.toll, blocks + self.at_end + self.toll
        reach = np.full((total + 1, len(price)), np.inf)  # arriving at a node with l layers done
        for layer in range(1, total + 1):
            last = layer == total
            table = end + head * price if last else middle
            span = min(layer, len(table))
            # Row m − 1 of `table` is a block of m layers, that starts at layer − m.
            done = (reach[layer - span : layer][::-1] + table[:span]).min(axis=0)
            if not last and layer <= len(end):
                done = np.minimum(done, end[layer - 1])
            if last:
                return min(found, float(done.min()))
            reach[layer] = self._onwards(done)
        return found

    def _onwards(self, done: Floats) -> Floats:
        """The least of `done[i]` plus the way from i, for every other node.

        By the triangle inequality, an i that another one reaches at less than `done[i]` is of no
        use to a third node: few are left, and only those among them must not count for
        themselves.
        """
        reach = np.full(len(done), np.inf)
        left = done.copy()
        while True:
            i = int(left.argmin())
            if not np.isfinite(left[i]):
                return reach
            way = done[i] + self.away[i]
            reach = np.minimum(reach, way)
            left[left >= way] = np.inf
            left[i] = np.inf
            # For i itself, whom did it hide?
            reach[i] = min(reach[i], float((done + self.away[i]).min()))

    def smoothed(self, prices: Floats, heat: float) -> Floats:
        """Expected work per token of each node, if paths are drawn with probabilities that fall
        with their cost; `heat` is the scale of that as a share of the shortest path's cost."""
        fleet, model = self.fleet, self.fleet.model
        total, head = model.layers, model.head_work
        base = min(self.shortest(prices), model.unserved_us)
        scale, tilt = heat * base, base / total
        work = np.zeros(len(fleet))
        weigh = 0.0
        if len(self.alone):
            ways = np.exp((base - prices[self.alone] * (total + head)) / scale)
            work[self.alone] = ways * (total + head)
            weigh += ways.sum()
        weigh += np.exp((base - model.unserved_us) / scale)
        if len(self.split):
            there, ways = self._through(prices[self.split], scale, tilt)
            work[self.split] = there
            weigh += ways
        return work / weigh

    def _through(self, price: Floats, scale: float, tilt: float) -> tuple[Floats, float]:
        """Work of each node times weight over all paths, and their weight."""
        total, head = self.fleet.model.layers, self.fleet.model.head_work
        count, longest = len(price), len(self.lengths)
        blocks = self.lengths * (price - tilt) + self.toll
        middle = np.exp(-(blocks + self.in_middle) / scale)
        end = np.exp(-(blocks + self.at_end) / scale)
        final = end * np.exp(-head * price / scale)
        # Products with numbers near the smallest that floats can hold are very slow: cut them off.
        links = np.where(self.away < 300 * scale, np.exp(-self.away / scale), 0.0)
        reach, leave = np.zeros((total + 1, count)), np.zeros((total + 1, count))
        for layer in range(1, total):
            span = min(layer, longest)
            done = (reach[layer - span : layer][::-1] * middle[:span]).sum(axis=0)
            if layer <= longest:
                done += end[layer - 1]
            reach[layer] = links @ _cut_off(done)
        # leave[l]: weight of the ways on from a node whose block stopped at l.
        for layer in range(total - 1, 0, -1):
            span = min(total - layer - 1, longest)
            start = (leave[layer + 1 : layer + 1 + span] * middle[:span]).sum(axis=0)
            if total - layer <= longest:
                start += final[total - layer - 1]
            leave[layer] = links @ _cut_off(start)
        work = np.zeros(count)
        ways = 0.0
        for length in range(1, min(longest, total - 1) + 1):
            inside = (reach[1 : total - length] * leave[1 + length : total]).sum(axis=0)
            first = end[length - 1] * leave[length]
            last = final[length - 1] * reach[total - length]
            work += length * (inside * middle[length - 1] + first) + (length + head) * last
            ways += float(last.sum())
        return work, ways


def _cut_off(weights: Floats) -> Floats:
    return np.where(weights > 1e-130, weights, 0.0)
