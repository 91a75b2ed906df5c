"""A placement, and what it is worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec
import numpy as np

from unisono.routing.placement.cuts import flow_at
from unisono.routing.placement.facts import ModelFacts
from unisono.routing.placement.fleet import Fleet, Floats
from unisono.types import LayerRange, NodeId


class Chain(msgspec.Struct, frozen=True):
    """Nodes that serve requests together, first hop first."""

    nodes: tuple[NodeId, ...]
    blocks: tuple[LayerRange, ...]
    tokens_per_second: float = 0.0
    """Its share of the target load."""
    token_us: float = 0.0
    """Microseconds per token under that share."""


class Plan(msgspec.Struct, frozen=True):
    """Which node holds which layers."""

    chains: tuple[Chain, ...]
    standby: tuple[tuple[NodeId, LayerRange], ...]
    """Nodes beyond the chains, and the block of some chain that each holds ready."""
    token_us: float
    """Expected microseconds per token at the target load; one without room counts as
    `ModelFacts.unserved_us`."""
    served: float
    """The share of the target load that there is room for."""
    price_us: float
    """What one more token would cost."""

    def blocks(self) -> dict[NodeId, LayerRange]:
        """The block of every node that holds one."""
        held = dict(self.standby)
        for chain in self.chains:
            held.update(zip(chain.nodes, chain.blocks, strict=True))
        return held


Cut = tuple[Sequence[int], Sequence[int]]
"""A chain as node indices and layers per node."""


class Loads:
    """How a load is spread over chains at the least expected time: all that are used cost the
    same for one more token."""

    def __init__(self, fleet: Fleet, cuts: Sequence[Cut]) -> None:
        width = max((len(nodes) for nodes, _ in cuts), default=1)
        shape = (len(cuts), width)
        self.work, self.step, self.row = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.loop = np.zeros(len(cuts))
        for i, (nodes, layers) in enumerate(cuts):
            index, size = np.array(nodes, dtype=np.int64), len(nodes)
            self.work[i, :size] = layers
            self.work[i, size - 1] += fleet.model.head_work
            self.step[i, :size], self.row[i, :size] = fleet.step[index], fleet.row[index]
            self.loop[i] = fleet.loop(index[None])[0]
        model = fleet.model
        wanted = model.tokens_per_second / 1e6
        self.price = model.unserved_us
        self.flow = self._at(self.price)
        if self.flow.sum() > wanted:
            self.price, self.flow = self._spread(wanted)
        busy = self.row * self.work * self.flow[:, None]
        self.times: Floats = self.loop + (self.step * self.work / (1 - busy)).sum(axis=1)
        served = float(self.flow.sum())
        self.served = min(1.0, served / wanted)
        lost = max(0.0, wanted - served) * model.unserved_us
        self.token_us = float((self.flow @ self.times + lost) / wanted)

    def _spread(self, wanted: float) -> tuple[float, Floats]:
        """The price at which all chains together take `wanted`, and their flows: by false
        position with the Illinois rule, kept in an interval that always holds the root."""
        low, high = 0.0, self.price
        below, above = -wanted, float(self.flow.sum()) - wanted
        price, flow, side = high, self.flow, 0
        for turn in range(80):
            by_rule = high - above * (high - low) / (above - below)
            price = by_rule if turn % 3 else (low + high) / 2
            flow = self._at(price)
            off = float(flow.sum()) - wanted
            if abs(off) < 1e-9 * wanted or high - low < 1e-9 * high:
                break
            if off > 0:
                high, above = price, off
                below = below / 2 if side > 0 else below
                side = 1
            else:
                low, below = price, off
                above = above / 2 if side < 0 else above
                side = -1
        total = float(flow.sum())
        return price, flow * (wanted / total) if total > 0 else flow

    def _at(self, price: float) -> Floats:
        if not len(self.loop):
            return np.zeros(0)
        return flow_at(self.step, self.row * self.work, self.work, self.loop, price)


def make_plan(
    fleet: Fleet, cuts: Sequence[Cut], standby: Iterable[tuple[NodeId, LayerRange]] = ()
) -> Plan:
    """The plan that consists of these chains, with the target load spread over them."""
    loads = Loads(fleet, cuts)
    chains: list[Chain] = []
    for (nodes, layers), flow, time in zip(cuts, loads.flow, loads.times, strict=True):
        edges = [int(x) for x in np.cumsum([0, *layers])]
        blocks = tuple(LayerRange(a, b) for a, b in pairwise(edges))
        names = tuple(fleet.nodes[i].node for i in nodes)
        chains.append(Chain(names, blocks, float(flow) * 1e6, float(time)))
    return Plan(tuple(chains), tuple(standby), loads.token_us, loads.served, loads.price)


def cuts_of(fleet: Fleet, chains: Iterable[Chain]) -> list[Cut]:
    """Chains as indices into `fleet`.

    Raises:
        KeyError: a chain has a node that the fleet does not.
    """
    index = {n.node: i for i, n in enumerate(fleet.nodes)}
    return [([index[n] for n in c.nodes], [b.count for b in c.blocks]) for c in chains]


def check_plan(made: Plan, nodes: Iterable[tuple[NodeId, int]], model: ModelFacts) -> str | None:
    """Which constraint a plan breaks, given (node, memory) of all nodes; None if it is sound."""
    memory = dict(nodes)
    seen: set[NodeId] = set()
    for chain in made.chains:
        edges = [0, *(b.stop for b in chain.blocks)]
        if [b.start for b in chain.blocks] != edges[:-1] or edges[-1] != model.layers:
            return f"the blocks {chain.blocks} do not make the model"
    for node, block in [
        *made.standby,
        *((n, b) for c in made.chains for n, b in zip(c.nodes, c.blocks, strict=True)),
    ]:
        if node in seen:
            return f"node {node[:8]} has two blocks"
        seen.add(node)
        if node not in memory or not model.fits(memory[node], block):
            return f"block {block} does not fit on node {node[:8]}"
        if not block.count:
            return f"node {node[:8]} has an empty block"
    return None
