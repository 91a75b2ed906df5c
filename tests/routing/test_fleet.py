"""Choices on simulated nodes: better than turns and chance, and not for long taken in by liars."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from bench.choices import by_best_path
from bench.fleet import Fleet, Machine
from bench.paths import CHOOSERS, CONTINENTS, LOADS, figures
from bench.traffic import Traffic, offered

from unisono.routing.reputation import HALF_LIFE, believed
from unisono.types import LayerRange

LAYERS = 26
HONEST = Machine(LayerRange(0, LAYERS), 0.012, 0.0003)
QUICK = replace(HONEST, step=0.006, row=0.0002)
LIARS = {
    "lacks its layers": replace(QUICK, lacks=True),
    "lacks its speed": replace(HONEST, step=0.048, row=0.0012, says_step=0.006),
    "is not at its address": replace(QUICK, nowhere=True),
    "breaks its price": replace(QUICK, dear=True),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n == "fifty; crowded" else []) for n in LOADS],
)
def test_the_best_path_is_faster_than_turns_and_chance(name: str) -> None:
    best, fewest, turns, chance = (
        figures(name, choose, scale=0.15) for choose in CHOOSERS.values()
    )
    assert best["failed"] == 0
    assert best["p95 s"] < fewest["p95 s"]
    assert best["tokens per second"] >= 0.99 * fewest["tokens per second"]
    for other in (turns, chance):
        assert best["p95 s"] < 0.8 * other["p95 s"]
        assert best["tokens per second"] > 1.2 * other["tokens per second"]
        if name.endswith("offered"):
            # of four full nodes the fast ones have the longest queues when chosen well, and
            # most answers are theirs
            assert best["p50 s"] < other["p50 s"]


def test_the_same_seed_gives_the_same_figures() -> None:
    name, choose = "fifty; offered", CHOOSERS["best path"]
    assert figures(name, choose, scale=0.02) == figures(name, choose, scale=0.02)


def shares(fleet: Fleet, liars: set[str], start: float, stop: float) -> float:
    """The share of all attempts between two times that a set of nodes got."""
    asked = [n for at, n in fleet.asked if start <= at - fleet.start < stop]
    return sum(n in liars for n in asked) / len(asked)


def watched(machines: list[Machine], *, minutes: float, rate: float = 4.0) -> Fleet:
    fleet = Fleet(machines, by_best_path, layer_count=LAYERS, gateways=CONTINENTS[:1], seed=3)
    offered(fleet, Traffic(random.Random(4)), rate, round(60 * minutes * rate))
    return fleet


@pytest.mark.parametrize("lie", LIARS)
def test_a_liar_that_joins_loses_nearly_all_traffic_within_a_minute(lie: str) -> None:
    fleet = watched([HONEST] * 4 + [replace(LIARS[lie], joins=30.0)], minutes=2.5)
    liar = {list(fleet.nodes)[-1]}
    assert shares(fleet, liar, 30, 90) > 0, "nobody fell for it: the scenario shows nothing"
    assert shares(fleet, liar, 90, 150) < 0.02
    assert all(o.attempts <= 2 and not o.failed for o in fleet.outcomes)


@pytest.mark.parametrize("lie", LIARS)
def test_a_liar_among_strangers_is_found_out_too(lie: str) -> None:
    fleet = watched([HONEST] * 3 + [LIARS[lie]], minutes=2)
    liar = {list(fleet.nodes)[-1]}
    assert shares(fleet, liar, 0, 10) > 0
    assert shares(fleet, liar, 60, 120) < 0.02
    assert all(o.attempts <= 2 and not o.failed for o in fleet.outcomes)


def test_all_liars_at_once_cost_no_request_more_than_one_retry() -> None:
    joining = [replace(m, joins=30.0 + i / 2) for i, m in enumerate(LIARS.values())]
    fleet = watched([HONEST] * 4 + joining, minutes=2.5)
    liars = set(list(fleet.nodes)[4:])
    assert shares(fleet, liars, 30, 90) > 0
    assert shares(fleet, liars, 90, 150) < 0.02
    assert all(o.attempts <= 2 and not o.failed for o in fleet.outcomes)


def test_a_block_of_a_chain_that_is_slower_than_it_says_is_told_from_the_others() -> None:
    """Only whole chains are seen; who is slow follows from which chains are."""
    front, back = LayerRange(0, 13), LayerRange(13, LAYERS)
    half = Machine(front, 0.006, 0.00015)
    liar = replace(half, layers=back, step=0.024, row=0.0006, says_step=0.003, joins=30.0)
    machines = [half] * 3 + [replace(half, layers=back)] * 3 + [liar]
    fleet = watched(machines, minutes=2.5)
    records = [n.record() for n in fleet.nodes.values()]
    judged = fleet.gateways[0].experience.reputation.judge(records)
    said = np.array([r.step_us * 1e-6 / r.layers.count for r in records])
    kept = said / believed(judged.decode, judged.decode_samples, said)
    assert shares(fleet, {list(fleet.nodes)[-1]}, 30, 90) > 0
    assert shares(fleet, {list(fleet.nodes)[-1]}, 90, 150) < 0.02
    assert kept[-1] < 0.3 < 0.7 < min(kept[:-1])


def test_a_liar_that_mends_its_ways_comes_back_slowly() -> None:
    liar = replace(LIARS["lacks its layers"])
    fleet = Fleet([HONEST] * 3 + [liar], by_best_path, layer_count=LAYERS)
    penitent = list(fleet.nodes)[-1]
    traffic = Traffic(random.Random(4))
    offered(fleet, traffic, 2.0, 120)
    liar.lacks = False
    mended = fleet.events.time - fleet.start
    offered(fleet, traffic, 2.0, round(4 * HALF_LIFE))
    until = mended + 2 * HALF_LIFE
    assert shares(fleet, {penitent}, mended, mended + HALF_LIFE / 2) == 0
    assert shares(fleet, {penitent}, until - 60, until) > 0.3
