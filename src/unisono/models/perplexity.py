"""Perplexity: how well a model predicts a text, in integers and in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from unisono.errors import RequestError
from unisono.models.decoder import Decoder, Rows, Segment, make_decoder
from unisono.models.loading import load_block
from unisono.models.source import ModelSource
from unisono.models.store import StoredModel
from unisono.models.tokenizer import Tokenizer
from unisono.numerics.tensors import LOGIT_FRACTION
from unisono.types import LayerRange

_PREFILL_ROWS = 256
_HEAD_ROWS = 32
"""Rows whose logits lie in memory at once: 67 MB for a vocabulary of 262,144."""

Progress = Callable[[int, int, str], None]
"""Called with (positions done, positions in all, step)."""


class Loss(msgspec.Struct, frozen=True):
    """Mean natural-log loss over `tokens` predicted tokens."""

    tokens: int
    nats_per_token: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)


class Comparison(msgspec.Struct, frozen=True, omit_defaults=True):
    """The canonical model's loss, with the reference's beside it if that was measured."""

    model: str
    tokens: int
    """Predicted tokens: one less than the tokens that go in, the start token included."""
    nats_per_token: float
    perplexity: float
    reference_nats_per_token: float | None = None
    reference_perplexity: float | None = None
    change_percent: float | None = None
    """Of the perplexity, against the reference; positive is worse."""

    @classmethod
    def of(cls, model: str, canonical: Loss, reference: Loss | None) -> Comparison:
        """Put the two side by side."""
        if reference is None:
            return cls(model, canonical.tokens, canonical.nats_per_token, canonical.perplexity)
        change = canonical.perplexity / reference.perplexity - 1
        return cls(
            model,
            canonical.tokens,
            canonical.nats_per_token,
            canonical.perplexity,
            reference.nats_per_token,
            reference.perplexity,
            100 * change,
        )


def token_ids(model: StoredModel, text: str, limit: int | None = None) -> list[int]:
    """A text's tokens for measuring: the model's start token first, if it expects one.

    Args:
        limit: how many tokens to predict at most.

    Raises:
        RequestError: too few tokens to predict one, or more than the model's context.
    """
    ids = Tokenizer.from_files(model.tokenizer_files()).encode(text)
    ids = ids[: None if limit is None else limit + 1]
    context = model.manifest.config.context_length
    if len(ids) < 2:
        raise RequestError("the text is too short: there is no token to predict", "prompt")
    if len(ids) > context:
        raise RequestError(
            f"the text has {len(ids)} tokens, more than the model's context of {context}: "
            f"use --max-tokens {context - 1}",
            "prompt",
        )
    return ids


def measure(model: StoredModel, ids: Sequence[int], progress: Progress | None = None) -> Loss:
    """Loss of the canonical integer model: prefill in chunks, as a network computes it.

    Only the last step leaves the integers: the log-softmax of logits in float64.

    Raises:
        ModelError: the stored model is damaged.
    """
    report = progress or _silent
    config = model.manifest.config
    count = len(ids) - 1
    report(0, count, "loading")
    decoder = make_decoder(config, load_block(model, LayerRange(0, config.layer_count)))
    try:
        cache = decoder.new_cache(count)
        targets = np.array(ids[1:])
        total = 0.0
        for start in range(0, count, _PREFILL_ROWS):
            stop = min(start + _PREFILL_ROWS, count)
            rows = decoder.embed(ids[start:stop])
            rows = decoder.forward(rows, [Segment(cache, start, stop - start)])
            for first in range(0, stop - start, _HEAD_ROWS):
                here = slice(first, first + _HEAD_ROWS)
                total += _nats(decoder, rows[here], targets[start:stop][here])
            report(stop, count, "")
    finally:
        decoder.close()
    return Loss(count, total / count)


def measure_reference(
    source: ModelSource, ids: Sequence[int], progress: Progress | None = None
) -> Loss:
    """Loss of the float32 forward of the same source weights; see `models.reference`.

    Raises:
        CorruptModel: a tensor is missing or malformed.
    """
    from unisono.models.reference import reference_nll  # torch loads slowly, and only here

    report = progress or _silent
    count = len(ids) - 1
    report(0, count, "")
    losses = reference_nll(source, ids)
    report(count, count, "")
    return Loss(count, math.fsum(losses) / count)


def _nats(decoder: Decoder, rows: Rows, targets: NDArray[np.int64]) -> float:
    """Summed loss of residual rows [n, hidden] at `targets` [n]."""
    scores = decoder.logits(rows) * 2.0**-LOGIT_FRACTION
    top = scores.max(axis=1)
    norm = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
    return float((norm - scores[np.arange(len(rows)), targets]).sum())


def _silent(done: int, total: int, step: str) -> None:
    del done, total, step
