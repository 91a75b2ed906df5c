"""Other rules of placement, and what any placement is worth under good routing."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np

from unisono.routing.placement.blocks import even_blocks
from unisono.routing.placement.fleet import Fleet, Floats
from unisono.types import LayerRange

Held = dict[int, LayerRange]

_PIECE = 20.0
"""Tokens per second that `routed` sends at once: a few per cent of what a node can take."""


def petals(fleet: Fleet, seed: int = 0) -> Held:
    """The rule of Petals: every server holds as many layers as it can, where the servers there
    are weakest: the window of layers whose sorted throughputs are smallest. Servers join in a
    random order, and then move as long as the weakest layer gains a third by it (Borzunov et al.,
    Petals, ACL 2023; its `balance_quality` of 0.75)."""
    draw = random.Random(seed)
    layers = fleet.model.layers
    strength = np.zeros(layers)
    rate = 1e6 / fleet.row
    order = [i for i in range(len(fleet)) if fleet.middle[i] >= 1]
    draw.shuffle(order)
    held: Held = {}

    def window(count: int) -> LayerRange:
        views = np.lib.stride_tricks.sliding_window_view(strength, count)
        ranked = np.sort(views, axis=1)
        start = min(range(len(ranked)), key=lambda s: (ranked[s].tolist(), s))
        return LayerRange(start, start + count)

    for i in order:
        held[i] = window(int(min(layers, fleet.middle[i])))
        strength[held[i].start : held[i].stop] += rate[i]
    moving = True
    while moving:
        moving = False
        for i in order:
            before, old = strength.min(), held[i]
            strength[old.start : old.stop] -= rate[i]
            new = window(old.count)
            strength[new.start : new.stop] += rate[i]
            if new != old and before < 0.75 * strength.min():
                held[i], moving = new, True
                continue
            strength[new.start : new.stop] -= rate[i]
            strength[old.start : old.stop] += rate[i]
    return held


def even_parts(fleet: Fleet) -> range:
    """Numbers of blocks worth trying: the fewest that half of the nodes can hold, and one more."""
    fewest = next(
        parts
        for parts in range(1, fleet.model.layers + 1)
        if np.mean(fleet.end >= fleet.model.layers / parts) >= 0.5 or parts == fleet.model.layers
    )
    return range(fewest, min(fleet.model.layers, fewest + 1) + 1)


def even_split(fleet: Fleet, parts: int) -> Held:
    """Equal blocks; each node takes the one with the fewest holders, if it fits."""
    blocks = even_blocks(fleet.model.layers, parts)
    held: Held = {}
    for i, node in enumerate(fleet.nodes):
        fitting = [b for b in blocks if fleet.model.fits(node.memory, b)]
        if fleet.whole[i]:
            held[i] = fleet.model.whole
        elif len(fitting) == len(blocks):
            held[i] = _rarest(blocks, held.values())
        elif fitting:
            held[i] = _rarest(fitting, held.values())
    return held


def _rarest(blocks: Sequence[LayerRange], held: Iterable[LayerRange]) -> LayerRange:
    """The block with the fewest holders, the first of them."""
    counts = dict.fromkeys(blocks, 0)
    for layers in held:
        if layers in counts:
            counts[layers] += 1
    return min(blocks, key=lambda block: counts[block])


def routed(fleet: Fleet, held: Held) -> float:
    """Expected microseconds per token if the target load takes the best paths.

    The load goes piece by piece over the path that is cheapest at the margin, as it stands then. A
    path may use a part of a block, and any mixture of nodes: more than the planner's chains may.
    """
    model = fleet.model
    wanted = model.tokens_per_second / 1e6
    pieces = max(60, int(model.tokens_per_second / _PIECE))
    work = np.zeros(len(fleet))
    links = lost = 0.0
    paths = _Routes(fleet, held)
    for _ in range(pieces):
        piece = wanted / pieces
        # At the margin after this piece, were it all of one layer: keeps nodes below full.
        busy = fleet.row * (work + piece * 8)
        prices = np.where(busy < 0.97, fleet.step / np.maximum(1 - busy, 0.03) ** 2, np.inf)
        cost, nodes, loop = paths.cheapest(prices)
        if cost >= model.unserved_us:
            lost += piece
            continue
        np.add.at(work, nodes, piece)
        work[nodes[-1]] += piece * model.head_work
        links += piece * loop
    busy = np.minimum(0.999, fleet.row * work)
    total = (fleet.step * work / (1 - busy)).sum() + links + lost * model.unserved_us
    return float(total / wanted)


class _Routes:
    def __init__(self, fleet: Fleet, held: Held) -> None:
        self.fleet = fleet
        self.holds = np.zeros((fleet.model.layers, len(fleet)), dtype=bool)
        for i, block in held.items():
            self.holds[block.start : block.stop, i] = True
        places = fleet.place
        square = (places**2).sum(axis=1)
        away = np.sqrt(np.maximum(square[:, None] + square - 2 * places @ places.T, 0))
        np.fill_diagonal(away, np.inf)
        self.away = away

    def cheapest(self, prices: Floats) -> tuple[float, np.ndarray, float]:
        """Cost of the cheapest path, the node of each layer on it, and its links' time."""
        fleet, layers = self.fleet, self.fleet.model.layers
        count = len(fleet)
        came = np.zeros((layers, count), dtype=np.int64)
        cost = np.where(self.holds[0], fleet.toll + prices, np.inf)
        for layer in range(1, layers):
            holders = self.holds[layer]
            reach, source = np.full(count, np.inf), np.zeros(count, dtype=np.int64)
            left = cost.copy()
            while np.isfinite(left).any():
                i = int(left.argmin())
                way = cost[i] + self.away[i]
                better = way < reach
                reach[better], source[better] = way[better], i
                left[left >= way] = np.inf
                left[i] = np.inf
            reach = reach + fleet.toll
            stay = cost <= reach
            came[layer] = np.where(stay, np.arange(count), source)
            cost = np.where(holders, np.minimum(cost, reach) + prices, np.inf)
        cost = cost + fleet.model.head_work * prices
        node = int(cost.argmin())
        total = float(cost[node])
        path = [node]
        for layer in range(layers - 1, 0, -1):
            node = int(came[layer, node])
            path.append(node)
        nodes = np.array(path[::-1])
        hops = nodes[np.flatnonzero(np.diff(nodes, prepend=-1))]
        return total, nodes, float(fleet.loop(hops[None])[0])
