from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.records import KEYS, record
from unisono.clock import VirtualClock
from unisono.routing.costs import Workloads
from unisono.routing.experience import Experience, Trial, attributed
from unisono.routing.prefixes import prefix_keys
from unisono.routing.reputation import Deed
from unisono.wire.records import NodeRecord

PROMPT = tuple(range(1000, 1300))
KEYS_OF_PROMPT = prefix_keys(PROMPT)
WHOLE = record(0, 0, 5, step_us=10_000, row_us=100)
HALVES = (
    record(1, 0, 2, step_us=4000, row_us=40, coordinate=(1, 0, 0, 0)),
    record(2, 2, 5, step_us=6000, row_us=60, coordinate=(10_000, 0, 0, 0)),
)

parts = st.lists(st.tuples(st.floats(0.0001, 0.1), st.floats(0.05, 1.0)), min_size=1, max_size=6)


def trial_of(experience: Experience, *path: NodeRecord) -> Trial:
    costs = experience.costs(PROMPT, 100, keys=KEYS_OF_PROMPT)
    return experience.trial(path, costs, 400, keys=KEYS_OF_PROMPT)


def learned(experience: Experience, record: NodeRecord) -> Workloads:
    return experience.costs(PROMPT, 100, keys=()).workloads([record])


def step(experience: Experience, record: NodeRecord) -> float:
    """Seconds of a decode step that are expected of a node."""
    return float(learned(experience, record).step[0])


async def answer(
    experience: Experience,
    clock: VirtualClock,
    *path: NodeRecord,
    first: float = 0.05,
    loop: float = 0.010,
    tokens: int = 20,
) -> None:
    """An answer over a path with these times, in seconds."""
    trial = trial_of(experience, *path)
    trial.opened()
    await clock.advance(first)
    trial.arrived()
    for _ in range(tokens - 1):
        await clock.advance(loop)
        trial.arrived()
    trial.completed()
    trial.close()


@given(parts, st.floats(0.2, 5.0))
def test_what_is_divided_sums_up_and_the_well_known_change_least(
    drawn: list[tuple[float, float]], factor: float
) -> None:
    expected, doubts = [p for p, _ in drawn], [d for _, d in drawn]
    total = factor * sum(expected)
    given_ = attributed(total, np.array(expected), np.array(doubts))
    assert all(e / 8 <= g <= 8 * e for e, g in zip(expected, given_, strict=True))
    if all(e / 8 < g < 8 * e for e, g in zip(expected, given_, strict=True)):
        assert sum(given_) == pytest.approx(total)
    changes = sorted(
        (d * e, abs(g / e - 1)) for e, g, d in zip(expected, given_, doubts, strict=True)
    )
    assert all(a[1] <= b[1] + 1e-9 for a, b in pairwise(changes))


def test_a_lone_hop_is_as_slow_as_its_answers() -> None:
    assert attributed(0.04, np.array([0.01]), np.array([0.1])) == pytest.approx([0.04])


async def test_an_answer_teaches_how_fast_a_node_decodes() -> None:
    clock = VirtualClock()
    experience = Experience(clock)
    for _ in range(3):
        await answer(experience, clock, WHOLE, loop=0.040)
    assert step(experience, WHOLE) == pytest.approx(0.040, rel=0.03)


async def test_the_time_of_links_is_not_blamed_on_nodes() -> None:
    clock = VirtualClock()
    experience = Experience(clock)
    for _ in range(3):
        await answer(experience, clock, *HALVES, loop=0.010 + 0.010)  # 10 ms of links
    for hop in HALVES:
        assert step(experience, hop) == pytest.approx(hop.step_us * 1e-6, rel=0.05)


async def test_the_time_that_others_take_is_not_blamed_on_a_node() -> None:
    clock = VirtualClock()
    experience = Experience(clock)
    busy = record(0, 0, 5, step_us=10_000, row_us=100, sessions=10)
    trial = trial_of(experience, busy)
    trial.opened()
    for _ in range(20):
        await clock.advance(0.020)
        trial.arrived()
    trial.completed()
    assert step(experience, busy) == pytest.approx(0.010, rel=0.01)


async def test_the_time_to_the_first_token_teaches_how_fast_a_node_reads() -> None:
    clock = VirtualClock()
    experience = Experience(clock)
    await answer(experience, clock, WHOLE, first=0.41)
    assert learned(experience, WHOLE).row[0] > 3 * 100e-6


async def test_a_prompt_that_was_read_is_remembered_and_forgotten_when_it_was_not_kept() -> None:
    clock = VirtualClock()
    experience = Experience(clock)
    whole = 0.01 + 0.030 + 0.05
    await answer(experience, clock, WHOLE, first=whole)
    assert experience.costs(PROMPT, 9, keys=KEYS_OF_PROMPT).held == {WHOLE.node: 256}
    await answer(experience, clock, WHOLE, first=0.065)
    assert experience.costs(PROMPT, 9, keys=KEYS_OF_PROMPT).held == {WHOLE.node: 256}
    trial = trial_of(experience, WHOLE)
    trial.opened()
    await clock.advance(whole)
    lost: list[int] = []
    experience.prefixes.lost = lambda node, keys: lost.append(len(keys))  # type: ignore[method-assign]
    trial.arrived()
    assert lost == [4]


async def test_all_hops_of_a_chain_hold_a_prompt_that_they_read() -> None:
    clock = VirtualClock()
    experience = Experience(clock)
    await answer(experience, clock, *HALVES)
    held = experience.costs(PROMPT, 9, keys=KEYS_OF_PROMPT).held
    assert held == {half.node: 256 for half in HALVES}


async def test_what_a_chain_was_spared_says_nothing_of_how_fast_it_reads() -> None:
    clock = VirtualClock()
    paces: list[list[float]] = []
    for pages in (0, 4):
        experience = Experience(clock)
        trial = trial_of(experience, *HALVES)
        trial.opened()
        trial.spared(pages)
        await clock.advance(0.001)
        trial.arrived()
        paces.append([float(learned(experience, half).row[0]) for half in HALVES])
    untouched = [float(learned(Experience(clock), half).row[0]) for half in HALVES]
    assert paces[1] == untouched
    assert all(fast < pace for fast, pace in zip(paces[0], untouched, strict=True))


@pytest.mark.parametrize(
    ("opened", "tokens", "deed"),
    [(False, 0, Deed.UNREACHABLE), (True, 0, Deed.FAILED), (True, 3, Deed.LOST)],
)
def test_a_loss_weighs_by_how_far_the_session_had_come(
    opened: bool, tokens: int, deed: Deed
) -> None:
    experience, other = Experience(VirtualClock()), Experience(VirtualClock())
    trial = trial_of(experience, *HALVES)
    if opened:
        trial.opened()
    for _ in range(tokens):
        trial.arrived()
    trial.lost(HALVES[1].node)
    other.reputation.saw(HALVES[1], deed)
    standings = [e.reputation.standing(HALVES[1].node).bad for e in (experience, other)]
    assert standings[0] == standings[1] > 0
    assert experience.reputation.standing(HALVES[0].node).bad == 0


def test_a_full_node_is_blamed_only_if_it_said_that_it_had_room() -> None:
    experience = Experience(VirtualClock())
    first, second = (record(3, 0, 5, free_positions=500) for _ in range(2))
    trial_of(experience, first)  # takes 400 of them
    trial_of(experience, second).refused(second.node, "capacity")
    assert experience.reputation.standing(second.node).bad == 0
    trial_of(experience, WHOLE).refused(WHOLE.node, "capacity")
    assert experience.reputation.standing(WHOLE.node).bad == 0.5


@pytest.mark.parametrize("code", ["not_held", "price"])
def test_a_false_record_bans(code: str) -> None:
    experience = Experience(VirtualClock())
    trial_of(experience, WHOLE).refused(WHOLE.node, code)
    assert experience.reputation.banned(WHOLE)


@pytest.mark.parametrize("code", ["malformed", "too_long", "wrong_gateway", "duplicate"])
def test_refusals_that_are_the_requests_fault_leave_no_stain(code: str) -> None:
    experience = Experience(VirtualClock())
    trial_of(experience, WHOLE).refused(WHOLE.node, code)
    assert experience.reputation.standing(WHOLE.node).bad == 0


def test_a_node_that_is_not_in_the_path_cannot_be_blamed() -> None:
    experience = Experience(VirtualClock())
    trial_of(experience, WHOLE).lost(KEYS[9].node_id)
    assert experience.reputation.standing(KEYS[9].node_id).bad == 0


def test_a_trial_weighs_on_its_nodes_until_it_is_closed() -> None:
    experience = Experience(VirtualClock())
    trial = trial_of(experience, *HALVES)
    assert [experience.load.own(h.node) for h in HALVES] == [1, 1]
    trial.close()
    trial.close()
    assert [experience.load.own(h.node) for h in HALVES] == [0, 0]


async def test_costs_expect_answers_as_long_as_they_were() -> None:
    clock = VirtualClock()
    experience = Experience(clock)
    assert experience.costs(PROMPT, 5000, keys=()).tokens == 128
    assert experience.costs(PROMPT, 50, keys=()).tokens == 50
    for _ in range(60):
        await answer(experience, clock, WHOLE, tokens=10)
    assert experience.costs(PROMPT, 5000, keys=()).tokens < 20


def test_several_tokens_per_loop_make_fewer_loops() -> None:
    experience = Experience(VirtualClock())
    for _ in range(100):
        experience.answered(128, 32)
    assert experience.costs(PROMPT, 128, keys=()).loops == pytest.approx(32, rel=0.02)


async def test_a_replacement_takes_over_the_session_and_speeds_stay_what_they_were() -> None:
    clock = VirtualClock()
    experience = Experience(clock)
    third = record(3, 2, 5, step_us=6000, row_us=60)
    trial = trial_of(experience, *HALVES)
    trial.opened()
    trial.arrived()
    trial.lost(HALVES[1].node)
    trial.replaced((HALVES[0], third))
    assert [experience.load.own(h.node) for h in (*HALVES, third)] == [1, 0, 1]
    for _ in range(20):
        await clock.advance(1)
        trial.arrived()
    trial.completed()
    trial.close()
    assert step(experience, third) == pytest.approx(0.006)
    assert experience.reputation.standing(third.node).good == 1
    assert experience.reputation.standing(HALVES[1].node).bad == 3
    assert [experience.load.own(h.node) for h in (*HALVES, third)] == [0, 0, 0]


async def test_guessed_tokens_say_nothing_about_the_time_of_a_loop() -> None:
    clock = VirtualClock()
    experience = Experience(clock)
    trial = trial_of(experience, WHOLE)
    trial.opened()
    for _ in range(20):
        await clock.advance(0.001)
        trial.arrived(4)
    trial.completed()
    assert step(experience, WHOLE) == pytest.approx(0.010)


async def test_who_reads_slower_than_it_says_is_taken_to_decode_slower_too() -> None:
    clock = VirtualClock()
    experience = Experience(clock)
    await answer(experience, clock, WHOLE, first=0.41, tokens=2)
    assert step(experience, WHOLE) > 0.030


def test_a_chain_that_is_outrun_before_its_first_token_is_blamed_a_little() -> None:
    experience = Experience(VirtualClock())
    trial = trial_of(experience, *HALVES)
    trial.outrun()  # it was not even open
    trial.opened()
    trial.outrun()
    trial.arrived()
    trial.outrun()
    assert [experience.reputation.standing(h.node).bad for h in HALVES] == [0.5, 0.5]
