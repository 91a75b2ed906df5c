"""Which layers a node holds, and which nodes make a chain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from unisono.errors import CapacityMissing, ConfigurationError, CoverageMissing
from unisono.types import LayerRange, ModelId, NodeId
from unisono.wire.records import NodeRecord


def even_blocks(layer_count: int, parts: int) -> tuple[LayerRange, ...]:
    """Cut `layer_count` layers into contiguous blocks whose sizes differ by at most one.

    The first blocks are the smaller ones: the last hop also computes the output matrix, but
    the first and the last both hold the large token matrix, and either rule is as good.

    Raises:
        ConfigurationError: fewer layers than parts.
    """
    if not 1 <= parts <= layer_count:
        raise ConfigurationError(
            f"{layer_count} layers cannot be cut into {parts} blocks: "
            f"choose between 1 and {layer_count} nodes"
        )
    edges = [layer_count * i // parts for i in range(parts + 1)]
    return tuple(LayerRange(a, b) for a, b in pairwise(edges))


def vacancy(blocks: Sequence[LayerRange], held: Iterable[LayerRange]) -> LayerRange:
    """The block with the fewest holders, the first of them."""
    counts = dict.fromkeys(blocks, 0)
    for layers in held:
        if layers in counts:
            counts[layers] += 1
    return min(blocks, key=lambda block: counts[block])


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
