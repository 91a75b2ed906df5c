"""The specification of an ensemble: what each model says of the next token, and the choice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from unisono.numerics.scalar.attention import MAX_DISTANCE, exp2_negative
from unisono.numerics.scalar.fixed import Row, in_range, round_shift
from unisono.numerics.scalar.layers import LOG2_E
from unisono.numerics.scalar.sampling import adjust, log2_fixed, philox
from unisono.types import Q16, Distribution, Sampling

LISTED = 256
"""Tokens that a model lists at most; of the others it tells the sum."""
SHARE_BITS = 32
"""Fraction bits of a token's share in one model's distribution."""


def distribution(
    logits: Row, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]
) -> Distribution:
    """What a model says of the next token, from logits with 16 fraction bits.

    Penalties, bias and temperature as in `choose`; a temperature of 0 counts as 1, since the
    mean of several models needs more than the best token of each.
    """
    scores = adjust(logits, sampling, prompt, generated)
    temperature = sampling.temperature or Q16
    top = max(scores)
    below = [in_range((top - score) << 16) // temperature for score in scores]
    distances = [round_shift(min(x, MAX_DISTANCE) * LOG2_E, 16) for x in below]
    p = [exp2_negative(min(d, MAX_DISTANCE), 28) for d in distances]
    ranked = sorted(range(len(p)), key=lambda i: (below[i], i))
    listed = [i for i in ranked[:LISTED] if p[i] > 0]
    likelihoods = tuple(p[i] for i in listed)
    return Distribution(tuple(listed), likelihoods, sum(p) - sum(likelihoods))


def mean(distributions: Sequence[Distribution]) -> dict[int, int]:
    """The sum of all models' shares in each listed token: 32 fraction bits each, rounded down.

    What a model does not list has no share of it: nobody knows which tokens its rest belongs to.
    """
    out: dict[int, int] = {}
    for each in distributions:
        whole = in_range(sum(each.likelihoods) + each.rest)
        for token, p in zip(each.ids, each.likelihoods, strict=True):
            out[token] = out.get(token, 0) + in_range(p << SHARE_BITS) // whole
    return out


def choose_jointly(distributions: Sequence[Distribution], sampling: Sampling, position: int) -> int:
    """The token at `position` that the models of an ensemble choose together.

    From the mean: top-k, top-p, min-p, then the largest of `Gumbel noise + log2 of the share`; of
    a temperature of 0 the largest share. Ties go to the lower token id.
    """
    shares = mean(distributions)
    kept = sorted(shares, key=lambda token: (-shares[token], token))
    if sampling.temperature == 0:
        return kept[0]
    whole = len(distributions) << SHARE_BITS
    if sampling.top_k:
        kept = kept[: sampling.top_k]
        whole = sum(shares[token] for token in kept)
    if sampling.top_p < Q16:
        threshold = in_range(whole * sampling.top_p) >> 16
        before, nucleus = 0, kept[:1]
        for previous, token in pairwise(kept):
            before += shares[previous]
            if before >= threshold:
                break
            nucleus.append(token)
        kept = nucleus
    least = in_range(shares[kept[0]] * sampling.min_p)
    kept = [token for token in kept if shares[token] > 0 and shares[token] << 16 >= least]
    keys: dict[int, int] = {}
    for token in sorted(kept):
        uniform = 2 * philox(token, position, sampling.seed) + 1
        exponential = max(1, (33 << 38) - log2_fixed(uniform))
        gumbel = round_shift((38 << 38) - log2_fixed(exponential), 22)
        keys[token] = gumbel + round_shift(log2_fixed(shares[token]), 22)
    return max(keys, key=lambda token: (keys[token], -token))
