from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.execution.pace import MAX_AHEAD, SMALLEST_CHANCE, Pace, PassCost
from unisono.models.cache import REACH_BACK

seconds = st.floats(1e-4, 1.0)
shares = st.floats(0.0, 1.0)


def cost(fixed: float, row: float) -> PassCost:
    made = PassCost()
    made.fixed, made.row = fixed, row
    return made


def pace(round_: float) -> Pace:
    made = Pace()
    made.observe(round_)
    return made


def test_guesses_on_the_way_are_no_more_than_a_session_may_take_back() -> None:
    assert MAX_AHEAD < REACH_BACK


@settings(max_examples=60)
@given(st.floats(1e-3, 0.1), st.floats(0.02, 0.9), st.integers(0, 1000))
def test_a_linear_cost_is_found_again(fixed: float, share: float, seed: int) -> None:
    row = share * fixed
    made, draw = PassCost(), random.Random(seed)
    assert not made.measured
    for _ in range(200):
        rows = draw.randint(1, 16)
        made.observe(rows, fixed + row * rows)
    assert made.measured
    assert made.fixed == pytest.approx(fixed, rel=1e-3)
    assert made.row == pytest.approx(row, rel=1e-3)


def test_a_cost_that_changes_is_followed() -> None:
    made, draw = PassCost(), random.Random(1)
    for fixed, row in ((0.02, 0.001), (0.05, 0.004), (0.01, 0.0005)):
        for _ in range(400):
            rows = draw.randint(1, 10)
            made.observe(rows, fixed + row * rows)
        assert made.fixed == pytest.approx(fixed, rel=0.02)
        assert made.row == pytest.approx(row, rel=0.02)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-5, 2.0)), min_size=1, max_size=40))
def test_whatever_was_measured_costs_are_sane(passes: list[tuple[int, float]]) -> None:
    made = PassCost()
    for rows, took in passes:
        made.observe(rows, took)
        assert made.fixed >= 0
        assert 0 < made.row <= max(t for _, t in passes)
        chance = pace(0.1).smallest_chance(made, 1, 1.0)
        assert SMALLEST_CHANCE <= chance <= 1


def test_passes_of_one_size_say_nothing_of_a_row_and_a_share_is_assumed() -> None:
    made = PassCost()
    for _ in range(50):
        made.observe(1, 0.02)
    assert made.row == pytest.approx(0.001)
    assert made.fixed == pytest.approx(0.019)


@given(seconds, seconds, st.integers(0, 64), shares, seconds, st.floats(1.0, 10.0))
def test_the_dearer_a_row_and_the_less_it_saves_the_surer_a_guess_has_to_be(
    fixed: float, row: float, sessions: int, idle: float, round_: float, more: float
) -> None:
    def smallest(
        fixed: float = fixed,
        row: float = row,
        sessions: int = sessions,
        idle: float = idle,
        round_: float = round_,
    ) -> float:
        return pace(round_).smallest_chance(cost(fixed, row), sessions, idle)

    here = smallest()
    assert SMALLEST_CHANCE <= here <= 1
    slack = 1e-12
    assert smallest(row=row * more) >= here - slack
    assert smallest(fixed=fixed * more) <= here + slack
    assert smallest(sessions=sessions + 5) >= here - slack
    assert smallest(idle=min(1.0, idle * more)) <= here + slack
    assert smallest(round_=round_ * more) <= here + slack


def test_a_guess_on_an_idle_chain_need_hardly_be_right_and_on_a_busy_one_it_must() -> None:
    assert pace(0.2).smallest_chance(cost(0.02, 0.001), 1, 1.0) == SMALLEST_CHANCE
    assert pace(0.2).smallest_chance(cost(0.0, 0.001), 8, 0.0) == 1.0


def test_before_a_round_is_known_only_the_pass_counts() -> None:
    assert Pace().smallest_chance(cost(0.009, 0.001), 1, 1.0) == pytest.approx(0.1)
    assert Pace().smallest_chance(cost(0.0, 0.0), 1, 0.0) == 1.0


def test_a_shorter_round_is_believed_at_once_and_a_longer_one_slowly() -> None:
    made = Pace()
    free = cost(0.0, 0.01)

    def round_() -> float:
        return free.row / made.smallest_chance(free, 1, 1.0) - free.row

    for took, expected in ((0.1, 0.1), (0.05, 0.05), (0.15, 0.06), (0.02, 0.02)):
        made.observe(took)
        assert round_() == pytest.approx(expected)
