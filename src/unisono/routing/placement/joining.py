"""Which block a node picks by itself, and when it moves to another.

Every decision is a pure function of the records that a node knows, in integers: nodes that know the
same records agree, without asking each other. `docs/placement.md` argues why a network of such
nodes comes to rest, with every layer covered if there is memory for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from unisono.errors import ConfigurationError
from unisono.routing.placement.coverage import Coverage, Holder, holder_of, holders
from unisono.routing.placement.facts import Coordinate, ModelFacts, NodeFacts, one_way
from unisono.types import LayerRange, NodeId, digest
from unisono.wire.records import NodeRecord

INTERVAL_MS = 30_000
"""A node moves at most once in this time while every layer has a holder."""
SETTLE_MS = 5_000
"""And at most once in this time otherwise, so that its last move is known before the next."""
THRESHOLD_PER_MILLE = 200
"""A node moves only if the thinnest layer then takes this much more."""
MOVERS = 2
"""How many nodes may move in an interval, on average."""

Held = Mapping[NodeId, Holder]
NOTHING = LayerRange(0, 0)


def choose_block(records: Iterable[NodeRecord], own: NodeFacts, model: ModelFacts) -> LayerRange:
    """The block that a node which joins should hold.

    The whole model if it fits. Otherwise the block that completes chains where layers are
    thinnest: the one that leaves the thinnest layer the strongest, then the one that stands where
    layers are thinnest, then the one with the least time per layer, its links counted. If the
    node completes no chain, it continues one that others can complete.

    `records` are those of live nodes; one of the node itself is ignored.

    Raises:
        ConfigurationError: the node has no memory for a single layer.
    """
    if model.fits(own.memory, model.whole):
        return model.whole
    held = {k: h for k, h in holders(records, model).items() if k != own.node}
    coverage = Coverage(held, model)
    completing = _completing(coverage, holder_of(own, NOTHING))
    if completing is not None:
        return completing
    everyone = {**held, own.node: holder_of(own, NOTHING)}
    if not coverage.complete and _mender(everyone, model) is None:
        given = canonical_cover(everyone, model).get(own.node)
        if given is not None:
            return given
    extending = _extending(coverage, own.memory)
    if extending is None:
        raise ConfigurationError(
            f"this node offers {own.memory} bytes; one layer of the model and its keys and values "
            f"take {model.bytes_per_layer}: offer more memory, or choose a smaller model"
        )
    return extending


def should_move(
    records: Iterable[NodeRecord],
    own: NodeFacts,
    current: LayerRange,
    model: ModelFacts,
    *,
    now_ms: int,
    moved_ms: int,
    threshold_per_mille: int = THRESHOLD_PER_MILLE,
    interval_ms: int = INTERVAL_MS,
) -> LayerRange | None:
    """The block that a node should hold instead of `current`, or None to stay.

    While a layer has no holder, only those move whom the known records name: the one node that can
    close the gap alone, or all whom `canonical_cover` gives another block. Otherwise a node moves
    for a gain above the threshold, at most once per interval, and only in intervals (and the part
    of them) that a hash of its id draws for it: about `MOVERS` nodes in each. Ask every `SETTLE_MS`
    or more often, and not before the node's last move is in its record.

    `now_ms` is the network's time (all nodes draw from it), `moved_ms` when this node last chose.
    """
    waited = now_ms - moved_ms
    if waited < SETTLE_MS:
        return None
    held = {k: h for k, h in holders(records, model).items() if k != own.node}
    if model.fits(own.memory, model.whole):
        return model.whole if current != model.whole else None
    everyone: dict[NodeId, Holder] = {**held, own.node: holder_of(own, current)}
    now = Coverage(everyone, model)
    if not now.complete:
        return _mend(everyone, own.node, model)
    if waited < interval_ms or not is_drawn(own.node, now_ms, interval_ms, len(everyone)):
        return None
    return _improvement(everyone, own.node, model, threshold_per_mille)


def canonical_cover(held: Held, model: ModelFacts) -> dict[NodeId, LayerRange]:
    """A chain of as few nodes as memory allows, that depends on nothing but who is there.

    Of the nodes with the most memory (then by id), the fewest that can hold the model. The two
    that lose the fewest layers to the matrix of the ends stand there. Empty if the memory of all
    nodes does not hold the model.
    """
    per_layer, layers = model.bytes_per_layer, model.layers
    able = sorted((h for h in held.values() if h.memory >= per_layer), key=_by_memory)
    if able and model.fits(able[0].memory, model.whole):
        return {able[0].node: model.whole}
    inner = 0
    ends: list[tuple[int, int]] = []
    for index, holder in enumerate(able[:layers]):
        middle = holder.memory // per_layer
        at_end = (holder.memory - model.end_bytes) // per_layer
        inner += middle
        if at_end >= 1:
            ends = sorted([*ends, (middle - at_end, index)])[:2]
        if len(ends) == 2 and inner - ends[0][0] - ends[1][0] >= layers:
            first, last = ends[0][1], ends[1][1]
            between = [i for i in range(index + 1) if i not in (first, last)]
            return _filled([able[i] for i in (first, *between, last)], model)
    return {}


def _filled(chain: list[Holder], model: ModelFacts) -> dict[NodeId, LayerRange]:
    """Blocks as long as memory allows, in this order, and a layer at least for each node."""
    given: dict[NodeId, LayerRange] = {}
    start = 0
    for later, holder in zip(range(len(chain) - 1, -1, -1), chain, strict=True):
        stop = min(model.furthest(holder.memory, start), model.layers - later)
        given[holder.node] = LayerRange(start, stop)
        start = stop
    return given


def _by_memory(holder: Holder) -> tuple[int, NodeId]:
    return -holder.memory, holder.node


def is_drawn(node: NodeId, now_ms: int, interval_ms: int, nodes: int) -> bool:
    """Whether the node may move now: a draw per interval that anybody can repeat.

    It also says in which part of the interval, so that those drawn see each other move.
    """
    epoch, within = divmod(now_ms, interval_ms)
    drawn = digest("placement/draw", node.encode(), b"%d" % epoch)
    chance, part = (int.from_bytes(drawn[i : i + 4], "big") for i in (0, 4))
    parts = max(1, interval_ms // SETTLE_MS)
    chosen = chance * max(nodes, 2 * MOVERS) < MOVERS << 32
    return chosen and part % parts == min(parts - 1, within // SETTLE_MS)


def _improvement(
    held: Held, own: NodeId, model: ModelFacts, threshold_per_mille: int
) -> LayerRange | None:
    """A block that makes the network enough stronger, if `own` holds it instead of its block.

    Either the thinnest layer gets stronger by the threshold, or nothing gets weaker and a node
    that no chain could use comes into use.
    """
    now, current = Coverage(held, model), held[own].block
    others = Coverage({k: h for k, h in held.items() if k != own}, model)
    target = _completing(others, held[own])
    if target is None or target == current:
        return None
    moved = msgspec.structs.replace(held[own], block=target)
    then = Coverage({**held, own: moved}, model)
    if not then.complete or then.bottleneck < now.bottleneck:
        return None
    stronger = 1000 * then.bottleneck >= (1000 + threshold_per_mille) * now.bottleneck
    more = not now.useful(current) and then.useful_holders() > now.useful_holders()
    return target if stronger or more else None


def _mend(held: Held, own: NodeId, model: ModelFacts) -> LayerRange | None:
    """What `own` does about layers without a holder."""
    mender = _mender(held, model)
    if mender is not None:
        return mender[1] if mender[0] == own else None
    target = canonical_cover(held, model).get(own)
    return None if target == held[own].block else target


def _mender(held: Held, model: ModelFacts) -> tuple[NodeId, LayerRange] | None:
    """The node that closes the gap alone, if one can: it, and its new block.

    Nodes without a block come first, then those whose block no chain can use, then those with
    others beside them.
    """
    counts: dict[LayerRange, int] = {}
    for holder in held.values():
        counts[holder.block] = counts.get(holder.block, 0) + 1
    whole = Coverage(held, model)

    def order(holder: Holder) -> tuple[int, int, NodeId]:
        block = holder.block
        led = block.start in whole.forward or block.stop in whole.backward
        kind = 0 if not block.count else 1 if not led else 2 if counts[block] > 1 else 3
        return kind, -holder.memory, holder.node

    tried: set[tuple[LayerRange, int]] = set()
    for holder in sorted((h for h in held.values() if h.memory), key=order):
        # Others with the same block and less memory can do no more than this one could.
        kind, memory = order(holder)[0], holder.memory
        if any(b == holder.block and m >= memory for b, m in tried):
            continue
        tried.add((holder.block, memory))
        without = whole
        if kind == 3:
            without = Coverage({k: h for k, h in held.items() if k != holder.node}, model)
        block = _completing(without, holder)
        if block is not None:
            return holder.node, block
    return None


def _completing(coverage: Coverage, holder: Holder) -> LayerRange | None:
    """The best of the blocks that a chain could go through at once."""
    model, thin = coverage.model, coverage.layers
    before, after = _running_min(thin), _running_min(thin[::-1])[::-1]
    ending, starting = _nearest(coverage, holder.coordinate)
    best: tuple[tuple[int, ...], LayerRange] | None = None
    stops = sorted(coverage.backward)
    for start in sorted(coverage.forward):
        limit = model.furthest(holder.memory, start)
        inside, at = math.inf, start
        for stop in stops:
            if stop <= start:
                continue
            if stop > limit:
                break
            inside, at = min(inside, *thin[at:stop]), stop
            block = LayerRange(start, stop)
            outside = min(before[start], after[stop])
            least = min(outside, inside + coverage.rate(holder.row_ns, block))
            links = 1000 * (ending.get(start, 0) + starting.get(stop, 0))
            time = holder.row_ns * block.count + links
            key = (-int(least), int(inside), time // block.count, -block.count, start)
            if best is None or key < best[0]:
                best = key, block
    return best[1] if best is not None else None


def _nearest(coverage: Coverage, own: Coordinate) -> tuple[dict[int, int], dict[int, int]]:
    """Microseconds to the nearest holder that ends, and that starts, at each boundary."""
    ending: dict[int, int] = {}
    starting: dict[int, int] = {}
    for block, those in coverage.by_block.items():
        away = min(one_way(own, h.coordinate) for h in those)
        ending[block.stop] = min(away, ending.get(block.stop, away))
        starting[block.start] = min(away, starting.get(block.start, away))
    return ending, starting


def _extending(coverage: Coverage, memory: int) -> LayerRange | None:
    """The block that takes a chain the furthest from its start, for others to complete."""
    model = coverage.model
    options = [
        (stop in coverage.backward, stop - start, start, LayerRange(start, stop))
        for start in coverage.forward
        if (stop := model.furthest(memory, start)) > start
    ]
    return max(options)[-1] if options else None


def _running_min(values: list[int]) -> list[float]:
    """`result[i]` is the least of the first `i` values; infinity for none."""
    found: list[float] = [math.inf]
    for value in values:
        found.append(min(found[-1], value))
    return found
