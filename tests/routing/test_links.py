from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.records import KEYS, record
from unisono.routing.coordinates import ORIGIN, estimated_rtt
from unisono.routing.links import DEFAULT_ROUND_TRIP, MAX_LINKS, Links, RoundTrip
from unisono.types import NodeId

places = st.tuples(*(st.integers(-90_000, 90_000),) * 3, st.integers(0, 9000))


def between(links: Links, a: object, b: object) -> float:
    return 2 * links.time(a, b)  # type: ignore[arg-type]


@given(places, places)
def test_unmeasured_links_are_as_long_as_coordinates_say(
    a: tuple[int, int, int, int], b: tuple[int, int, int, int]
) -> None:
    one, two = record(0, 0, 1, coordinate=a), record(1, 0, 1, coordinate=b)
    if any(a[:3]) and any(b[:3]):
        assert between(Links(), one, two) == pytest.approx(estimated_rtt(a, b) * 1e-6, abs=2e-6)
    else:
        assert between(Links(), one, two) == DEFAULT_ROUND_TRIP


@given(places, places, st.floats(0.001, 0.3), st.floats(0.001, 0.3))
def test_no_coordinate_can_break_the_triangle_that_was_measured(
    a: tuple[int, int, int, int], b: tuple[int, int, int, int], near: float, far: float
) -> None:
    links = Links()
    for _ in range(200):  # until nothing is left of the first doubt
        links.pinged(KEYS[0].node_id, near)
        links.pinged(KEYS[1].node_id, far)
    trip = between(links, record(0, 0, 1, coordinate=a), record(1, 0, 1, coordinate=b))
    assert abs(far - near) - 1e-6 <= trip <= far + near + 1e-6


def test_the_gateways_own_links_are_measured_or_else_estimated() -> None:
    there = record(0, 0, 1, coordinate=(3000, 4000, 0, 500))
    assert Links().round_trip(there) == DEFAULT_ROUND_TRIP
    assert Links(lambda: (0, 0, 1, 500)).round_trip(there) == pytest.approx(0.006, abs=2e-6)
    links = Links(lambda: ORIGIN)
    links.pinged(there.node, 0.030)
    assert links.round_trip(there) == 0.030
    assert links.time(None, there) == 0.015
    assert links.time(there, None, 1_250_000) == pytest.approx(0.115)


def test_round_trips_follow_measurements_slowly() -> None:
    there = record(0, 0, 1)
    links = Links()
    for _ in range(100):
        links.pinged(there.node, 0.020)
    assert links.round_trip(there) == pytest.approx(0.020)
    links.pinged(there.node, 0.100)
    assert links.round_trip(there) == pytest.approx(0.030)


def test_the_smoothing_is_that_of_rfc_6298() -> None:
    after = RoundTrip(0.080, 0.040).after(0.160)
    assert after.mean == pytest.approx(7 / 8 * 0.080 + 1 / 8 * 0.160)
    assert after.deviation == pytest.approx(3 / 4 * 0.040 + 1 / 4 * 0.080)


def test_times_that_no_clock_gives_are_ignored() -> None:
    links = Links()
    for seconds in (-1.0, float("nan"), float("inf")):
        links.pinged(KEYS[0].node_id, seconds)
    assert links.measured(KEYS[0].node_id) is None


def test_a_node_sends_as_fast_as_its_record_says() -> None:
    links, sender = Links(), record(0, 0, 1, bandwidth=1_000_000)
    assert links.bandwidth(sender) == 1_000_000
    assert links.time(sender, None, 500_000) == pytest.approx(DEFAULT_ROUND_TRIP / 2 + 0.5)


def test_a_survey_says_of_many_what_time_says_of_two() -> None:
    records = [
        record(i, 0, 1, coordinate=(1000 * i, 7000 * (i % 3), 0, 100) if i % 4 else ORIGIN)
        for i in range(12)
    ]
    links = Links()
    for i in range(0, 12, 2):
        links.pinged(records[i].node, 0.003 * i)
    a, b = (np.repeat(np.arange(12), 12), np.tile(np.arange(12), 12))
    trips = links.survey(records).round_trips(a, b)
    for i, j, trip in zip(a, b, trips, strict=True):
        if i != j:
            assert trip == pytest.approx(between(links, records[i], records[j]))
    assert not np.isnan(trips).any()


def test_a_coordinate_at_the_end_of_the_world_says_nothing() -> None:
    one = record(0, 0, 1, coordinate=(1 << 39, 0, 0, 0))
    assert between(Links(), one, record(1, 0, 1, coordinate=(5, 5, 5, 5))) == DEFAULT_ROUND_TRIP


def test_memory_of_links_is_bounded() -> None:
    links = Links()
    for i in range(MAX_LINKS + 10):
        links.pinged(NodeId(f"{i:064x}"), 0.01)
    assert links.measured(NodeId(f"{9:064x}")) is None
    assert links.measured(NodeId(f"{10:064x}")) is not None


def test_a_newcomer_of_which_nothing_is_known_is_as_far_as_the_others() -> None:
    links, newcomer = Links(), record(9, 0, 1)
    for i in range(4):
        links.pinged(KEYS[i].node_id, 0.001 * (i + 1))
    assert links.round_trip(newcomer) == pytest.approx(0.0025)
    assert between(links, newcomer, record(0, 0, 1)) == pytest.approx(0.0025)
