"""Sessions share passes as on the engine: alone exact, together slower each and faster in all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.execution import engine
from unisono.simulation.decoding import PROMPT_ROWS, Decoding, passes

STEP, ROW, LINKS = 20_000.0, 500.0, 80_000
TICK = 250_000


def run(sessions: int, ticks: int, *, target: int = 100_000, prefilling: bool = False) -> Decoding:
    decoding = Decoding(2, 4)
    rows = [decoding.start([0, 1], LINKS, 0, target) for _ in range(sessions)]
    advance(decoding, ticks, prefilling=prefilling)
    assert rows == sorted(rows)
    return decoding


def advance(decoding: Decoding, ticks: int, *, prefilling: bool = False) -> float:
    step, row = np.array([STEP, STEP, 0.0]), np.array([ROW, ROW, 0.0])
    reading = np.array([prefilling, False, False])
    return sum(decoding.tick(step, row, reading, TICK, TICK * (i + 1))[0] for i in range(ticks))


def loop_us(decoding: Decoding) -> float:
    """Microseconds of a loop, of sessions that are all alike."""
    return decoding.count * TICK / advance(decoding, 1)


def test_a_piece_of_a_prompt_is_what_the_engine_takes() -> None:
    assert PROMPT_ROWS == engine.PROMPT_ROWS


def test_a_lone_sessions_loop_is_its_steps_and_links() -> None:
    decoding = run(1, 40)
    loop = loop_us(decoding)
    # it waits half a pass as often as its own pass is running: hardly ever
    assert STEP * 2 + LINKS < loop < 1.2 * (STEP * 2 + LINKS)


def test_more_sessions_are_slower_each_and_faster_together() -> None:
    loops = [loop_us(run(count, 60)) for count in (1, 8, 32)]
    assert loops[0] < loops[1] < loops[2]
    assert 8 / loops[1] > 4 / loops[0]
    assert 32 / loops[2] > 8 / loops[1]


def test_no_node_computes_more_than_all_of_the_time_or_more_rows_than_it_can() -> None:
    decoding = run(200, 80)
    assert decoding.busy.max() <= 1.0
    assert 200 / loop_us(decoding) <= 1 / ROW


def test_a_prompt_on_one_hop_slows_every_token() -> None:
    alone = loop_us(run(4, 40))
    assert loop_us(run(4, 40, prefilling=True)) > alone


def test_a_session_ends_within_the_tick_in_which_it_says_its_last_token() -> None:
    decoding = Decoding(2, 4)
    row = decoding.start([0, 1], LINKS, 1, 4)
    step, per_row = np.array([STEP, STEP, 0.0]), np.array([ROW, ROW, 0.0])
    reading = np.zeros(3, dtype=bool)
    assert decoding.tick(step, per_row, reading, TICK, TICK)[1] == []
    said, ended = decoding.tick(step, per_row, reading, TICK, 2 * TICK)
    assert [r for r, _ in ended] == [row]
    assert 0 < ended[0][1] < TICK
    assert said < 3
    assert decoding.stop(row) == 4
    assert decoding.count == 0


def test_who_began_within_a_tick_has_the_rest_of_it() -> None:
    decoding = Decoding(2, 4)
    early = decoding.start([0], 0, 0, 1000, now=0)
    late = decoding.start([1], 0, 0, 1000, now=TICK - 50_000)
    advance(decoding, 1)
    assert (decoding.stop(early), decoding.stop(late)) == (TICK // 20_000, 2)


def test_tokens_are_counted_once_in_the_histogram() -> None:
    decoding = run(3, 20)
    rows = [decoding.stop(row) for row in range(3)]
    assert decoding.gaps.sum() == pytest.approx(sum(rows), abs=3)


def test_the_table_grows_and_rows_are_used_again() -> None:
    decoding = Decoding(2, 4)
    rows = {decoding.start([0], 0, 0, 1_000_000) for _ in range(1500)}
    assert len(rows) == decoding.count == 1500
    for row in sorted(rows)[:700]:
        decoding.stop(row)
    assert {decoding.start([1], 0, 0, 9) for _ in range(700)} <= rows


@settings(max_examples=50, deadline=None)
@given(
    st.floats(100, 1e6),
    st.floats(0.001, 0.5),
    st.floats(0, 1e-1),
    st.integers(1, 500),
    st.booleans(),
)
def test_a_pass_holds_between_one_and_all_sessions(
    step: float, part: float, arrivals: float, sessions: int, reading: bool
) -> None:
    row = step * part
    pass_us, busy = passes(
        np.array([step]),
        np.array([row]),
        np.array([reading]),
        np.array([arrivals]),
        np.array([sessions]),
    )
    piece = PROMPT_ROWS * row if reading else 0.0
    assert step + piece <= pass_us[0] + 1e-6
    assert pass_us[0] <= step + piece + (sessions - 1) * row + 1e-6
    assert 0 <= busy[0] <= 1
