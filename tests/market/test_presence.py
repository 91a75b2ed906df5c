"""Time down, from heartbeats that were seen and spans in which nothing could be seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unisono.market.presence import Sight, downs

LEASE = 15_000


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]], int]:
    start = draw(st.integers(0, 5000))
    stop = start + draw(st.integers(0, 5000))
    edges = sorted(draw(st.sets(st.integers(0, 12_000), max_size=8)))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    return start, stop, spans, draw(st.integers(50, 4000))


@given(cases())
def test_each_moment_of_a_gap_counts_once_in_its_window_unless_it_is_excused(
    case: tuple[int, int, list[tuple[int, int]], int],
) -> None:
    start, stop, spans, window = case
    expected: dict[int, int] = {}
    excused = {t for a, b in spans for t in range(a, b)}
    for moment in range(start, stop):
        if moment not in excused:
            number = moment // window
            expected[number] = expected.get(number, 0) + 1
    assert downs(start, stop, spans, window) == expected


def test_an_observer_that_was_off_saw_nothing_that_counts() -> None:
    sight = Sight(0, 0, [])
    sight.look(1000, [20_000], LEASE)
    sight.look(60_000, [70_000], LEASE)
    assert sight.spans == [(1000, 60_000)]


def test_an_observer_that_hears_less_than_half_is_cut_off_since_before_the_first_lease_ended() -> (
    None
):
    sight = Sight(100_000, 100_000, [])
    sight.look(101_000, [101_500, 102_500, 103_500], LEASE)
    sight.look(102_000, [101_500, 102_500, 103_500], LEASE)  # one of three is missing
    assert sight.spans == []
    sight.look(103_000, [101_500, 102_500, 103_500], LEASE)
    assert sight.spans == [(102_000 - LEASE, 103_000)]
    sight.look(104_000, [101_500, 102_500, 103_500], LEASE)
    assert sight.spans == [(102_000 - LEASE, 104_000)]
    sight.look(105_000, [120_000, 120_000, 103_500], LEASE)
    sight.look(106_000, [120_000, 120_000, 103_500], LEASE)
    assert sight.spans == [(102_000 - LEASE, 104_000)]


def test_a_single_node_that_is_gone_is_not_taken_for_being_cut_off() -> None:
    sight = Sight(0, 0, [])
    for second in range(1, 30):
        sight.look(second * 1000, [5000], LEASE)
    assert sight.spans == []


def test_nodes_that_are_gone_for_long_are_not_missed() -> None:
    sight = Sight(10_000_000, 10_000_000, [])
    sight.look(10_001_000, [0, 0, 0, 10_010_000, 10_010_000], LEASE)
    assert sight.spans == []


def test_spans_that_are_over_are_forgotten() -> None:
    sight = Sight(0, 0, [(0, 10), (20, 30)])
    sight.forget(10)
    assert sight.spans == [(20, 30)]
