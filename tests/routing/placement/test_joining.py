from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.placement.network import Network, facts, model_of, node_id, record_of
from unisono.errors import ConfigurationError
from unisono.routing.placement import ModelFacts, choose_block, should_move
from unisono.routing.placement.coverage import holders
from unisono.routing.placement.joining import canonical_cover
from unisono.types import LayerRange

MODEL = model_of(8)
HEADED = model_of(8, head_bytes=10)


def enough(memories: list[int], model: ModelFacts) -> bool:
    """Whether some chain of these nodes can hold the model: by trying every pair of ends."""
    if any(model.fits(m, model.whole) for m in memories):
        return True
    middle = [m // model.bytes_per_layer for m in memories]
    ends = [(m - model.end_bytes) // model.bytes_per_layer for m in memories]
    return any(
        i != j
        and min(ends[i], ends[j]) >= 1
        and ends[i] + ends[j] + sum(c for k, c in enumerate(middle) if k not in (i, j))
        >= model.layers
        for i in range(len(memories))
        for j in range(len(memories))
    )


memories = st.lists(st.integers(0, 90), min_size=1, max_size=9)
blocks = st.integers(0, 8).flatmap(lambda a: st.tuples(st.just(a), st.integers(a, 8)))


@given(memories, st.sampled_from([MODEL, HEADED]))
def test_the_canonical_cover_exists_exactly_if_memory_suffices(
    memories: list[int], model: ModelFacts
) -> None:
    own = {f.node: f for f in (facts(i, m) for i, m in enumerate(memories))}
    records = [record_of(f, LayerRange(0, 0), model) for f in own.values()]
    cover = canonical_cover(holders(records, model), model)
    assert bool(cover) == enough(memories, model)
    held = sorted(cover.values())
    assert [x for b in held for x in range(b.start, b.stop)] == [*range(8)] * bool(cover)
    assert all(model.fits(own[node].memory, block) for node, block in cover.items())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(10, 90), blocks, st.integers(1, 9)), min_size=1, max_size=9),
    st.sampled_from([MODEL, HEADED]),
)
def test_from_any_state_a_network_comes_to_rest_and_covers_every_layer(
    drawn: list[tuple[int, tuple[int, int], int]], model: ModelFacts
) -> None:
    network = Network(model)
    for i, (memory, block, speed) in enumerate(drawn):
        wanted = LayerRange(*block)
        held = wanted if model.fits(memory, wanted) and wanted.count else LayerRange(0, 0)
        network.join(facts(i, memory, row_us=100.0 * speed), held)
    network.settle()
    assert network.coverage.complete == enough([m for m, _, _ in drawn], model)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(25, 60), min_size=2, max_size=10), st.randoms(use_true_random=False))
def test_nodes_that_join_one_by_one_cover_the_model_and_losses_are_mended(
    memories: list[int], random: object
) -> None:
    network = Network(HEADED)
    for i, memory in enumerate(memories):
        network.join(facts(i, memory))
        network.step()
    network.settle()
    assert network.coverage.complete == enough(memories, HEADED)
    gone = random.randrange(len(memories))  # type: ignore[attr-defined]
    network.leave(node_id(gone))
    network.settle()
    left = [m for i, m in enumerate(memories) if i != gone]
    assert network.coverage.complete == enough(left, HEADED)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(25, 70), min_size=4, max_size=12), st.integers(0, 1 << 12))
def test_after_a_partition_heals_the_network_rests_again_with_everything_covered(
    memories: list[int], sides: int
) -> None:
    whole = Network(MODEL)
    for i, memory in enumerate(memories):
        whole.join(facts(i, memory))
    whole.settle()
    halves = [Network(MODEL, now_ms=whole.now_ms), Network(MODEL, now_ms=whole.now_ms)]
    for i in range(len(memories)):
        side, key = halves[sides >> i & 1], node_id(i)
        side.join(whole.nodes[key], whole.blocks[key])
    for side in halves:
        side.settle()
        if side.nodes:
            parts = [f.memory for f in side.nodes.values()]
            assert side.coverage.complete == enough(parts, MODEL)
    healed = Network(MODEL, now_ms=max(h.now_ms for h in halves))
    for side in halves:
        for key, own in side.nodes.items():
            healed.join(own, side.blocks[key])
    healed.settle()
    assert healed.coverage.complete == enough(memories, MODEL)


def test_a_node_that_can_hold_the_whole_model_does() -> None:
    assert choose_block([], facts(0, 80), MODEL) == LayerRange(0, 8)
    held = [record_of(facts(1, 40), LayerRange(0, 4), MODEL)]
    assert choose_block(held, facts(0, 80), MODEL) == LayerRange(0, 8)
    moved = should_move(held, facts(0, 80), LayerRange(4, 8), MODEL, now_ms=10**6, moved_ms=0)
    assert moved == LayerRange(0, 8)


def test_the_first_node_takes_the_first_layers_and_the_next_one_the_rest() -> None:
    network = Network(MODEL)
    network.join(facts(0, 50))
    network.join(facts(1, 50))
    assert sorted(network.blocks.values()) == [LayerRange(0, 5), LayerRange(5, 8)]


def test_a_newcomer_strengthens_the_thinnest_layers() -> None:
    network = Network(MODEL)
    network.join(facts(0, 50, row_us=100.0), LayerRange(0, 4))
    network.join(facts(1, 50, row_us=900.0), LayerRange(4, 8))
    network.join(facts(2, 50))
    assert network.blocks[node_id(2)] == LayerRange(4, 8)


def test_among_equals_the_nearer_chain_wins() -> None:
    network = Network(MODEL)
    near, far = (0, 0, 0, 0), (90_000, 0, 0, 0)
    for i, (cut, place) in enumerate([((0, 4), far), ((4, 8), far), ((0, 3), near), ((3, 8), far)]):
        network.join(facts(i, 50, coordinate=place), LayerRange(*cut))
    network.join(facts(9, 50, coordinate=near))
    assert network.blocks[node_id(9)] == LayerRange(3, 8)


def test_a_node_without_memory_for_a_layer_is_told_so() -> None:
    with pytest.raises(ConfigurationError, match="offers 9 bytes"):
        choose_block([], facts(0, 9), MODEL)


def test_a_small_gain_moves_nobody_and_a_large_one_does() -> None:
    def moves(thin: int) -> int:
        network = Network(MODEL)
        for i in range(4):
            network.join(facts(i, 40), LayerRange(0, 4))
        for i in range(thin):
            network.join(facts(10 + i, 40), LayerRange(4, 8))
        return network.settle()

    assert moves(4) == moves(3) == 0
    assert moves(1) in (1, 2)  # two may be drawn for one moment


def test_a_node_without_a_block_takes_one_though_the_weakest_layer_gains_nothing() -> None:
    network = Network(MODEL)
    for i, block in enumerate([(0, 4), (4, 8), (0, 4)]):
        network.join(facts(i, 40), LayerRange(*block))
    network.join(facts(3, 40, row_us=5e4), LayerRange(0, 0))
    network.settle()
    assert network.blocks[node_id(3)] == LayerRange(4, 8)


def test_a_node_moves_at_most_once_in_an_interval() -> None:
    network = Network(MODEL)
    for i in range(12):
        network.join(facts(i, 40), LayerRange(0, 4) if i else LayerRange(4, 8))
    last: dict[object, int] = {}
    for _ in range(400):
        before = dict(network.blocks)
        network.step()
        for key, block in network.blocks.items():
            if block != before[key]:
                assert network.now_ms - last.get(key, 0) >= 30_000
                last[key] = network.now_ms
    assert 4 <= sum(b == LayerRange(4, 8) for b in network.blocks.values()) <= 8
