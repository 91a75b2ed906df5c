"""Which node holds which layers, for a whole network at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unisono.routing.placement.coverage import Holder
from unisono.routing.placement.cuts import cut
from unisono.routing.placement.exact import optimum
from unisono.routing.placement.exchange import Exchange
from unisono.routing.placement.facts import ModelFacts, NodeFacts
from unisono.routing.placement.fleet import Fleet, Ints
from unisono.routing.placement.joining import canonical_cover
from unisono.routing.placement.packing import Packed, along, arranged, orders, sizes_for
from unisono.routing.placement.plans import Cut, Loads, Plan, make_plan
from unisono.routing.placement.spares import stand_by
from unisono.types import LayerRange

_PRICE_STEPS = 14
_ROUNDS = 40
_EFFORT = 32_000
"""Exchanges tried: what a second or so allows."""


def plan(nodes: Sequence[NodeFacts], model: ModelFacts) -> Plan:
    """The placement with the least expected time per token at the model's target load.

    Nodes that can hold the whole model do, and serve alone. The others form chains: optimal ones
    if there are few (`exact.optimum`), otherwise by a dynamic program along orders of the nodes
    and exchanges of nodes between chains (`packing`, `exchange`). Nodes that are in no chain hold
    a block of one ready. `docs/placement.md` states the problem.

    The same nodes in the same order give the same plan. Without enough memory for the model in
    all nodes the plan has no chain, and serves nothing.
    """
    fleet = Fleet(nodes, model)
    alone = [([int(i)], [model.layers]) for i in np.flatnonzero(fleet.whole)]
    members = np.flatnonzero(~fleet.whole & (fleet.middle >= 1))
    cuts = optimum(fleet, members, alone)
    if cuts is None:
        cuts = [*alone, *_chains(fleet, members, alone)]
    cuts = used(fleet, cuts) or cover(fleet)
    return make_plan(fleet, cuts, stand_by(fleet, cuts))


def used(fleet: Fleet, cuts: list[Cut]) -> list[Cut]:
    """The chains without those that the target load leaves idle; lone nodes stay."""
    flow = Loads(fleet, cuts).flow
    return [c for c, x in zip(cuts, flow, strict=True) if x > 0 or len(c[0]) == 1]


def cover(fleet: Fleet) -> list[Cut]:
    """The one chain of as few nodes as possible, or none: where no chain is worth its time, one
    still is better than none."""
    index = {n.node: i for i, n in enumerate(fleet.nodes)}
    held = {
        n.node: Holder(n.node, LayerRange(0, 0), n.memory, 0, (0, 0, 0, 0)) for n in fleet.nodes
    }
    given = sorted(canonical_cover(held, fleet.model).items(), key=lambda item: item[1])
    return [([index[n] for n, _ in given], [b.count for _, b in given])] if given else []


def _chains(fleet: Fleet, members: Ints, alone: Sequence[Cut]) -> list[Cut]:
    sizes = sizes_for(fleet, members)
    wanted = fleet.model.tokens_per_second / 1e6
    ways = orders(fleet, members)
    low, high = 0.0, fleet.model.unserved_us
    price, packed = high, along(fleet, ways[0], high, sizes)
    lone = np.array([nodes for nodes, _ in alone], dtype=np.int64).reshape(-1, 1)

    def flow_of(packed: Packed, price: float) -> float:
        return sum(packed.flows) + float(cut(fleet, lone, price).flow.sum())

    if flow_of(packed, price) > wanted:
        for _ in range(_PRICE_STEPS):
            price = (low * high) ** 0.5 if low else high / 8
            packed = along(fleet, ways[0], price, sizes)
            off = flow_of(packed, price) / wanted - 1
            if abs(off) < 0.02:
                break
            low, high = (low, price) if off > 0 else (price, high)
    best = max(
        (packed, *(along(fleet, way, price, sizes) for way in ways[1:])),
        key=lambda found: sum(found.values),
    )
    better = Exchange(fleet, members, best, price)
    better.run(_ROUNDS, max(500, _EFFORT // _ROUNDS))
    return cut_all(fleet, better.chains, price)


def cut_all(fleet: Fleet, chains: Sequence[Sequence[int]], price: float) -> list[Cut]:
    """Each chain turned and cut for the price."""
    found: list[Cut] = []
    for size in sorted({len(c) for c in chains}):
        same = arranged(fleet, np.array([c for c in chains if len(c) == size], dtype=np.int64))
        made = cut(fleet, same, price)
        found += [
            ([int(i) for i in nodes], [int(x) for x in layers])
            for nodes, layers in zip(same, made.layers, strict=True)
            if layers.any()
        ]
    return found
