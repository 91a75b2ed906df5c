"""What best paths are compared with: walks that see room, and neither speed nor distance."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import CapacityMissing, CoverageMissing
from unisono.simulation.hardware import MODEL
from unisono.simulation.policies import Walk
from unisono.types import LayerRange, NodeId, PeerAddress
from unisono.wire.records import NodeRecord

LAYERS = 6


def record(number: int, start: int, stop: int, free: int = 100) -> NodeRecord:
    node = NodeId(f"{number:064x}")
    return NodeRecord(
        node=node,
        address=PeerAddress(node, "memory", ("n:1",)),
        model=MODEL.model,
        layers=LayerRange(start, stop),
        free_positions=free,
        sessions=0,
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
