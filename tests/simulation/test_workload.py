"""Requests are the same for a seed, come in order, and have heavy tails."""

from __future__ import annotations

import statistics

from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.simulation.events import SECOND
from unisono.simulation.geography import CITIES
from unisono.simulation.workload import (
    ANSWER_MEDIAN,
    ANSWER_MOST,
    MAX_TOKENS,
    PROMPT_MEDIAN,
    PROMPT_MOST,
    day_factor,
    requests,
)

HOUR = 3600 * SECOND


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 24 * 60), st.integers(1, 90))
def test_requests_are_in_order_within_bounds_and_fit_what_is_reserved(
    seed: int, minute: int, length: int
) -> None:
    start = minute * 60 * SECOND
    end = start + length * SECOND
    found = list(requests(seed, start, end, 5.0))
    assert [r.number for r in found] == list(range(len(found)))
    assert [r.arrives for r in found] == sorted(r.arrives for r in found)
    for request in found:
        assert start <= request.arrives < end
        assert 0 <= request.city < len(CITIES)
        assert 1 <= request.prompt <= PROMPT_MOST
        assert 1 <= request.answer <= ANSWER_MOST
        assert request.answer <= request.max_tokens
        assert request.max_tokens in MAX_TOKENS


def test_a_seed_fixes_every_request_and_another_seed_changes_them() -> None:
    one, same, other = (list(requests(seed, 0, 60 * SECOND, 10.0)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_a_day_has_the_mean_rate_and_lengths_their_medians_and_tails() -> None:
    found = list(requests(3, 0, 24 * HOUR, 0.5))
    assert 0.9 < len(found) / (24 * 3600 * 0.5) < 1.1
    prompts, answers = [r.prompt for r in found], [r.answer for r in found]
    assert abs(statistics.median(prompts) / PROMPT_MEDIAN - 1) < 0.05
    assert abs(statistics.median(answers) / ANSWER_MEDIAN - 1) < 0.05
    # one in a hundred is ten times as long as the median
    assert statistics.quantiles(prompts, n=100)[98] > 10 * PROMPT_MEDIAN


def test_afternoons_are_busier_than_nights() -> None:
    london = next(i for i, city in enumerate(CITIES) if city.name == "London")
    assert day_factor(london, 16 * HOUR) > 1.4
    assert day_factor(london, 4 * HOUR) < 0.6
