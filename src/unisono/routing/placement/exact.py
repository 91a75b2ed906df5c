"""The optimal chains of a few nodes.

Every chain of every set of nodes, in every order and cut, is an option with a value at a price.
Branch and bound over which options are taken together, with the Lagrangian bound: at any price σ
per token, `σ · load − Σ values of the options taken − the most that the nodes left can be worth`
is no more than the cost of any completion. The last term is an exact dynamic program over subsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from math import comb, perm
from typing import NamedTuple

import numpy as np

from unisono.routing.placement.cuts import flow_at, work_of
from unisono.routing.placement.fleet import Fleet, Floats, Ints
from unisono.routing.placement.plans import Cut, Loads

MOST_OPTIONS = 20_000
"""Beyond this many options the planner does not look for the optimum."""
_PRICES = 14
_MOST_LEAVES = 4_000


class _Options(NamedTuple):
    """Chains of k hops."""

    nodes: Ints
    layers: Ints
    masks: Ints


def optimum(fleet: Fleet, members: Ints, alone: Sequence[Cut]) -> list[Cut] | None:
    """All chains of an optimal plan, `alone` included; None if there are too many options.

    `members` serve in chains only, `alone` are the nodes that serve as whole replicas.
    """
    count, layers = len(members), fleet.model.layers
    sizes = range(2, min(count, layers, fleet.model.most_hops) + 1)
    if sum(perm(count, k) * comb(layers - 1, k - 1) for k in sizes) > MOST_OPTIONS:
        return None
    options = [made for k in sizes if (made := _options(fleet, members, k)) is not None]
    return _Search(fleet, count, options, list(alone)).run()


def _options(fleet: Fleet, members: Ints, size: int) -> _Options | None:
    layers = fleet.model.layers
    marks = [(0, *inner, layers) for inner in combinations(range(1, layers), size - 1)]
    cuts = np.diff(np.array(marks, dtype=np.int64), axis=1)
    nodes: list[Ints] = []
    found: list[Ints] = []
    masks: list[Ints] = []
    for chosen in permutations(range(len(members)), size):
        chain = members[list(chosen)]
        room = fleet.middle[chain]
        room[0], room[-1] = fleet.end[chain[0]], fleet.end[chain[-1]]
        good = cuts[(cuts <= room).all(axis=1)]
        found.append(good)
        nodes.append(np.repeat(chain[None], len(good), axis=0))
        masks.append(np.full(len(good), sum(1 << i for i in chosen)))
    if not sum(len(f) for f in found):
        return None
    return _Options(np.concatenate(nodes), np.concatenate(found), np.concatenate(masks))


class _Valued(NamedTuple):
    """All options at one price: per set of nodes (a bit mask), best first."""

    price: float
    ranked: dict[int, list[tuple[float, float, Cut]]]
    """Value, flow, and the chain."""
    most: list[float]
    """Per set of nodes, the most that disjoint options within it are worth together."""
    taken: list[int]
    """Per set of nodes, the set that an option of that best packing takes; 0 for none."""
    base: float
    """The bound before anything is taken: price · load − value of the lone nodes."""
    alone_flow: float


class _Search:
    def __init__(
        self, fleet: Fleet, count: int, options: Sequence[_Options], alone: list[Cut]
    ) -> None:
        self._fleet, self._options, self._alone = fleet, options, alone
        self._everyone = (1 << count) - 1
        self._wanted = fleet.model.tokens_per_second / 1e6
        self._best: list[Cut] = alone
        self._cost = Loads(fleet, alone).token_us * self._wanted
        self._leaves = 0

    def run(self) -> list[Cut] | None:
        """The optimum, or None if the bound leaves too many packings to try."""
        valued = self._tightest()
        self._walk(valued, self._everyone, valued.base, [])
        return None if self._leaves > _MOST_LEAVES else self._best

    def _tightest(self) -> _Valued:
        """The options at the price where the bound is highest; it is concave in the price, and its
        slope is the load not served. The best packings on the way are tried."""
        low, price = 0.0, self._fleet.model.unserved_us
        high = price
        best = self._valued(price)
        for turn in range(_PRICES):
            valued = self._valued(price) if turn else best
            packing = list(self._packing(valued))
            self._try([chain for _, chain in packing])
            if valued.base - valued.most[-1] > best.base - best.most[-1]:
                best = valued
            if valued.alone_flow + sum(flow for flow, _ in packing) > self._wanted:
                high = price
            elif turn:
                low = price
            else:
                break
            price = (low + high) / 2 if low else high / 4
        return best

    def _valued(self, price: float) -> _Valued:
        ranked: dict[int, list[tuple[float, float, Cut]]] = {}
        for made in self._options:
            value, flow = _value(self._fleet, made.nodes, made.layers, price)
            for i in np.argsort(-value, kind="stable"):
                if value[i] <= 0:
                    break
                chain = ([int(n) for n in made.nodes[i]], [int(x) for x in made.layers[i]])
                line = (float(value[i]), float(flow[i]), chain)
                ranked.setdefault(int(made.masks[i]), []).append(line)
        most, taken = [0.0] * (self._everyone + 1), [0] * (self._everyone + 1)
        for free in range(1, self._everyone + 1):
            lowest = free & -free
            most[free], taken[free] = most[free ^ lowest], 0
            for mask, lines in ranked.items():
                if mask & lowest and mask & free == mask:
                    value = lines[0][0] + most[free ^ mask]
                    if value > most[free]:
                        most[free], taken[free] = value, mask
        worth, flow = 0.0, 0.0
        if self._alone:
            nodes, layers = (np.array(x, dtype=np.int64) for x in zip(*self._alone, strict=True))
            values, flows = _value(self._fleet, nodes, layers, price)
            worth, flow = float(values.sum()), float(flows.sum())
        return _Valued(price, ranked, most, taken, price * self._wanted - worth, flow)

    def _packing(self, valued: _Valued) -> Iterator[tuple[float, Cut]]:
        """Flow and chain of the options that are worth the most together."""
        free = self._everyone
        while free:
            mask = valued.taken[free]
            if mask:
                yield valued.ranked[mask][0][1:]
            free ^= mask or free & -free

    def _try(self, chains: list[Cut]) -> None:
        cost = Loads(self._fleet, [*self._alone, *chains]).token_us * self._wanted
        if cost < self._cost:
            self._cost, self._best = cost, [*self._alone, *chains]

    def _walk(self, valued: _Valued, free: int, bound: float, chains: list[Cut]) -> None:
        """Try all packings of the nodes `free`, beside `chains`, that could beat the best."""
        if self._leaves > _MOST_LEAVES or self._hopeless(bound - valued.most[free]):
            return
        if not free:
            self._leaves += 1
            self._try(chains)
            return
        lowest = free & -free
        for mask, lines in valued.ranked.items():
            if not mask & lowest or mask & free != mask:
                continue
            for value, _, chain in lines:
                if self._hopeless(bound - value - valued.most[free ^ mask]):
                    break
                self._walk(valued, free ^ mask, bound - value, [*chains, chain])
        self._walk(valued, free ^ lowest, bound, chains)

    def _hopeless(self, bound: float) -> bool:
        return bound >= self._cost * (1 - 1e-9)


def _value(fleet: Fleet, nodes: Ints, layers: Ints, price: float) -> tuple[Floats, Floats]:
    work = work_of(fleet, layers)
    step, busy, loop = fleet.step[nodes], fleet.row[nodes] * work, fleet.loop(nodes)
    flow = flow_at(step, busy, work, loop, price)
    times = loop + (step * work / (1 - busy * flow[:, None])).sum(axis=1)
    return flow * (price - times), flow
