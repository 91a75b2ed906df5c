from __future__ import annotations

import random

import pytest
from bench.placement_world import large_model, world
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.routing.placement.network import facts, model_of, node_id
from unisono.routing.placement.planner import plan
from unisono.routing.placement.plans import check_plan
from unisono.routing.placement.repairs import moved, repair

MODEL = large_model(150.0)
FAR = (0, 0, 0, 5000)
"""Every hop over such a node takes 5 ms."""


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1 << 20))
@example(902479)  # two broken chains, of which one is mended with a node of the other
def test_repaired_plans_keep_the_constraints_and_most_blocks(seed: int) -> None:
    draw = random.Random(seed)
    known = world(28, seed, largest=draw.choice([24, 48]))
    there, later = known[:24], known[24:]
    made = plan(there, MODEL)
    for new in later:
        if draw.random() < 0.6:
            there = [n for n in there if n is not draw.choice(there)]
        if draw.random() < 0.6:
            there = [*there, new]
        after = repair(made, there, MODEL)
        assert check_plan(after, ((n.node, n.memory) for n in there), MODEL) is None
        names = {n.node for n in there}
        assert set(after.blocks()) <= names
        whole = [c for c in made.chains if set(c.nodes) <= names]
        assert not {n for c in whole for n in c.nodes} & set(moved(made, after))
        assert after.chains
        made = after


def test_a_standby_takes_the_place_of_a_lost_node_without_a_move() -> None:
    model = model_of(8, tokens_per_second=10.0)
    nodes = [facts(i, 40, step_us=1000.0 + i, coordinate=FAR) for i in range(3)]
    made = plan(nodes, model)
    (chain,) = made.chains
    (spare, block), *_ = made.standby
    gone = chain.nodes[chain.blocks.index(block)]
    after = repair(made, [n for n in nodes if n.node != gone], model)
    assert moved(made, after) == ()
    assert set(after.chains[0].nodes) == {*chain.nodes, spare} - {gone}


def test_one_block_moves_if_no_standby_holds_the_lost_one() -> None:
    model = model_of(8, tokens_per_second=10.0)
    nodes = [facts(i, 40, step_us=1000.0 + i, coordinate=FAR) for i in range(3)]
    made = plan(nodes, model)
    (chain,) = made.chains
    (_, block), *_ = made.standby
    gone = chain.nodes[1 - chain.blocks.index(block)]
    after = repair(made, [n for n in nodes if n.node != gone], model)
    assert len(moved(made, after)) == 1
    assert after.served == 1


def test_a_newcomer_that_holds_the_whole_model_serves_at_once() -> None:
    model = model_of(8)
    nodes = [facts(0, 40), facts(1, 40)]
    made = plan(nodes, model)
    after = repair(made, [*nodes, facts(2, 80)], model)
    assert moved(made, after) == ()
    assert after.blocks()[node_id(2)] == model.whole
    assert after.token_us < made.token_us


def test_the_last_chain_that_breaks_is_made_anew_from_whoever_is_left() -> None:
    model = model_of(8, unserved_us=10.0)
    nodes = [facts(i, 40) for i in range(2)] + [facts(i, 30) for i in range(2, 5)]
    made = plan(nodes, model)
    left = nodes[1:]
    after = repair(made, left, model)
    assert len(after.chains) == 1
    assert check_plan(after, ((n.node, n.memory) for n in left), model) is None
    assert repair(after, left[:1], model).chains == ()


def test_a_repair_without_a_change_changes_nothing() -> None:
    nodes = world(40, 5)
    made = plan(nodes, MODEL)
    after = repair(made, nodes, MODEL)
    assert after.blocks() == made.blocks()
    assert after.token_us == pytest.approx(made.token_us)
