"""How fast a decoder is on this machine: what `unisono bench` and the benchmarks measure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unisono.models.decoder import GREEDY, Decoder, Segment

PASS_ROWS = 256
"""Rows of a prompt in one pass, as an engine takes them."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens of one run, and its seconds."""

    tokens: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.tokens / self.seconds


def prompt_of(decoder: Decoder, count: int, seed: int = 0) -> list[int]:
    """Token ids that say nothing in particular."""
    draw = np.random.default_rng(seed)
    return [int(t) for t in draw.integers(3, decoder.config.vocabulary_size, count)]


def prefill(decoder: Decoder, tokens: int) -> Rate:
    """Read a prompt and choose the first token after it; `decoder` must be a whole model."""
    cache, ids = decoder.new_cache(tokens + 1), prompt_of(decoder, tokens)
    try:
        started = time.perf_counter()
        rows = np.zeros((0, 0), dtype=np.int64)
        for start in range(0, tokens, PASS_ROWS):
            part = ids[start : start + PASS_ROWS]
            rows = decoder.forward(decoder.embed(part), [Segment(cache, start, len(part))])
        decoder.choose(rows, [(len(rows) - 1, tokens, GREEDY)])
        return Rate(tokens, time.perf_counter() - started)
    finally:
        cache.close()


def decode(decoder: Decoder, tokens: int = 128, streams: int = 1, context: int = 1) -> Rate:
    """Generate greedily in `streams` sessions side by side, after `context` tokens each."""
    caches = [decoder.new_cache(context + tokens + 1) for _ in range(streams)]
    try:
        last: list[int] = []
        for number, cache in enumerate(caches):
            ids = prompt_of(decoder, context, number)
            for start in range(0, context - 1, PASS_ROWS):
                part = ids[start : min(start + PASS_ROWS, context - 1)]
                decoder.forward(decoder.embed(part), [Segment(cache, start, len(part))])
            last.append(ids[-1])
        started = time.perf_counter()
        for step in range(tokens):
            position = context - 1 + step
            segments = [Segment(cache, position, 1) for cache in caches]
            rows = decoder.forward(decoder.embed(last), segments)
            draws = [(i, position + 1, GREEDY) for i in range(streams)]
            last = [choice.token for choice in decoder.choose(rows, draws)]
        return Rate(tokens * streams, time.perf_counter() - started)
    finally:
        for cache in caches:
            cache.close()


def median_rate(run: Callable[[], Rate], repeats: int) -> float:
    """Median tokens per second of some runs."""
    return statistics.median(run().per_second for _ in range(repeats))
