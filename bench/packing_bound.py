"""A bound for placements into chains of few hops, proven by trying every chain.

At a price per token, placing is a packing: chains with values, and every node in one of them at
most. Its linear relaxation is solved over all chains of up to `hops` nodes in every order (HiGHS,
with chains added until none is worth more than the prices of its nodes). Its value is the
most that any packing can be worth, so `price · load` minus it is the least cost of any placement
(Lagrange). Cuts of single chains are those that the planner would make.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from unisono.routing.placement.cuts import cut
from unisono.routing.placement.fleet import Fleet, Floats, Ints

_AT_ONCE = 50_000
_FIRST = 8
"""Chains of each node that the linear program starts with."""


def packing_bound(fleet: Fleet, price: float, hops: int) -> float:
    """Least expected microseconds per token of chains of up to `hops` nodes.

    Raises:
        ImportError: HiGHS is not installed.
    """
    members = np.flatnonzero(~fleet.whole & (fleet.middle >= 1))
    chains, values = _all_chains(fleet, members, price, hops)
    alone = np.flatnonzero(fleet.whole)[:, None]
    worth = float(cut(fleet, alone, price).value.sum()) if len(alone) else 0.0
    wanted = fleet.model.tokens_per_second / 1e6
    return (price * wanted - worth - _most(len(fleet), chains, values)) / wanted


def _all_chains(fleet: Fleet, members: Ints, price: float, hops: int) -> tuple[Ints, Floats]:
    """Sets of nodes [M, hops] (filled up with −1) that are worth something, and how much."""
    sets: list[Ints] = []
    worths: list[Floats] = []
    for size in range(2, hops + 1):
        index = _sets(fleet, members, price, size)
        for begin in range(0, len(index), _AT_ONCE):
            some = index[begin : begin + _AT_ONCE]
            best = np.zeros(len(some))
            for order in permutations(range(size)):
                best = np.maximum(best, cut(fleet, some[:, order], price).value)
            good = best > 0
            filled = np.full((int(good.sum()), hops), -1)
            filled[:, :size] = some[good]
            sets.append(filled)
            worths.append(best[good])
    return np.concatenate(sets), np.concatenate(worths)


def _sets(fleet: Fleet, members: Ints, price: float, size: int) -> Ints:
    """All sets of `size` members whose memory suffices and whose links alone cost less than the
    price: others are worth nothing."""
    places, toll = fleet.place[members], fleet.toll[members]
    found = np.arange(len(members))[:, None]
    square = (places**2).sum(axis=1)
    away = np.sqrt(np.maximum(square[:, None] + square - 2 * places @ places.T, 0))
    for _ in range(size - 1):
        grown: list[Ints] = []
        for begin in range(0, len(found), _AT_ONCE // 10):
            some = found[begin : begin + _AT_ONCE // 10]
            # A loop is at least twice as long as the distance of any two of its nodes.
            longest = np.max([away[some[:, k]] for k in range(some.shape[1])], axis=0)
            links = 2 * longest + toll[some].sum(axis=1)[:, None] + toll
            later = np.arange(len(members)) > some[:, -1:]
            row, more = np.nonzero(later & (links < price))
            grown.append(np.concatenate([some[row], more[:, None]], axis=1))
        found = np.concatenate(grown)
    room = fleet.middle[members][found].sum(axis=1)
    return members[found[room >= fleet.model.layers]]


def _most(count: int, chains: Ints, values: Floats) -> float:
    """The value of the linear program: an upper bound, whatever the solver's tolerance."""
    first: list[Ints] = []
    for node in range(count):
        its = np.flatnonzero((chains == node).any(axis=1))
        first.append(its[np.argsort(-values[its])[:_FIRST]])
    known = np.unique(np.concatenate(first))
    prices = np.zeros(count + 1)  # the last one is of the filling
    for _ in range(100):
        prices[:count] = _solved(count, chains[known], values[known])
        excess = values - prices[chains].sum(axis=1)
        beating = np.flatnonzero(excess > 1e-6)
        if not len(beating):
            break
        known = np.union1d(known, beating[np.argsort(-excess[beating])[:20_000]])
    # If prices still fall short somewhere, every node pays half of that more: chains have two.
    short = max(0.0, float((values - prices[chains].sum(axis=1)).max()))
    return float(prices.sum() + count * short / 2)


def _solved(count: int, chains: Ints, values: Floats) -> Floats:
    """Prices of the nodes in an optimal solution over these chains."""
    import highspy

    sizes = (chains >= 0).sum(axis=1)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(chains), count
    lp.col_cost_ = -values
    lp.col_lower_ = np.zeros(len(chains))
    lp.col_upper_ = np.full(len(chains), highspy.kHighsInf)
    lp.row_lower_ = np.full(count, -highspy.kHighsInf)
    lp.row_upper_ = np.ones(count)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(sizes)])
    lp.a_matrix_.index_ = chains[chains >= 0]
    lp.a_matrix_.value_ = np.ones(int(sizes.sum()))
    solver = highspy.Highs()
    solver.silent()
    solver.setOptionValue("threads", 1)
    solver.passModel(lp)
    solver.run()
    return np.maximum(0.0, -np.array(solver.getSolution().row_dual))
