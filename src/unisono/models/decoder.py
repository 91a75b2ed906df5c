"""What computes a block of layers, whatever it runs on.

A `Decoder` runs a block of layers over rows of any number of sessions at once. What a row
becomes depends on its own session's earlier rows only, never on what shares the batch: the
tests assert it with `==`, and that all implementations give the same bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from unisono.errors import UnisonoError
from unisono.models.cache import PageStore, SessionCache
from unisono.models.config import DecoderConfig
from unisono.models.weights import BlockWeights
from unisono.native import library
from unisono.numerics.ensemble import distribution
from unisono.types import Distribution, LayerRange, Sampling

KV_BYTES = 2 << 30
"""Memory for keys and values unless another is given."""

_WEIGHED_ROWS = 16
"""Rows whose logits are held at once to tell distributions: 32 MB for 262,144 tokens."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive positions of one session: `count` rows from `start`."""

    cache: SessionCache
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Draw:
    """How to choose the token that follows a row."""

    sampling: Sampling
    tokens: NDArray[np.int32]
    """Prompt and answer so far."""
    prompt: int
    """How many of them are the prompt."""
    top_logprobs: int = -1
    """Likeliest tokens to report; -1: no log probabilities."""
    weigh: bool = False
    """Whether to tell the distribution, and choose nothing."""


GREEDY = Draw(Sampling(), np.zeros(0, dtype=np.int32), 0)
"""The likeliest token, whatever came before."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token; log probabilities have 16 fraction bits."""

    token: int
    logprob: int = 0
    top: tuple[tuple[int, int], ...] = ()
    distribution: Distribution | None = None
    """If it was to be told; the token is then the likeliest."""


class Decoder(ABC):
    """A block of layers with its weights and its pages. For one thread at a time."""

    def __init__(
        self, config: DecoderConfig, layers: LayerRange, ends: tuple[bool, bool], kv_bytes: int
    ) -> None:
        self.config = config
        self.layers = layers
        self.ends = ends
        """Whether the block holds the embedding, and the output matrix."""
        self.store = PageStore(config, layers, kv_bytes)

    def new_cache(self, capacity: int) -> SessionCache:
        """An empty cache for one session of at most `capacity` positions."""
        return SessionCache(self.store, capacity)

    def embed(self, ids: Sequence[int]) -> Rows:
        """Residual rows int64 [n, hidden] of token ids; the block must begin the model."""
        if not self.ends[0]:
            raise UnisonoError(f"layers {self.layers} do not hold the embedding")
        tokens = np.asarray(ids, dtype=np.int64)
        self._in_vocabulary(tokens)
        return self._embed(tokens)

    def forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
        """Run the block.

        Args:
            rows: int64 [n, hidden] with 20 fraction bits, the segments' rows one after another.
            segments: sum of counts is n; each starts at most at its cache's length (an earlier
                start overwrites what follows).

        Returns:
            int64 [n, hidden].

        Raises:
            OutOfPages: no memory for keys and values is left.
        """
        if rows.shape[0] != sum(s.count for s in segments):
            raise UnisonoError(
                f"{rows.shape[0]} rows came for segments of {sum(s.count for s in segments)}"
            )
        for s in segments:
            s.cache.reserve(s.start, s.start + s.count)
        out = self._forward(rows, segments)
        for s in segments:
            s.cache.advance(s.start + s.count)
        return out

    def logits(self, rows: Rows) -> Rows:
        """int64 [n, vocabulary], 16 fraction bits, of the last layer's residual rows."""
        self._needs_head()
        return self._logits(rows)

    def choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        """A token per draw, given as (row, position of the token, how).

        Raises:
            UnisonoError: a row, a token or a setting outside its range.
        """
        self._needs_head()
        for row, _, draw in draws:
            if not 0 <= row < len(rows):
                raise UnisonoError(f"row {row} is drawn after, of {len(rows)}")
            if not 0 <= draw.prompt <= len(draw.tokens):
                raise UnisonoError(f"a prompt of {draw.prompt} in {len(draw.tokens)} tokens")
            most = min(library.MAX_TOP, self.config.vocabulary_size)
            if draw.top_logprobs > most:
                raise UnisonoError(f"{draw.top_logprobs} likeliest tokens: at most {most}")
            self._in_vocabulary(draw.tokens)
            problem = draw.sampling.problem(self.config.vocabulary_size)
            if problem is not None:
                raise UnisonoError(problem)
        plain = [each for each in draws if not each[2].weigh]
        told = [each for each in draws if each[2].weigh]
        chosen = iter(self._choose(rows, plain) if plain else ())
        weighed = iter(self._weigh(rows, told))
        return [next(weighed if draw.weigh else chosen) for _, _, draw in draws]

    def _weigh(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        out: list[Choice] = []
        for start in range(0, len(draws), _WEIGHED_ROWS):
            some = draws[start : start + _WEIGHED_ROWS]
            logits = self._logits(rows[[row for row, _, _ in some]])
            for scores, (_, _, draw) in zip(logits, some, strict=True):
                known = cast("list[int]", draw.tokens.tolist())
                prompt, answer = known[: draw.prompt], known[draw.prompt :]
                said = distribution(scores, draw.sampling, prompt, answer)
                out.append(Choice(said.ids[0], distribution=said))
        return out

    @abstractmethod
    def close(self) -> None:
        """Free what the decoder holds; it must not be used afterwards. Idempotent."""

    def _in_vocabulary(self, tokens: NDArray[Any]) -> None:
        if not tokens.size:
            return
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocabulary_size:
            raise UnisonoError(f"token ids {low} to {high} leave the vocabulary")

    def _needs_head(self) -> None:
        if not self.ends[1]:
            raise UnisonoError(f"layers {self.layers} do not hold the output matrix")

    @abstractmethod
    def _embed(self, ids: NDArray[np.int64]) -> Rows: ...

    @abstractmethod
    def _forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows: ...

    @abstractmethod
    def _logits(self, rows: Rows) -> Rows: ...

    @abstractmethod
    def _choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]: ...


def make_decoder(
    config: DecoderConfig,
    weights: BlockWeights,
    device: str = "cpu",
    *,
    threads: int | None = None,
    kv_bytes: int = KV_BYTES,
) -> Decoder:
    """The fastest decoder for a device: compiled kernels on a CPU that has them, else torch.

    `threads` counts the CPU threads that compute (default: every core).
    """
    if device == "cpu" and library.load() is not None:
        from unisono.models.native_decoder import NativeDecoder

        return NativeDecoder(config, weights, threads=threads, kv_bytes=kv_bytes)
    from unisono.models.torch_decoder import TorchDecoder

    return TorchDecoder(config, weights, device, threads=threads, kv_bytes=kv_bytes)
