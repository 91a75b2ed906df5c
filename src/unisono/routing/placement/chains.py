"""Which nodes make a chain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from unisono.errors import CapacityMissing, CoverageMissing
from unisono.types import ModelId, NodeId
from unisono.wire.records import NodeRecord


def best_chain(
    records: Iterable[NodeRecord],
    model: ModelId,
    layer_count: int,
    positions: int,
    avoid: frozenset[NodeId] = frozenset(),
) -> tuple[NodeRecord, ...]:
    """The chain with the fewest hops; among those, the one whose busiest node is least busy,
    and then one with few sessions in all.

    Exact dynamic programming over layer boundaries.

    Raises:
        CoverageMissing: some layer has no holder.
        CapacityMissing: holders exist, but no chain has room for `positions`.
    """
    holders = [r for r in records if r.model == model and r.node not in avoid]
    fitting = [r for r in holders if r.free_positions >= positions]
    chain = _shortest(fitting, layer_count)
    if chain is not None:
        return chain
    if _shortest(holders, layer_count) is not None:
        raise CapacityMissing(
            f"every chain of nodes is full: {positions} positions are needed; try again soon"
        )
    missing = _first_gap(holders, layer_count)
    raise CoverageMissing(
        f"no live node holds layer {missing} of model {model[:12]}… "
        f"({len(holders)} nodes hold other layers): start one with "
        "'unisono node --join ADDRESS'"
    )


def _shortest(records: Sequence[NodeRecord], layer_count: int) -> tuple[NodeRecord, ...] | None:
    start = (0, 0, 0, "")
    best: dict[int, tuple[tuple[int, int, int, str], tuple[NodeRecord, ...]]] = {0: (start, ())}
    for record in sorted(records, key=lambda r: (r.layers.start, r.node)):
        known = best.get(record.layers.start)
        if known is None or not record.layers.count:
            continue
        (hops, load, total, _), chain = known
        load, total = max(load, record.sessions), total + record.sessions
        cost = (hops + 1, load, total, record.node)
        current = best.get(record.layers.stop)
        if current is None or cost < current[0]:
            best[record.layers.stop] = (cost, (*chain, record))
    found = best.get(layer_count)
    return found[1] if found is not None else None


def _first_gap(records: Sequence[NodeRecord], layer_count: int) -> int:
    """The first layer that no chain of whole blocks from layer 0 reaches."""
    reached = {0}
    for record in sorted(records, key=lambda r: r.layers.start):
        if record.layers.start in reached and record.layers.stop <= layer_count:
            reached.add(record.layers.stop)
    return min(max(reached), layer_count - 1)
