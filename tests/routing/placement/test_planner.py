from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, pairwise, permutations

import pytest
from bench.placement_world import large_model, world
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.placement.network import facts, model_of
from unisono.routing.placement.bound import lower_bound
from unisono.routing.placement.facts import ModelFacts, NodeFacts
from unisono.routing.placement.fleet import Fleet
from unisono.routing.placement.planner import plan
from unisono.routing.placement.plans import Cut, Loads, Plan, check_plan, cuts_of
from unisono.types import LayerRange


def packings(fleet: Fleet, free: tuple[int, ...]) -> Iterator[list[Cut]]:
    """Every way to make disjoint chains of `free`, by trying them all."""
    model = fleet.model
    if not free:
        yield []
        return
    first, rest = free[0], free[1:]
    yield from packings(fleet, rest)
    for size in range(1, min(len(free), model.layers)):
        for others in combinations(rest, size):
            left = tuple(i for i in rest if i not in others)
            for chain in permutations((first, *others)):
                for inner in combinations(range(1, model.layers), size):
                    marks = (0, *inner, model.layers)
                    blocks = [LayerRange(a, b) for a, b in pairwise(marks)]
                    memory = [fleet.nodes[i].memory for i in chain]
                    if all(model.fits(m, b) for m, b in zip(memory, blocks, strict=True)):
                        cut = (list(chain), [b.count for b in blocks])
                        yield from ([cut, *more] for more in packings(fleet, left))


def least(nodes: list[NodeFacts], model: ModelFacts) -> float:
    """The least expected time per token of all placements."""
    fleet = Fleet(nodes, model)
    alone = [i for i, n in enumerate(nodes) if model.fits(n.memory, model.whole)]
    split = tuple(i for i in range(len(nodes)) if i not in alone)
    whole: list[Cut] = [([i], [model.layers]) for i in alone]
    return min(Loads(fleet, [*whole, *found]).token_us for found in packings(fleet, split))


def drawn_nodes(seed: int, count: int, layers: int) -> list[NodeFacts]:
    draw = random.Random(seed)
    return [
        facts(
            i,
            draw.randint(5, 9 * layers) + draw.choice([0, 0, 10]),
            step_us=draw.uniform(500, 5000),
            row_us=draw.uniform(100, 500),
            coordinate=(draw.randint(0, 30_000), draw.randint(0, 30_000), 0, draw.randint(0, 3000)),
        )
        for i in range(count)
    ]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 1 << 20),
    st.sampled_from([(3, 5), (4, 4), (4, 3)]),
    st.sampled_from([1.0, 60.0, 300.0, 2000.0]),
    st.sampled_from([0, 5, 15]),
)
def test_few_nodes_are_placed_optimally(
    seed: int, shape: tuple[int, int], load: float, head: int
) -> None:
    count, layers = shape
    model = model_of(layers, tokens_per_second=load, head_bytes=head, unserved_us=1e5)
    nodes = drawn_nodes(seed, count, layers)
    made = plan(nodes, model)
    assert made.token_us == pytest.approx(least(nodes, model), rel=1e-6)


def sound(made: Plan, nodes: list[NodeFacts], model: ModelFacts) -> None:
    assert check_plan(made, ((n.node, n.memory) for n in nodes), model) is None


@pytest.mark.parametrize("load", [50.0, 700.0, 1e6])
def test_plans_of_many_nodes_keep_the_constraints(load: float) -> None:
    nodes = world(50, 3, largest=48)
    model = large_model(load)
    made = plan(nodes, model)
    sound(made, nodes, model)
    assert made == plan(nodes, model)
    assert (made.served < 1) == (load == 1e6)
    held = made.blocks()
    for node in nodes:
        whole = model.fits(node.memory, model.whole)
        assert (held.get(node.node) == model.whole) == whole


def test_nodes_that_cannot_hold_a_layer_or_a_model_that_fits_nowhere_make_no_chain() -> None:
    model = model_of(8)
    assert plan([], model).chains == ()
    made = plan([facts(0, 9), facts(1, 30), facts(2, 40)], model)
    assert (made.chains, made.served, made.token_us) == ((), 0.0, model.unserved_us)
    assert made.blocks() == {}


def test_a_chain_is_made_even_where_it_is_not_worth_its_time() -> None:
    model = model_of(8, unserved_us=1.0)
    made = plan([facts(0, 50), facts(1, 50)], model)
    assert [b.count for c in made.chains for b in c.blocks] == [5, 3]


def test_nodes_in_no_chain_stand_by_where_holders_are_least_available() -> None:
    model = model_of(8, tokens_per_second=1.0)
    fast = {"step_us": 100.0, "row_us": 10.0}
    nodes = [
        facts(0, 40, availability=0.99, **fast),
        facts(1, 40, availability=0.5, **fast),
        facts(2, 40, step_us=1e5, row_us=1e5),
    ]
    made = plan(nodes, model)
    held = made.blocks()
    assert [n for n, _ in made.standby] == [nodes[2].node]
    assert held[nodes[2].node] == held[nodes[1].node]


def test_the_load_is_spread_at_equal_cost_of_one_more_token() -> None:
    model = model_of(4, tokens_per_second=900.0)
    nodes = [facts(i, 40, step_us=300.0 * (i + 1), row_us=200.0) for i in range(4)]
    made = plan(nodes, model)
    assert sum(c.tokens_per_second for c in made.chains) == pytest.approx(900.0)
    for chain, node in zip(made.chains, nodes, strict=True):
        if chain.tokens_per_second > 0:
            free = 1 - chain.tokens_per_second / 1e6 * 4 * node.row_us
            assert 4 * node.step_us / free**2 == pytest.approx(made.price_us, rel=1e-4)
            assert chain.token_us == pytest.approx(4 * node.step_us / free, rel=1e-6)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 20), st.sampled_from([3, 5]), st.sampled_from([20.0, 300.0, 2000.0]))
def test_the_bound_is_below_the_optimum(seed: int, count: int, load: float) -> None:
    model = model_of(4, tokens_per_second=load, head_bytes=5, unserved_us=1e5)
    nodes = drawn_nodes(seed, count, 4)
    made = plan(nodes, model)
    fleet = Fleet(nodes, model)
    bound = lower_bound(fleet, cuts_of(fleet, made.chains), rounds=12)
    assert bound.token_us <= made.token_us * (1 + 1e-9)


@pytest.mark.parametrize("load", [300.0, 1500.0])
def test_plans_of_many_nodes_are_near_the_bound_where_all_can_hold_the_model(load: float) -> None:
    nodes = world(150, 3, smallest=48, largest=80)
    model = large_model(load)
    made = plan(nodes, model)
    fleet = Fleet(nodes, model)
    assert made.token_us <= 1.001 * lower_bound(fleet, cuts_of(fleet, made.chains), 1).token_us
