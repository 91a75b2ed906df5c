"""Several models as one: each tells its distribution of the next token, and the token is drawn
from their mean. In numpy, since gateways and nodes on a CPU never load torch.

Order of the steps: each model's penalties, bias and temperature; the mean; top-k, top-p and min-p
of the mean; Gumbel-max. All of it is integers (`numerics.scalar.ensemble` is the specification),
so that the same models, request and seed give the same tokens everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from unisono.numerics.scalar.attention import MAX_DISTANCE
from unisono.numerics.scalar.ensemble import LISTED, SHARE_BITS
from unisono.numerics.scalar.layers import LOG2_E
from unisono.numerics.scalar.sampling import SCORE_LIMIT
from unisono.numerics.tables import EXP_BITS, LOG_BITS, values
from unisono.types import Q16, Distribution, Sampling

PROBABILITY_BITS = 28
_FARTHEST = 21 << 16
"""Tokens that are so much less likely (in natural logarithms) have likelihood 0."""

Integers = NDArray[np.int64]
_MASK = 0xFFFFFFFF


@cache
def _table(name: str) -> Integers:
    return np.array(values(name), dtype=np.int64)


def _round_shift(x: Integers, shift: Integers | int) -> Integers:
    return (x + ((np.int64(1) << shift) >> 1)) >> shift


def _adjusted(
    logits: Integers, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]
) -> Integers:
    """Penalties and bias: int64 [vocabulary], 16 fraction bits, in and out."""
    out = logits.copy()
    if sampling.repetition_penalty != Q16 and (prompt or generated):
        seen = np.array(sorted({*prompt, *generated}))
        was, penalty = out[seen], sampling.repetition_penalty
        out[seen] = np.where(was > 0, (was << 16) // penalty, (was * penalty) >> 16)
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(generated)
        times = np.array(list(counts.values()), dtype=np.int64)
        out[list(counts)] -= sampling.presence_penalty + sampling.frequency_penalty * times
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias, strict=True)
        out[list(ids)] += np.array(biases, dtype=np.int64)
    return np.clip(out, -SCORE_LIMIT, SCORE_LIMIT)


def distribution(
    logits: Integers, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]
) -> Distribution:
    """What a model says of the next token.

    Args:
        logits: int64 [vocabulary], 16 fraction bits.
        prompt, generated: the tokens before it, for the penalties.
    """
    scores = _adjusted(logits, sampling, prompt, generated)
    temperature = sampling.temperature or Q16
    distances = scores.max() - scores
    near = np.flatnonzero(distances <= ((_FARTHEST * temperature) >> 16) + 1)
    below = (distances[near] << 16) // temperature
    base2 = _round_shift(np.minimum(below, MAX_DISTANCE) * LOG2_E, 16)
    p = _exp2_negative(np.minimum(base2, MAX_DISTANCE))
    keys = (below << 20) | near  # best first, ties by id
    count = min(LISTED, len(keys))
    order = np.argpartition(keys, count - 1)[:count]
    order = order[np.argsort(keys[order])]
    order = order[p[order] > 0]
    listed = p[order]
    return Distribution(_integers(near[order]), _integers(listed), int(p.sum()) - int(listed.sum()))


def _exp2_negative(distance: Integers) -> Integers:
    exp2 = _table("exp2")
    index = (distance >> 6) & 1023
    low = exp2[index]
    value = low - _round_shift((low - exp2[index + 1]) * (distance & 63), 6)
    shift = np.minimum((distance >> 16) + (EXP_BITS - PROBABILITY_BITS), 62)
    return _round_shift(value, shift)


def choose_jointly(distributions: Sequence[Distribution], sampling: Sampling, position: int) -> int:
    """The token at `position` that the models of an ensemble choose together.

    Args:
        distributions: one of each model, in any order; at most 8, as `wire` bounds them.
        position: absolute position of the token that is chosen.
    """
    ids, shares = _mean(distributions)
    order = np.lexsort((ids, -shares))
    ids, shares = ids[order], shares[order]
    if sampling.temperature == 0:
        return int(ids[0])
    whole = len(distributions) << SHARE_BITS
    if sampling.top_k:
        ids, shares = ids[: sampling.top_k], shares[: sampling.top_k]
        whole = int(shares.sum())
    if sampling.top_p < Q16:
        inside = shares.cumsum() - shares < (whole * sampling.top_p) >> 16
        inside[0] = True
        ids, shares = ids[inside], shares[inside]
    good = (shares > 0) & (shares << 16 >= shares[0] * sampling.min_p)
    ids, shares = ids[good], shares[good]
    uniform = 2 * _philox(ids, position, sampling.seed) + 1
    exponential = np.maximum((33 << LOG_BITS) - _log2(uniform), 1)
    gumbel = _round_shift((LOG_BITS << LOG_BITS) - _log2(exponential), LOG_BITS - 16)
    keys = gumbel + _round_shift(_log2(shares), LOG_BITS - 16)
    return int(ids[keys == keys.max()].min())


def _mean(distributions: Sequence[Distribution]) -> tuple[Integers, Integers]:
    """Ids, ascending, and the sums of their shares (`numerics.scalar.ensemble.mean`)."""
    said = np.concatenate([np.array(each.ids, dtype=np.int64) for each in distributions])
    shares = np.concatenate(
        [
            (np.array(each.likelihoods, dtype=np.int64) << SHARE_BITS)
            // (sum(each.likelihoods) + each.rest)
            for each in distributions
        ]
    )
    ids, places = np.unique(said, return_inverse=True)
    sums = np.zeros(len(ids), dtype=np.int64)
    np.add.at(sums, places, shares)
    return ids, sums


def _log2(x: Integers) -> Integers:
    """`log2(x)` of positive integers below 2**50, with 38 fraction bits."""
    table = _table("log2")
    exponent = np.frexp(x.astype(np.float64))[1].astype(np.int64) - 1  # exact: below 2**53
    fraction = np.where(
        exponent <= 36, x << np.maximum(36 - exponent, 0), x >> np.maximum(exponent - 36, 0)
    ) & ((1 << 36) - 1)
    index = fraction >> 24
    low = table[index]
    step = _round_shift((table[index + 1] - low) * (fraction & 0xFFFFFF), 24)
    return (exponent << LOG_BITS) + low + step


def _philox(counter: Integers, position: int, seed: int) -> Integers:
    """First output word of Philox4x32-10 (Salmon et al., SC 2011) for counters (counter,
    position, 0, 0) under the key `seed`: int64 [n], below 2**32."""
    a = counter.astype(np.uint64)
    b = np.full_like(a, position)
    c, d = np.zeros_like(a), np.zeros_like(a)
    mask, half = np.uint64(_MASK), np.uint64(32)
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (
            (second >> half) ^ b ^ np.uint64(key0),
            second & mask,
            (first >> half) ^ d ^ np.uint64(key1),
            first & mask,
        )
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return a.astype(np.int64)


def _integers(x: Integers) -> tuple[int, ...]:
    return tuple(cast("list[int]", x.tolist()))
