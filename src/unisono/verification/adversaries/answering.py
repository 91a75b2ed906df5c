"""Nodes that compute the right layers for another answer than they sign for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from unisono.models.cache import SessionCache
from unisono.models.config import DecoderConfig
from unisono.models.decoder import Choice, Decoder, Draw, Rows, Segment
from unisono.types import Q16, LayerRange, Sampling
from unisono.verification.adversaries.computing import Dishonest, head_share


class OtherPrompt(Dishonest):
    """Puts words of its own before the prompt's end, and signs for the prompt that it was given."""

    INSERTED = 4
    """Tokens of the prompt that are replaced."""
    LEAST = 16
    """A prompt of at least so many tokens; fewer may be the window of a guess."""

    def _embed(self, ids: NDArray[np.int64]) -> Rows:
        if len(ids) >= self.LEAST:
            ids = ids.copy()
            ids[1 : 1 + self.INSERTED] = (ids[1 : 1 + self.INSERTED] + 1) % (
                self.config.vocabulary_size
            )
        return super()._embed(ids)


class TruncatedContext(Dishonest):
    """Forgets the first half of the prompt: it computes neither its rows nor sees them later."""

    def __init__(self, inner: Decoder, layers: LayerRange | None = None) -> None:
        super().__init__(inner, layers)
        self._kept: dict[SessionCache, tuple[int, SessionCache]] = {}
        """A session → how many positions were forgotten, and where the others are."""

    def _forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
        out = np.array(rows)
        moved: list[Segment] = []
        picked: list[NDArray[np.int64]] = []
        first = 0
        for s in segments:
            forgotten, cache = self._shadow(s)
            skipped = min(s.count, max(0, forgotten - s.start))
            if skipped < s.count:
                moved.append(Segment(cache, s.start + skipped - forgotten, s.count - skipped))
                picked.append(np.arange(first + skipped, first + s.count))
            first += s.count
        if moved:
            places = np.concatenate(picked)
            out[places] = self.inner.forward(rows[places], moved)
        return out

    def _shadow(self, segment: Segment) -> tuple[int, SessionCache]:
        for cache in [c for c in self._kept if c.held == 0]:
            self._kept.pop(cache)[1].close()
        if segment.cache not in self._kept:
            cache = self.inner.new_cache(segment.cache.capacity)
            self._kept[segment.cache] = segment.count // 2, cache
        return self._kept[segment.cache]


class OtherSampling(Dishonest):
    """Draws tokens by other settings than the request's: base of those that do."""

    def _choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        altered = [
            (row, position, Draw(self.alter(d.sampling), d.tokens, d.prompt, d.top_logprobs))
            for row, position, d in draws
        ]
        return self.inner.choose(rows, altered)

    def alter(self, sampling: Sampling) -> Sampling:
        """The settings in use."""
        raise NotImplementedError


class OtherSeed(OtherSampling):
    """Draws with another seed: it could try seeds until an answer suits it."""

    def alter(self, sampling: Sampling) -> Sampling:
        return msgspec.structs.replace(sampling, seed=sampling.seed ^ 1)


class OtherTemperature(OtherSampling):
    """Draws at half of the temperature."""

    def alter(self, sampling: Sampling) -> Sampling:
        return msgspec.structs.replace(sampling, temperature=sampling.temperature // 2)


class IgnoredBan(OtherSampling):
    """Draws tokens that the request bans by a bias."""

    BAN = -1000 * Q16
    """A bias that no logit outweighs."""

    def alter(self, sampling: Sampling) -> Sampling:
        kept = tuple((t, b) for t, b in sampling.logit_bias if b > self.BAN)
        return msgspec.structs.replace(sampling, logit_bias=kept)


class UncheckedDraft(OtherSampling):
    """Takes what a cheap draft guesses for the token that its rows give. The draft scores only the
    first eighth of the vocabulary, where the frequent tokens are, and so spares most of the output
    matrix."""

    SCORED = 8

    @classmethod
    def saved(cls, config: DecoderConfig) -> float:
        return head_share(config) * (1 - 1 / cls.SCORED)

    def alter(self, sampling: Sampling) -> Sampling:
        size = self.config.vocabulary_size
        left_out = range(-(-size // self.SCORED), size)
        biases = dict(sampling.logit_bias) | dict.fromkeys(left_out, IgnoredBan.BAN)
        return msgspec.structs.replace(sampling, logit_bias=tuple(sorted(biases.items())))


class CachedAnswer(Dishonest):
    """Answers every request with the rows and tokens of the first, as far as those go."""

    NOTHING: ClassVar[Choice] = Choice(0)

    def __init__(self, inner: Decoder, layers: LayerRange | None = None) -> None:
        super().__init__(inner, layers)
        self._first: SessionCache | None = None
        self._rows: dict[int, Rows] = {}
        self._tokens: dict[int, Choice] = {}
        self._honest = True

    @classmethod
    def saved(cls, config: DecoderConfig) -> float:
        return 1.0

    def _forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
        self._first = self._first or segments[0].cache
        self._honest = any(s.cache is self._first for s in segments)
        if self._honest:
            out = self.inner._forward(rows, segments)
            self._remember(out, segments)
            return out
        zero = np.zeros(rows.shape[1], dtype=np.int64)
        places = [p for s in segments for p in range(s.start, s.start + s.count)]
        return np.stack([self._rows.get(p, zero) for p in places])

    def _remember(self, out: Rows, segments: Sequence[Segment]) -> None:
        first = 0
        for s in segments:
            if s.cache is self._first:
                for i in range(s.count):
                    self._rows[s.start + i] = out[first + i].copy()
            first += s.count

    def _choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        if self._honest:
            found = self.inner.choose(rows, draws)
            for (_, position, _), choice in zip(draws, found, strict=True):
                self._tokens.setdefault(position, choice)
            return found
        return [self._tokens.get(position, self.NOTHING) for _, position, _ in draws]
