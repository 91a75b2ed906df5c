"""The specification of choosing a token: penalties, filters, Philox, Gumbel-max."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from unisono.numerics.scalar.attention import MAX_DISTANCE, exp2_negative
from unisono.numerics.scalar.fixed import Row, clamp, in_range, round_shift
from unisono.numerics.scalar.layers import LOG2_E
from unisono.numerics.tables import log2_values
from unisono.types import Q16, Sampling

LN_2 = 45426
"""ln 2 with 16 fraction bits."""
SCORE_LIMIT = 1 << 42


def philox4x32(
    counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int = 10
) -> tuple[int, int, int, int]:
    """Philox4x32 (Salmon et al., SC 2011): four words from four counter and two key words."""
    a, b, c, d = counter
    key0, key1 = key
    mask = (1 << 32) - 1
    for _ in range(rounds):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (
            (second >> 32) ^ b ^ key0,
            second & mask,
            (first >> 32) ^ d ^ key1,
            first & mask,
        )
        key0, key1 = (key0 + 0x9E3779B9) & mask, (key1 + 0xBB67AE85) & mask
    return a, b, c, d


def philox(token: int, position: int, seed: int) -> int:
    """The random word of a token id at a position: 32 bits."""
    key = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    return philox4x32((token, position, 0, 0), key)[0]


def log2_fixed(x: int) -> int:
    """`log2(x)` of `0 < x < 2**50`, with 38 fraction bits."""
    if x <= 0:
        raise OverflowError(f"log2 of {x} is not defined")
    table = log2_values()
    exponent = in_range(x, 50).bit_length() - 1
    scaled = x << (36 - exponent) if exponent <= 36 else x >> (exponent - 36)
    index, fraction = (scaled >> 24) & 4095, scaled & 0xFFFFFF
    step = round_shift((table[index + 1] - table[index]) * fraction, 24)
    return (exponent << 38) + table[index] + step


def _base2_distance(below: int) -> int:
    """A natural-log distance (16 fraction bits) in base 2, at most 40."""
    return min(round_shift(min(below, MAX_DISTANCE) * LOG2_E, 16), MAX_DISTANCE)


def adjust(logits: Row, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]) -> Row:
    """Logits (16 fraction bits) after penalties and bias, within ±2**42."""
    out = [in_range(x, 40) for x in logits]
    if sampling.repetition_penalty != Q16:
        for token in {*prompt, *generated}:
            if out[token] > 0:
                out[token] = in_range(out[token] << 16) // sampling.repetition_penalty
            else:
                out[token] = in_range(out[token] * sampling.repetition_penalty) >> 16
    for token, times in Counter(generated).items():
        out[token] -= sampling.presence_penalty + sampling.frequency_penalty * times
    for token, bias in sampling.logit_bias:
        out[token] += bias
    return [clamp(in_range(x), SCORE_LIMIT) for x in out]


def _ranked(below: Row) -> list[int]:
    """All ids, best first, ties by id."""
    return sorted(range(len(below)), key=lambda i: (min(below[i], SCORE_LIMIT), i))


def choose(
    logits: Row,
    sampling: Sampling,
    prompt: Sequence[int],
    generated: Sequence[int],
    position: int,
) -> int:
    """The token at `position`, from logits with 16 fraction bits.

    Penalties and bias, temperature, top-k, top-p, min-p, then the largest of
    `Gumbel noise - distance to the best`, all in base-2 logarithms.
    """
    scores = adjust(logits, sampling, prompt, generated)
    top = max(scores)
    if sampling.temperature == 0:
        return scores.index(top)
    below = [in_range((top - score) << 16) // sampling.temperature for score in scores]
    p = [exp2_negative(_base2_distance(x), 28) for x in below]
    kept = _ranked(below)
    if sampling.top_k:
        kept = kept[: sampling.top_k]
    if sampling.top_p < Q16:
        threshold = sum(p[i] for i in kept) * sampling.top_p >> 16
        before, nucleus = 0, kept[:1]
        for previous, token in pairwise(kept):
            before += p[previous]
            if before >= threshold:
                break
            nucleus.append(token)
        kept = nucleus
    kept = [i for i in kept if p[i] > 0 and p[i] >= sampling.min_p << 12]
    keys: dict[int, int] = {}
    for token in sorted(kept):
        # minus the logarithm of a uniform number is exponential, minus its logarithm Gumbel
        uniform = 2 * philox(token, position, sampling.seed) + 1
        exponential = max(1, (33 << 38) - log2_fixed(uniform))
        gumbel = round_shift((38 << 38) - log2_fixed(exponential), 22)
        keys[token] = gumbel - _base2_distance(below[token])
    return max(keys, key=lambda token: (keys[token], -token))


def log_probabilities(logits: Row, ids: Sequence[int]) -> Row:
    """Natural-log probabilities of some tokens, 16 fraction bits; no filter applies."""
    top = max(logits)
    distance = [_base2_distance(top - score) for score in logits]
    total = sum(exp2_negative(d, 28) for d in distance)
    log_total = round_shift(log2_fixed(total) - (28 << 38), 22)
    return [round_shift(-(distance[i] + log_total) * LN_2, 16) for i in ids]


def likeliest(logits: Row, count: int) -> list[int]:
    """Ids of the `count` largest logits, best first, ties by id."""
    top = max(logits)
    return _ranked([top - score for score in logits])[:count]
