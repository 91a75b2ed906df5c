from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.records import KEYS, MODEL, record
from unisono.clock import VirtualClock
from unisono.errors import CapacityMissing, CoverageMissing, NetworkUnreachable
from unisono.routing import paths
from unisono.routing.costs import Costs
from unisono.routing.links import Links
from unisono.routing.load import Load
from unisono.routing.paths import best_path, ranked_paths, standbys
from unisono.routing.reputation import Deed, Reputation
from unisono.types import ModelId, NodeId, PeerAddress
from unisono.wire.records import NodeRecord

LAYERS = 5


def costs_of(*, prompt: int = 10, tokens: int = 20, **more: Any) -> Costs:
    clock = VirtualClock()
    known: dict[str, Any] = {
        "links": Links(),
        "load": Load(clock),
        "reputation": Reputation(clock),
    }
    return Costs(prompt=prompt, tokens=tokens, **(known | more))


def best(records: Sequence[NodeRecord], costs: Costs | None = None) -> tuple[NodeRecord, ...]:
    return best_path(records, MODEL, LAYERS, 1, costs or costs_of())


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


def seconds(chain: Sequence[NodeRecord], costs: Costs) -> float:
    """What a chain costs, hop by hop and link by link, as the definition has it."""
    links = costs.links
    total = links.time(None, chain[0]) + links.time(chain[-1], None)
    for r in chain:
        total += float(costs.hops([r], LAYERS)[0]) + costs.opening_trips * links.round_trip(r)
    for a, b in pairwise(chain):
        total += (costs.loops + 1) * links.time(a, b)
        total += (costs.loops + costs.prompt) * costs.row_bytes / links.bandwidth(a)
    if len(chain) > 1:
        total += costs.loops * links.time(chain[-1], chain[0])
    return total


# Few edges, so that most draws have several chains to choose from.
edges = [(0, 2), (2, 3), (3, 5), (0, 3), (2, 5), (0, 5), (1, 5), (3, 6)]
places = st.tuples(*(st.integers(0, 40_000),) * 3, st.integers(0, 5000))
nodes = st.lists(
    st.fixed_dictionaries(
        {
            "layers": st.sampled_from(edges),
            "free_positions": st.sampled_from([10, 10, 10, 20, 0]),
            "sessions": st.integers(0, 3),
            "step_us": st.integers(0, 30_000),
            "row_us": st.integers(0, 300),
            "queue": st.integers(0, 200),
            "bandwidth": st.sampled_from([0, 100_000, 10**8]),
            "coordinate": places,
            "leaving": st.sampled_from([False] * 9 + [True]),
        }
    ),
    max_size=12,
)
pings = st.lists(st.tuples(st.integers(0, 11), st.floats(0.001, 0.2)), max_size=10)


@settings(max_examples=400, deadline=None)
@given(nodes, pings, st.integers(1, 300))
def test_the_best_path_is_the_cheapest_of_all_chains(
    held: list[dict[str, Any]], pinged: list[tuple[int, float]], tokens: int
) -> None:
    records = [record(i, *h.pop("layers"), **h) for i, h in enumerate(held)]
    costs = costs_of(tokens=tokens)
    for node, trip in pinged:
        costs.links.pinged(KEYS[node].node_id, trip)
    fitting = chains([r for r in records if r.free_positions >= 10 and not r.leaving])
    if fitting:
        got = best_path(records, MODEL, LAYERS, 10, costs)
        assert got in fitting
        least = min(seconds(c, costs) for c in fitting)
        assert seconds(got, costs) == pytest.approx(least, rel=1e-9)
        assert got == best_path(records[::-1], MODEL, LAYERS, 10, costs)
    elif chains([r for r in records if not r.leaving]):
        with pytest.raises(CapacityMissing, match="10 positions are needed"):
            best_path(records, MODEL, LAYERS, 10, costs)
    else:
        with pytest.raises(CoverageMissing if records else NetworkUnreachable):
            best_path(records, MODEL, LAYERS, 10, costs)


@pytest.mark.parametrize("seed", range(3))
def test_the_return_link_is_part_of_the_choice_among_many_first_hops(seed: int) -> None:
    """Two dozen nodes over the globe in two blocks: every pair is tried."""
    rng = random.Random(seed)
    records = [
        record(
            i,
            *((0, 3) if i % 2 else (3, 5)),
            step_us=rng.randrange(1000, 3000),
            coordinate=(*(rng.randrange(-80_000, 80_000) for _ in range(3)), 2000),
        )
        for i in range(24)
    ]
    costs = costs_of(tokens=100)
    least = min(seconds(c, costs) for c in chains(records))
    assert seconds(best(records, costs), costs) == pytest.approx(least, rel=1e-9)


def test_a_cycle_that_is_short_both_ways_beats_a_chain_of_short_links() -> None:
    """Going there in three short links and coming back in one long one is no gain."""
    far = [
        record(0, 0, 2, coordinate=(1, 0, 0, 0)),
        record(1, 2, 3, coordinate=(50_000, 0, 0, 0)),
        record(2, 3, 5, coordinate=(100_000, 0, 0, 0)),
    ]
    near = record(3, 3, 5, coordinate=(1, 1, 0, 0))
    costs = costs_of(tokens=1000)
    assert best([*far, near], costs) == (far[0], far[1], near)


@pytest.mark.parametrize(
    ("held", "missing"),
    [([(1, 5)], 0), ([(0, 2)], 2), ([(0, 2), (3, 5)], 2), ([(0, 2), (1, 5)], 2)],
)
def test_the_first_layer_that_no_chain_reaches_is_named(
    held: list[tuple[int, int]], missing: int
) -> None:
    records = [record(i, *layers) for i, layers in enumerate(held)]
    with pytest.raises(CoverageMissing, match=f"no live node holds layer {missing} "):
        best(records)


def test_no_network_no_holder_and_no_room_are_three_errors() -> None:
    with pytest.raises(NetworkUnreachable, match="no node is known"):
        best([])
    with pytest.raises(CoverageMissing):
        best([record(0, 0, 5, model=ModelId("11" * 32))])
    with pytest.raises(CapacityMissing):
        best([record(0, 0, 5, free_positions=0)])


def test_a_block_beyond_the_model_does_not_hide_the_gap() -> None:
    with pytest.raises(CoverageMissing, match="layer 2 "):
        best([record(0, 0, 2), record(1, 0, 9)])


def test_equal_nodes_in_one_piece_beat_those_in_two() -> None:
    whole = record(0, 0, 5, sessions=1)
    assert best([record(1, 0, 2), record(2, 2, 5), whole]) == (whole,)


def test_two_fast_hops_close_together_beat_one_that_is_overrun() -> None:
    whole = record(0, 0, 5, sessions=200, step_us=10_000)
    halves = [
        record(1, 0, 2, step_us=4000, coordinate=(100, 0, 0, 0)),
        record(2, 2, 5, step_us=6000, coordinate=(0, 100, 0, 0)),
    ]
    assert best([*halves, whole], costs_of(tokens=100)) == tuple(halves)


def test_nodes_of_other_models_to_avoid_leaving_and_without_layers_are_left_out() -> None:
    other = record(0, 0, 5, model=ModelId("11" * 32))
    empty = record(1, 0, 0, model=ModelId(""))
    halves = [record(2, 0, 2), record(3, 2, 5)]
    whole = record(4, 0, 5)
    leaving = record(5, 0, 5, leaving=True, step_us=1)
    everybody = [other, empty, whole, leaving, *halves]
    assert best(everybody) == (whole,)
    avoiding = frozenset({KEYS[4].node_id})
    assert best_path(everybody, MODEL, LAYERS, 1, costs_of(), avoiding) == tuple(halves)
    with pytest.raises(CoverageMissing):
        best_path(everybody, MODEL, LAYERS, 1, costs_of(), avoiding | {KEYS[3].node_id})


def test_sessions_that_no_record_knows_of_yet_spread_over_equal_nodes() -> None:
    records = [record(i, 0, 5, step_us=10_000) for i in range(4)]
    costs = costs_of()
    for _ in range(12):
        costs.load.open(best(records, costs), 1)
    assert [costs.load.own(r.node) for r in records] == [3, 3, 3, 3]


def test_own_sessions_fill_a_node_before_its_record_says_so() -> None:
    only = record(0, 0, 5, free_positions=25)
    costs = costs_of()
    for _ in range(2):
        costs.load.open(best_path([only], MODEL, LAYERS, 10, costs), 10)
    with pytest.raises(CapacityMissing):
        best_path([only], MODEL, LAYERS, 10, costs)


def test_a_slow_node_gets_sessions_when_the_fast_ones_are_as_slow() -> None:
    fast, slow = record(0, 0, 5, step_us=10_000), record(1, 0, 5, step_us=40_000)
    costs = costs_of(prompt=1)
    taken = 0
    while best([fast, slow], costs) == (fast,):
        costs.load.open((fast,), 1)
        taken += 1
    assert 13 <= taken <= 16  # 1 + 0.1 n steps, and what n others lose, are 4 steps

    selfish = costs_of(prompt=1, charity=0.0)
    taken = 0
    while best([fast, slow], selfish) == (fast,):
        selfish.load.open((fast,), 1)
        taken += 1
    assert 28 <= taken <= 31


def test_rows_that_wait_and_rows_to_read_decide_when_the_prompt_is_long() -> None:
    busy = record(0, 0, 5, step_us=9000, row_us=200, queue=4000)
    idle = record(1, 0, 5, step_us=10_000, row_us=200)
    assert best([busy, idle], costs_of(prompt=500, tokens=10)) == (idle,)
    assert best([busy, idle], costs_of(prompt=500, tokens=2000)) == (busy,)


def test_a_node_that_holds_the_prefix_is_taken_while_reading_it_costs_more_than_the_crowd() -> None:
    knows = record(0, 0, 5, step_us=10_000, row_us=400)
    other = record(1, 0, 5, step_us=9500, row_us=400)
    held = {knows.node: 960}
    assert best([knows, other], costs_of(prompt=1000, tokens=50)) == (other,)
    assert best([knows, other], costs_of(prompt=1000, tokens=50, held=held)) == (knows,)
    crowded = record(0, 0, 5, step_us=10_000, row_us=400, sessions=30)
    assert best([crowded, other], costs_of(prompt=1000, tokens=50, held=held)) == (other,)


def test_the_chain_that_holds_the_prefix_is_taken() -> None:
    firsts, lasts = (
        [record(i, *block, row_us=500) for i in ids]
        for ids, block in (((0, 1), (0, 2)), ((2, 3), (2, 5)))
    )
    held = {firsts[1].node: 960, lasts[1].node: 960}
    nodes = [*firsts, *lasts]
    assert best(nodes, costs_of(prompt=1000)) == (firsts[0], lasts[0])
    assert best(nodes, costs_of(prompt=1000, held=held)) == (firsts[1], lasts[1])
    slow = [record(4, 0, 2, row_us=5000), record(5, 2, 5, row_us=5000)]
    others = costs_of(prompt=1000, held={node.node: 64 for node in slow})
    assert best([*nodes, *slow], others) == (firsts[0], lasts[0])


def test_a_price_counts_as_much_as_the_client_says() -> None:
    dear = record(0, 0, 5, step_us=10_000, price_out=100_000_000)
    cheap = record(1, 0, 5, step_us=12_000, price_out=10_000_000)
    assert best([dear, cheap], costs_of(tokens=100)) == (dear,)
    assert best([dear, cheap], costs_of(tokens=100, price_seconds=1e-3)) == (cheap,)


def test_a_block_asks_for_its_share_of_the_price() -> None:
    whole, part = record(0, 0, 5, price_in=5_000_000), record(1, 0, 2, price_in=5_000_000)
    costs = costs_of(prompt=1000)
    assert costs.prices([whole, part], LAYERS).tolist() == [5000, 2000]


def test_a_banned_node_is_the_last_resort() -> None:
    liar, slow = record(0, 0, 5, step_us=1000), record(1, 0, 5, step_us=90_000)
    costs = costs_of()
    for _ in range(2):
        costs.reputation.saw(liar, Deed.PRICE_BROKEN)
    assert best([liar, slow], costs) == (slow,)
    assert best([liar], costs) == (liar,)


def test_a_convicted_node_and_one_that_lacks_its_layers_are_no_resort() -> None:
    denied, guilty, good = (record(i, 0, 5, step_us=1000 + i) for i in range(3))
    costs = costs_of()
    costs.reputation.saw(denied, Deed.NOT_HELD)
    costs.reputation.convict(guilty.node)
    assert best([denied, guilty, good], costs) == (good,)
    with pytest.raises(CapacityMissing, match="convicted"):
        best([denied, guilty], costs)
    for _ in range(50):
        costs.reputation.saw(guilty, Deed.COMPLETED)
    with pytest.raises(CapacityMissing):
        best([guilty], costs)
    assert standbys((good,), [denied, guilty], 1, costs) == (None,)


def test_measured_speed_replaces_the_advertised_one() -> None:
    boaster, honest = record(0, 0, 5, step_us=1000), record(1, 0, 5, step_us=10_000)
    costs = costs_of(tokens=100)
    assert best([boaster, honest], costs) == (boaster,)
    costs.reputation.decoded(boaster.node, 0.040 / 5)
    assert best([boaster, honest], costs) == (honest,)


def test_after_a_failure_a_proven_node_is_preferred_to_a_stranger() -> None:
    stranger, proven = record(0, 0, 5, step_us=10_000), record(1, 0, 5, step_us=12_000)
    costs = costs_of(tokens=100)
    for _ in range(10):
        costs.reputation.saw(proven, Deed.COMPLETED)
    assert best([stranger, proven], costs) == (stranger,)
    careful = costs_of(tokens=100, reputation=costs.reputation, caution=20.0)
    assert best([stranger, proven], careful) == (proven,)


def test_gateways_see_equal_nodes_in_different_orders() -> None:
    records = [record(i, 0, 5, step_us=10_000) for i in range(8)]
    firsts = {best(records, costs_of(salt=salt))[0].node for salt in range(1, 40)}
    assert len(firsts) >= 5


def test_ranked_paths_share_no_node_and_come_in_order() -> None:
    records = [record(i, 0, 2, step_us=1000 + i) for i in range(3)]
    records += [record(3 + i, 2, 5, step_us=1000 + i) for i in range(2)]
    costs = costs_of()
    ranked = ranked_paths(records, MODEL, LAYERS, 1, costs, 5)
    assert ranked == [(records[0], records[3]), (records[1], records[4])]
    avoided = ranked_paths(records, MODEL, LAYERS, 1, costs, 5, frozenset({records[0].node}))
    assert avoided == [(records[1], records[3]), (records[2], records[4])]
    with pytest.raises(CoverageMissing):
        ranked_paths(records[:3], MODEL, LAYERS, 1, costs, 2)


def test_a_standby_holds_the_same_layers_and_fits_between_the_hops_that_stay() -> None:
    path = (
        record(0, 0, 2, coordinate=(1000, 0, 0, 0)),
        record(1, 2, 5, coordinate=(0, 1000, 0, 0)),
    )
    near = record(2, 2, 5, step_us=6000, coordinate=(500, 500, 0, 0))
    quick = record(3, 2, 5, step_us=5000, coordinate=(90_000, 0, 0, 0))
    full = record(4, 2, 5, step_us=1, free_positions=0, coordinate=(500, 500, 0, 0))
    leaving = record(5, 2, 5, step_us=1, leaving=True, coordinate=(500, 500, 0, 0))
    other = record(6, 2, 4, step_us=1, coordinate=(500, 500, 0, 0))
    everybody = [*path, near, quick, full, leaving, other]
    assert standbys(path, everybody, 10, costs_of()) == (None, near)
    avoiding = frozenset({near.node})
    assert standbys(path, everybody, 10, costs_of(), avoiding) == (None, quick)


def test_of_thousands_of_nodes_the_choice_is_nearly_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(5)
    records: list[NodeRecord] = []
    for i in range(2000):
        node = NodeId(f"{i:064x}")
        fields = {
            "node": node,
            "address": PeerAddress(node, "memory", ("memory:0",)),
            "step_us": rng.randrange(2000, 20_000),
            "sessions": rng.randrange(4),
            "coordinate": (*(rng.randrange(1, 80_000) for _ in range(3)), 2000),
        }
        records.append(record(0, *((0, 2), (2, 5), (0, 5))[i % 3], **fields))
    records.append(record(1, 2, 4))  # the only ones of their blocks stay
    records.append(record(2, 4, 5))
    costs = costs_of(tokens=100)
    short = best(records, costs)
    assert {(2, 4), (4, 5)} < {
        (r.layers.start, r.layers.stop) for r in paths._shortlist(records[:], costs)
    }
    assert len(paths._shortlist(records[:], costs)) <= paths.MAX_CANDIDATES
    monkeypatch.setattr(paths, "MAX_CANDIDATES", 10_000)
    assert seconds(short, costs) <= 1.02 * seconds(best(records, costs), costs)
