"""How a gateway chooses the nodes of a session: what is shipped, and what it is compared with."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from unisono.errors import CapacityMissing, CoverageMissing
from unisono.types import NodeId
from unisono.wire.records import NodeRecord


class Walk:
    """A chain by steps from layer 0: each step picks one of the holders that can still reach the
    end, at random or in turn. Sees room, as every rule does, and neither speed nor distance."""

    def __init__(self, draw: random.Random | None) -> None:
        """`draw`: where chance comes from; None takes holders in turn."""
        self._draw = draw
        self._turns: dict[int, int] = defaultdict(int)

    def __call__(
        self,
        records: Sequence[NodeRecord],
        layer_count: int,
        positions: int,
        avoid: frozenset[NodeId],
    ) -> tuple[NodeRecord, ...]:
        """The records of one chain.

        Raises:
            CoverageMissing: some layer has no holder.
            CapacityMissing: holders exist, but no chain has room for `positions`.
        """
        holders = [r for r in records if r.node not in avoid and r.layers.count and not r.leaving]
        ahead = _ahead(holders, layer_count, positions)
        if not ahead.get(0):
            if _ahead(holders, layer_count, 0).get(0):
                raise CapacityMissing(f"no chain has room for {positions} positions")
            raise CoverageMissing("no chain of live nodes holds every layer")
        chain: list[NodeRecord] = []
        at = 0
        while at < layer_count:
            chain.append(self._pick(at, ahead[at]))
            at = chain[-1].layers.stop
        return tuple(chain)

    def _pick(self, at: int, choices: Sequence[NodeRecord]) -> NodeRecord:
        if self._draw is not None:
            return choices[self._draw.randrange(len(choices))]
        self._turns[at] += 1
        return choices[self._turns[at] % len(choices)]


def _ahead(
    holders: Sequence[NodeRecord], layer_count: int, positions: int
) -> dict[int, list[NodeRecord]]:
    """Per first layer, the holders with room from which the end can be reached."""
    found: dict[int, list[NodeRecord]] = defaultdict(list)
    for record in sorted(holders, key=lambda r: (-r.layers.start, r.node)):
        stop = record.layers.stop
        if record.free_positions >= positions and (stop == layer_count or found.get(stop)):
            found[record.layers.start].append(record)
    return found


def fewest_hops(
    records: Sequence[NodeRecord], layer_count: int, positions: int, avoid: frozenset[NodeId]
) -> tuple[NodeRecord, ...]:
    """The chain with the fewest hops; among those, the one whose busiest node is least busy,
    and then one with few sessions in all.

    Exact dynamic programming over layer boundaries. Raises as a `Walk` does.
    """
    holders = [r for r in records if r.node not in avoid and r.layers.count]
    chain = _shortest([r for r in holders if r.free_positions >= positions], layer_count)
    if chain is not None:
        return chain
    if _shortest(holders, layer_count) is not None:
        raise CapacityMissing(f"no chain has room for {positions} positions")
    raise CoverageMissing("no chain of live nodes holds every layer")


def _shortest(records: Sequence[NodeRecord], layer_count: int) -> tuple[NodeRecord, ...] | None:
    start = (0, 0, 0, "")
    best: dict[int, tuple[tuple[int, int, int, str], tuple[NodeRecord, ...]]] = {0: (start, ())}
    for record in sorted(records, key=lambda r: (r.layers.start, r.node)):
        known = best.get(record.layers.start)
        if known is None:
            continue
        (hops, load, total, _), chain = known
        load, total = max(load, record.sessions), total + record.sessions
        cost = (hops + 1, load, total, record.node)
        current = best.get(record.layers.stop)
        if current is None or cost < current[0]:
            best[record.layers.stop] = (cost, (*chain, record))
    found = best.get(layer_count)
    return found[1] if found is not None else None
