"""What clients ask for, and when: heavy-tailed lengths, bursts, and the hours of the day.

Medians follow the conversation trace that Azure published (Patel et al., "Splitwise", ISCA 2024: a
median prompt of 1,020 tokens, a median answer of 129), the bursts the finding that arrivals are
burstier than Poisson (Wang et al., "BurstGPT", 2024: gamma-distributed gaps). Tails are lognormal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from unisono.simulation.events import SECOND
from unisono.simulation.geography import CITIES, local_hour

PROMPT_MEDIAN, PROMPT_SPREAD, PROMPT_MOST = 1020, 1.1, 16_000
ANSWER_MEDIAN, ANSWER_SPREAD, ANSWER_MOST = 129, 1.0, 4_000
MAX_TOKENS = (256, 512, 1024, 2048, 4096)
"""Clients ask for at most one of these: the least that holds the answer, or the next."""
BURST_SHAPE = 0.5
"""Shape of the gamma-distributed load of a city's burst period: 1 would be exponential."""
BURST_SECONDS = 20
DAY_SWING = 0.5
"""Load over the day: between 1 − swing at 4 o'clock and 1 + swing at 16 o'clock local time."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client."""

    number: int
    arrives: int
    """Microseconds since midnight UTC."""
    city: int
    prompt: int
    """Tokens."""
    answer: int
    """Tokens that the model will say before it stops."""
    max_tokens: int
    """Tokens that the client allows: what nodes reserve room for."""


def day_factor(city: int, time: int) -> float:
    """Load of a city at a time, relative to its mean over the day."""
    hour = local_hour(CITIES[city], time)
    return 1 - DAY_SWING * math.cos((hour - 4) / 24 * 2 * math.pi)


def requests(seed: int, start: int, end: int, per_second: float) -> Iterator[Request]:
    """All requests of [start, end) in the order of their arrival.

    `per_second`: of the whole network, averaged over a day. Times in microseconds since midnight
    UTC. A doubly stochastic Poisson process per city: every `BURST_SECONDS` a new gamma factor.
    """
    draw = random.Random(f"workload/{seed}")
    number = 0
    period = BURST_SECONDS * SECOND
    for begin in range(start, end, period):
        length = min(period, end - begin)
        found: list[tuple[int, int]] = []
        for index, city in enumerate(CITIES):
            burst = draw.gammavariate(BURST_SHAPE, 1 / BURST_SHAPE)
            rate = per_second * city.share * day_factor(index, begin) * burst
            time = draw.expovariate(rate) if rate > 1e-9 else math.inf
            while time * SECOND < length:
                found.append((begin + int(time * SECOND), index))
                time += draw.expovariate(rate)
        for arrives, index in sorted(found):
            yield _request(draw, number, arrives, index)
            number += 1


def _request(draw: random.Random, number: int, arrives: int, city: int) -> Request:
    prompt = _length(draw, PROMPT_MEDIAN, PROMPT_SPREAD, PROMPT_MOST)
    answer = _length(draw, ANSWER_MEDIAN, ANSWER_SPREAD, ANSWER_MOST)
    holding = [limit for limit in MAX_TOKENS if limit >= answer]
    limit = holding[min(len(holding) - 1, draw.randrange(2))]
    return Request(number, arrives, city, prompt, answer, limit)


def _length(draw: random.Random, median: int, spread: float, most: int) -> int:
    return max(1, min(most, round(median * math.exp(draw.gauss(0, spread)))))
