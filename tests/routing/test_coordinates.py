from __future__ import annotations

import math
import random
import statistics

from hypothesis import given
from hypothesis import strategies as st

from tests.routing.records import KEYS
from unisono.routing.coordinates import (
    MAX_STEP_US,
    MAX_US,
    ORIGIN,
    Coordinate,
    Position,
    estimated_rtt,
)

CERTAIN = 0
MILLION = 1_000_000


def wide_area(count: int, rng: random.Random) -> list[list[float]]:
    """Round trips in microseconds between places on a plane, each with an access link."""
    places = [(rng.uniform(0, 80_000), rng.uniform(0, 80_000)) for _ in range(count)]
    links = [rng.uniform(500, 10_000) for _ in range(count)]
    return [
        [math.dist(places[i], places[j]) + links[i] + links[j] for j in range(count)]
        for i in range(count)
    ]


def converge(count: int, rounds: int, liars: dict[int, Coordinate], seed: int = 3) -> float:
    """The median relative error between honest nodes after some rounds with random partners."""
    rng = random.Random(seed)
    rtt = wide_area(count, rng)
    nodes = [Position(rng) for _ in range(count)]
    for _ in range(rounds):
        for i, node in enumerate(nodes):
            j = rng.choice([j for j in range(count) if j != i])
            measured = round(rtt[i][j] * rng.uniform(1, 1.05))
            place, doubt = nodes[j].coordinate, nodes[j].uncertainty
            if j in liars:
                place, doubt = liars[j], CERTAIN
            node.update(measured, place, doubt)
    honest = [i for i in range(count) if i not in liars]
    errors = [
        abs(estimated_rtt(nodes[i].coordinate, nodes[j].coordinate) - rtt[i][j]) / rtt[i][j]
        for i in honest
        for j in honest
        if i < j
    ]
    return statistics.median(errors)


def test_round_trips_are_estimated_within_a_tenth_after_a_few_minutes() -> None:
    assert converge(40, 150, {}) < 0.1


def test_one_liar_in_ten_does_not_spoil_the_estimates_of_the_others() -> None:
    far = MAX_US - 1
    liars: dict[int, Coordinate] = {
        0: (far, far, far, 0),
        1: (0, 0, 0, far),
        2: (-far, 0, far, 0),
        3: ORIGIN,
    }
    assert converge(40, 150, liars) < 0.35


coordinates = st.tuples(
    *(st.integers(-(1 << 40) + 1, (1 << 40) - 1) for _ in range(3)), st.integers(0, (1 << 40) - 1)
)


@given(st.lists(st.tuples(st.integers(-5, 1 << 40), coordinates, st.integers(0, MILLION))))
def test_no_sample_moves_a_node_further_than_a_step(
    samples: list[tuple[int, Coordinate, int]],
) -> None:
    node = Position(random.Random(1))
    for rtt, other, doubt in samples:
        before = node.coordinate
        node.update(rtt, other, doubt)
        after = node.coordinate
        moved = math.dist(before[:3], after[:3])
        assert moved <= 2 * MAX_STEP_US + 4
        assert abs(after[3] - before[3]) <= MAX_STEP_US + 2
        assert max(map(abs, after)) < MAX_US
        assert 0 < node.uncertainty <= MILLION


@given(st.integers(100, 1_000_000), coordinates)
def test_a_peer_near_by_moves_a_node_by_less_than_its_own_round_trip(
    rtt: int, other: Coordinate
) -> None:
    node = Position(random.Random(1))
    node.update(rtt, other, CERTAIN)
    assert math.dist(node.coordinate[:3], ORIGIN[:3]) <= rtt


def test_a_node_that_hears_only_one_liar_stays_within_bounds() -> None:
    node = Position(random.Random(1))
    for _ in range(20_000):
        node.update(9_000_000, (MAX_US, 0, 0, 0), CERTAIN)
        node.update(1, (-MAX_US, 0, 0, 0), CERTAIN)
    assert max(map(abs, node.coordinate)) < MAX_US / 4


def test_the_smallest_of_the_last_round_trips_stands_for_a_peer() -> None:
    node = Position()
    peer = KEYS[0].node_id
    assert node.measured(peer, 0.02) == 20_000
    assert node.measured(peer, 0.5) == 20_000
    assert node.measured(peer, 0.01) == 10_000
    for _ in range(4):
        found = node.measured(peer, 0.03)
    assert found == 30_000
    assert node.measured(peer, 0.0) is None
    assert node.measured(peer, 1e9) is None


@given(coordinates, coordinates)
def test_an_estimate_is_symmetric_and_never_negative(a: Coordinate, b: Coordinate) -> None:
    assert estimated_rtt(a, b) == estimated_rtt(b, a) >= a[3] + b[3] >= 0
