"""What best paths are compared with: rules that see room, and neither speed nor distance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from unisono.errors import CapacityMissing, CoverageMissing
from unisono.simulation.hardware import MODEL
from unisono.simulation.policies import Walk, fewest_hops
from unisono.types import LayerRange, ModelId, NodeId, PeerAddress
from unisono.wire.records import NodeRecord

LAYERS = 6


def record(number: int, start: int, stop: int, free: int = 100, sessions: int = 0) -> NodeRecord:
    node = NodeId(f"{number:064x}")
    return NodeRecord(
        node=node,
        address=PeerAddress(node, "memory", ("n:1",)),
        model=MODEL.model,
        layers=LayerRange(start, stop),
        free_positions=free,
        sessions=sessions,
        sequence=1,
        expires=1,
    )


blocks = st.lists(
    st.tuples(st.integers(0, LAYERS - 1), st.integers(1, LAYERS), st.integers(0, 3)).filter(
        lambda b: b[0] < b[1]
    ),
    max_size=12,
)


@given(blocks, st.integers(0, 3), st.one_of(st.none(), st.integers(0, 99)))
def test_a_walk_is_a_chain_with_room_whenever_there_is_one(
    held: list[tuple[int, int, int]], positions: int, seed: int | None
) -> None:
    records = [record(i, *block) for i, block in enumerate(held)]
    walk = Walk(None if seed is None else random.Random(seed))

    def exists(least: int) -> bool:
        reached = {0}
        for start, stop in sorted((a, b) for a, b, free in held if free >= least):
            if start in reached:
                reached.add(stop)
        return LAYERS in reached

    if exists(positions):
        chain = walk(records, LAYERS, positions, frozenset())
        assert (chain[0].layers.start, chain[-1].layers.stop) == (0, LAYERS)
        assert all(a.layers.stop == b.layers.start for a, b in pairwise(chain))
        assert all(hop.free_positions >= positions for hop in chain)
    else:
        with pytest.raises(CapacityMissing if exists(0) else CoverageMissing):
            walk(records, LAYERS, positions, frozenset())


def test_in_turn_means_everybody_once() -> None:
    records = [record(i, 0, LAYERS) for i in range(5)]
    walk = Walk(None)
    taken = [walk(records, LAYERS, 1, frozenset())[0].node for _ in range(10)]
    assert sorted(taken[:5]) == sorted(r.node for r in records)
    assert taken[:5] == taken[5:]


def test_who_is_avoided_or_leaves_is_left_out() -> None:
    first, second = record(0, 0, LAYERS), record(1, 0, LAYERS)
    assert Walk(None)([first, second], LAYERS, 1, frozenset({first.node})) == (second,)
    with pytest.raises(CoverageMissing):
        Walk(None)([first], LAYERS, 1, frozenset({first.node}))


def chains(records: Sequence[NodeRecord]) -> list[tuple[NodeRecord, ...]]:
    """Every chain there is, by trying them all."""
    found: list[tuple[NodeRecord, ...]] = []

    def extend(chain: tuple[NodeRecord, ...], layer: int) -> None:
        if layer == LAYERS:
            found.append(chain)
        for r in records:
            if r.layers.start == layer and layer < r.layers.stop <= LAYERS:
                extend((*chain, r), r.layers.stop)

    extend((), 0)
    return found


# Few edges, so that most draws have several chains to choose from.
edges = [(0, 2), (2, 3), (3, 6), (0, 3), (2, 6), (0, 6), (1, 6), (3, 7)]
nodes = st.lists(
    st.tuples(st.sampled_from(edges), st.sampled_from([1, 1, 1, 2, 0]), st.integers(0, 3)),
    max_size=9,
)


@settings(max_examples=300)
@given(nodes)
def test_the_chain_with_the_fewest_hops_is_the_best_of_all_chains(
    held: list[tuple[tuple[int, int], int, int]],
) -> None:
    records = [
        record(i, *layers, free=10 * room, sessions=sessions)
        for i, (layers, room, sessions) in enumerate(held)
    ]
    fitting = chains([r for r in records if r.free_positions >= 10])
    if fitting:
        got = fewest_hops(records, LAYERS, 10, frozenset())
        assert got in fitting
        best = min((len(c), max(r.sessions for r in c)) for c in fitting)
        assert (len(got), max(r.sessions for r in got)) == best
        assert got == fewest_hops(records[::-1], LAYERS, 10, frozenset())
    else:
        missing = CapacityMissing if chains(records) else CoverageMissing
        with pytest.raises(missing):
            fewest_hops(records, LAYERS, 10, frozenset())


def test_fewer_hops_come_before_less_load() -> None:
    whole = record(0, 0, LAYERS, sessions=9)
    idle = [record(1, 0, 2), record(2, 2, LAYERS)]
    assert fewest_hops([*idle, whole], LAYERS, 1, frozenset()) == (whole,)
    busier = record(3, 0, LAYERS, sessions=10)
    assert fewest_hops([busier, *idle, whole], LAYERS, 1, frozenset()) == (whole,)


def test_nodes_to_avoid_and_nodes_without_layers_are_left_out() -> None:
    whole = record(4, 0, LAYERS)
    empty = replace(whole, model=ModelId(""), layers=LayerRange(0, 0))
    halves = [record(2, 0, 2), record(3, 2, LAYERS)]
    everybody = [empty, whole, *halves]
    assert fewest_hops(everybody, LAYERS, 1, frozenset()) == (whole,)
    avoiding = frozenset({whole.node})
    assert fewest_hops(everybody, LAYERS, 1, avoiding) == tuple(halves)
    with pytest.raises(CoverageMissing):
        fewest_hops(everybody, LAYERS, 1, avoiding | {halves[1].node})
