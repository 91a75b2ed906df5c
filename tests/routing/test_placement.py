from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.records import KEYS, MODEL, record
from unisono.errors import CapacityMissing, ConfigurationError, CoverageMissing
from unisono.routing.placement import best_chain, even_blocks, vacancy
from unisono.types import LayerRange, ModelId
from unisono.wire.records import NodeRecord

LAYERS = 5


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_even_blocks_cover_each_layer_once_and_differ_by_one_at_most(cut: tuple[int, int]) -> None:
    count, parts = cut
    blocks = even_blocks(count, parts)
    assert len(blocks) == parts
    assert [i for b in blocks for i in range(b.start, b.stop)] == [*range(count)]
    assert {b.count for b in blocks} <= {count // parts, -(-count // parts)}


@pytest.mark.parametrize("parts", [0, -1, 7])
def test_more_blocks_than_layers_or_none_are_a_configuration_error(parts: int) -> None:
    with pytest.raises(ConfigurationError, match="choose between 1 and 6 nodes"):
        even_blocks(6, parts)


def test_a_newcomer_gets_the_block_with_the_fewest_holders() -> None:
    blocks = even_blocks(6, 3)
    assert vacancy(blocks, []) == blocks[0]
    assert vacancy(blocks, [blocks[0]]) == blocks[1]
    assert vacancy(blocks, [blocks[0], blocks[1], blocks[0]]) == blocks[2]
    assert vacancy(blocks, blocks) == blocks[0]
    assert vacancy(blocks, [*blocks, LayerRange(0, 6)]) == blocks[0]


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
edges = [(0, 2), (2, 3), (3, 5), (0, 3), (2, 5), (0, 5), (1, 5), (3, 6)]
nodes = st.lists(
    st.tuples(st.sampled_from(edges), st.sampled_from([1, 1, 1, 2, 0]), st.integers(0, 3)),
    max_size=9,
)


@settings(max_examples=300)
@given(nodes)
def test_the_best_chain_is_the_best_of_all_chains(
    held: list[tuple[tuple[int, int], int, int]],
) -> None:
    records = [
        record(i, *layers, free_positions=10 * room, sessions=sessions)
        for i, (layers, room, sessions) in enumerate(held)
    ]
    fitting = chains([r for r in records if r.free_positions >= 10])
    if fitting:
        got = best_chain(records, MODEL, LAYERS, 10)
        assert got in fitting
        best = min((len(c), max(r.sessions for r in c)) for c in fitting)
        assert (len(got), max(r.sessions for r in got)) == best
        assert got == best_chain(records[::-1], MODEL, LAYERS, 10)
    elif chains(records):
        with pytest.raises(CapacityMissing, match="10 positions are needed"):
            best_chain(records, MODEL, LAYERS, 10)
    else:
        with pytest.raises(CoverageMissing):
            best_chain(records, MODEL, LAYERS, 10)


@pytest.mark.parametrize(
    ("held", "missing"),
    [([], 0), ([(1, 5)], 0), ([(0, 2)], 2), ([(0, 2), (3, 5)], 2), ([(0, 2), (1, 5)], 2)],
)
def test_the_first_layer_that_no_chain_reaches_is_named(
    held: list[tuple[int, int]], missing: int
) -> None:
    records = [record(i, *layers) for i, layers in enumerate(held)]
    with pytest.raises(CoverageMissing, match=f"no live node holds layer {missing} "):
        best_chain(records, MODEL, LAYERS, 1)


def test_a_block_beyond_the_model_does_not_hide_the_gap() -> None:
    with pytest.raises(CoverageMissing, match="layer 2 "):
        best_chain([record(0, 0, 2), record(1, 0, 9)], MODEL, LAYERS, 1)


def test_fewer_hops_come_before_less_load() -> None:
    whole = record(0, 0, 5, sessions=9)
    idle = [record(1, 0, 2), record(2, 2, 5)]
    assert best_chain([*idle, whole], MODEL, LAYERS, 1) == (whole,)
    busier = record(3, 0, 5, sessions=10)
    assert best_chain([busier, *idle, whole], MODEL, LAYERS, 1) == (whole,)


def test_nodes_of_other_models_nodes_to_avoid_and_nodes_without_layers_are_left_out() -> None:
    other = record(0, 0, 5, model=ModelId("11" * 32))
    empty = record(1, 0, 0, model=ModelId(""))
    halves = [record(2, 0, 2), record(3, 2, 5)]
    whole = record(4, 0, 5)
    everybody = [other, empty, whole, *halves]
    assert best_chain(everybody, MODEL, LAYERS, 1) == (whole,)
    avoiding = frozenset({KEYS[4].node_id})
    assert best_chain(everybody, MODEL, LAYERS, 1, avoiding) == tuple(halves)
    with pytest.raises(CoverageMissing):
        best_chain(everybody, MODEL, LAYERS, 1, avoiding | {KEYS[3].node_id})
