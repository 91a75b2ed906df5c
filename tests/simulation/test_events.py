"""Events run in one order, and time never runs backwards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.simulation.events import EPOCH_SECONDS, SECOND, EventQueue, SimulatedClock


@given(st.lists(st.integers(0, 50), max_size=30))
def test_events_run_by_time_and_then_in_the_order_they_came(times: list[int]) -> None:
    events, ran = EventQueue(), list[tuple[int, int]]()
    for number, time in enumerate(times):
        events.at(time, lambda time=time, number=number: ran.append((time, number)))
    events.run_until(50)
    assert ran == sorted(ran)
    assert len(ran) == len(times) == events.ran


def test_an_event_of_the_past_runs_now() -> None:
    events, seen = EventQueue(100), list[int]()
    events.at(3, lambda: seen.append(events.now))
    events.run_until(200)
    assert (seen, events.now) == ([100], 200)


def test_events_after_the_end_wait() -> None:
    events, seen = EventQueue(), list[int]()
    events.after(11, lambda: seen.append(events.now))
    events.run_until(10)
    assert seen == []
    events.run_until(11)
    assert seen == [11]


async def test_the_clock_shows_the_queues_time_and_refuses_to_sleep() -> None:
    events = EventQueue(7 * SECOND)
    clock = SimulatedClock(events)
    assert (clock.monotonic(), clock.now()) == (7.0, EPOCH_SECONDS + 7.0)
    assert events.unix_ms == (EPOCH_SECONDS + 7) * 1000
    with pytest.raises(NotImplementedError, match="never sleeps"):
        await clock.sleep(1)
