"""A plan after nodes came or went, with as few blocks moved as possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unisono.routing.placement.cuts import cut, flow_at, work_of
from unisono.routing.placement.facts import ModelFacts, NodeFacts
from unisono.routing.placement.fleet import Fleet, Floats, Ints
from unisono.routing.placement.packing import along, sizes_for
from unisono.routing.placement.planner import cover
from unisono.routing.placement.plans import Cut, Loads, Plan, make_plan
from unisono.types import LayerRange, NodeId

_WORTH_A_MOVE = 0.01
"""A block moves only if that lowers the expected time per token by this share."""
_NEIGHBOURS = 24
_DEARER = 1.05


def repair(made: Plan, nodes: Sequence[NodeFacts], model: ModelFacts) -> Plan:
    """The plan for `nodes`, who are those of `made` without some and with some others.

    A node that is lost is replaced by one that holds the same block (nobody moves), or by one from
    outside the chains that can hold it (one moves), or its chain is given up: whatever is best at
    the plan's price, if every move must pay. Somebody who comes takes the place of the node whose
    replacement gains most, or makes a chain with nodes from outside the chains, or stands by. If
    no chain is left, the model is covered anew.
    """
    return _Repair(made, nodes, model).run()


def moved(before: Plan, after: Plan) -> tuple[NodeId, ...]:
    """The nodes of both plans that must load other layers."""
    old, new = before.blocks(), after.blocks()
    return tuple(n for n, b in new.items() if n in old and old[n] != b)


class _Repair:
    def __init__(self, made: Plan, nodes: Sequence[NodeFacts], model: ModelFacts) -> None:
        self._model, self._price = model, made.price_us
        self._fleet = Fleet(nodes, model)
        self._index = {n.node: i for i, n in enumerate(nodes)}
        self._made = made
        self._held = {n: b for n, b in made.blocks().items() if n in self._index}
        self._chains: list[Cut] = []
        self._busy: set[int] = set()
        # What a gain must be, per microsecond, for one block to move.
        self._toll = _WORTH_A_MOVE * made.token_us * model.tokens_per_second / 1e6

    def run(self) -> Plan:
        fleet, index = self._fleet, self._index
        broken = [c for c in self._made.chains if not all(n in index for n in c.nodes)]
        for chain in self._made.chains:
            if all(n in index for n in chain.nodes):
                self._take([index[n] for n in chain.nodes], [b.count for b in chain.blocks])
        for chain in broken:
            filled, worth = self._filled(chain.nodes, [b.count for b in chain.blocks])
            left = [i for i in map(self._free, chain.nodes) if i >= 0]
            if left:
                around = max(left, key=lambda i: int(fleet.middle[i]))
                regrouped, more = self._best_chain(around)
                filled = regrouped if more > worth else filled
            if filled is not None:
                self._take(*filled)
            elif left:
                self._reconsider(left)
        known = self._made.blocks()
        for node, i in index.items():
            if node not in known and i not in self._busy:
                self._welcome(i)
        if not self._chains:
            for nodes, layers in cover(fleet):
                self._take(nodes, layers)
        standby = [
            (n, self._held[n]) for n, i in index.items() if i not in self._busy and n in self._held
        ]
        return make_plan(fleet, self._chains, standby)

    def _take(self, nodes: Sequence[int], layers: Sequence[int]) -> None:
        self._chains.append((nodes, layers))
        self._busy.update(nodes)
        start = 0
        for i, count in zip(nodes, layers, strict=True):
            self._held[self._fleet.nodes[i].node] = LayerRange(start, start + count)
            start += count

    def _free(self, node: NodeId) -> int:
        """The number of a node of a broken chain; -1 if it is lost, or another broken chain was
        mended with it."""
        i = self._index.get(node, -1)
        return -1 if i in self._busy else i

    def _idle(self) -> list[int]:
        return [i for i in range(len(self._fleet)) if i not in self._busy]

    def _filled(self, names: Sequence[NodeId], layers: list[int]) -> tuple[Cut | None, float]:
        """A chain with the places of lost nodes filled, and what it is worth beyond its moves;
        nothing if it is worth nothing."""
        worth = 0.0
        chain = [self._free(n) for n in names]
        edges = [0, *np.cumsum(layers)]
        idle = self._idle()
        for place, at in enumerate(chain):
            if at >= 0:
                continue
            block = LayerRange(int(edges[place]), int(edges[place + 1]))
            best: tuple[float, int] | None = None
            fitting = [
                i
                for i in idle
                if i not in chain and self._model.fits(self._fleet.nodes[i].memory, block)
            ]
            if fitting:
                tried = np.array(
                    [[i if k == place else c for k, c in enumerate(chain)] for i in fitting]
                )
                # Places that are still empty count as this one's node, for now.
                tried = np.where(tried < 0, np.array(fitting)[:, None], tried)
                worth = self._worth(tried, layers)
                moves = np.array(
                    [self._held.get(self._fleet.nodes[i].node) != block for i in fitting]
                )
                score = worth - self._toll * moves
                k = int(score.argmax())
                best = float(score[k]), fitting[k]
            if best is None or best[0] <= 0:
                return None, 0.0
            worth, chain[place] = best
        return (chain, layers), worth

    def _reconsider(self, left: list[int]) -> None:
        """A chain is gone: what is left may be worth more at the price that this makes."""
        price = Loads(self._fleet, self._chains).price
        if price > _DEARER * self._price:
            self._price = price
            chain, worth = self._best_chain(max(left, key=lambda i: int(self._fleet.middle[i])))
            if chain is not None and worth > 0:
                self._take(*chain)

    def _welcome(self, new: int) -> None:
        fleet, model = self._fleet, self._model
        if fleet.whole[new]:
            self._take([new], [model.layers])
            return
        place, gain = self._best_place(new)
        chain, more = self._best_chain(new)
        if chain is not None and more > max(gain, 0.0):
            self._take(*chain)
        elif place is not None and gain > 0:
            at, position = place
            nodes, layers = self._chains[at]
            left = nodes[position]
            self._chains[at] = ([new if n == left else n for n in nodes], layers)
            self._busy.add(new)
            self._busy.discard(left)
            self._held[fleet.nodes[new].node] = self._held[fleet.nodes[left].node]
        else:
            self._stand_by(new)

    def _best_place(self, new: int) -> tuple[tuple[int, int] | None, float]:
        """The place in a chain where the newcomer gains most, and what it gains."""
        model, memory = self._model, self._fleet.nodes[new].memory
        best: tuple[tuple[int, int] | None, float] = None, 0.0
        by_size: dict[int, list[tuple[int, int]]] = {}
        for at, (nodes, layers) in enumerate(self._chains):
            start = 0
            for position, count in enumerate(layers):
                if len(nodes) > 1 and model.fits(memory, LayerRange(start, start + count)):
                    by_size.setdefault(len(nodes), []).append((at, position))
                start += count
        for places in by_size.values():
            old = np.array([self._chains[at][0] for at, _ in places], dtype=np.int64)
            cuts = np.array([self._chains[at][1] for at, _ in places], dtype=np.int64)
            changed = old.copy()
            changed[np.arange(len(places)), [position for _, position in places]] = new
            gains = self._worth(changed, cuts) - self._worth(old, cuts)
            k = int(gains.argmax())
            if gains[k] > best[1]:
                best = places[k], float(gains[k])
        return best

    def _best_chain(self, around: int) -> tuple[Cut | None, float]:
        """The best new chain of `around` and nodes near it that are in none, and what it is worth
        beyond its moves."""
        fleet = self._fleet
        idle = np.array([i for i in self._idle() if i != around and fleet.middle[i] >= 1])
        if not len(idle):
            return None, 0.0
        away = np.linalg.norm(fleet.place[idle] - fleet.place[around], axis=1)
        near = np.array([around, *idle[np.argsort(away, kind="stable")[:_NEIGHBOURS]]])
        best: tuple[Cut | None, float] = None, 0.0
        for key in (fleet.step[near], -fleet.middle[near], np.arange(len(near))):
            order = near[np.argsort(key, kind="stable")]
            packed = along(fleet, order, self._price, sizes_for(fleet, near))
            for nodes, value in zip(packed.chains, packed.values, strict=True):
                if around not in nodes:
                    continue
                layers = cut(fleet, nodes[None], self._price).layers[0]
                chain = [int(i) for i in nodes], [int(x) for x in layers]
                worth = value - self._toll * self._moves(*chain)
                if worth > best[1]:
                    best = chain, worth
        return best

    def _moves(self, nodes: Sequence[int], layers: Sequence[int]) -> int:
        """How many nodes hold something else than this chain would have them hold."""
        start, count = 0, 0
        for i, size in zip(nodes, layers, strict=True):
            held = self._held.get(self._fleet.nodes[i].node)
            count += held is not None and held != LayerRange(start, start + size)
            start += size
        return count

    def _stand_by(self, new: int) -> None:
        """The newcomer holds the block that it fits whose holders are the fewest."""
        counts: dict[LayerRange, int] = {}
        for block in self._held.values():
            counts[block] = counts.get(block, 0) + 1
        memory = self._fleet.nodes[new].memory
        fitting = [b for b in counts if b.count and self._model.fits(memory, b)]
        if fitting:
            block = min(fitting, key=lambda b: (counts[b], -b.count, b))
            self._held[self._fleet.nodes[new].node] = block

    def _worth(self, chains: Ints, layers: Ints | list[int]) -> Floats:
        """Value of each chain at the plan's price, cut as it is."""
        fleet = self._fleet
        cuts = np.broadcast_to(np.array(layers, dtype=np.int64), chains.shape)
        work = work_of(fleet, cuts)
        step, busy, loop = fleet.step[chains], fleet.row[chains] * work, fleet.loop(chains)
        flow = flow_at(step, busy, work, loop, self._price)
        times = loop + (step * work / (1 - busy * flow[:, None])).sum(axis=1)
        return flow * (self._price - times)
