"""Choosing the next token, as part of the function: the same request and seed give the same
tokens everywhere.

Order of the steps: repetition, presence and frequency penalties, logit bias, temperature,
top-k, top-p, min-p, then Gumbel-max over what is left. Ties go to the lower token id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from unisono.numerics.activation import LOG2_E
from unisono.numerics.fixed import bit_length, round_shift
from unisono.numerics.philox import philox
from unisono.numerics.softmax import MAX_DISTANCE, exp2_negative
from unisono.numerics.tables import LOG_BITS, table
from unisono.numerics.tensors import LOGIT_FRACTION
from unisono.types import Q16, Sampling

PROBABILITY_BITS = 28
"""Tokens whose probability relative to the likeliest rounds to 0 here are never drawn."""
LN_2 = 45426
"""ln 2 with 16 fraction bits."""
_SCORE_LIMIT = 1 << 42


def log2_fixed(x: Tensor) -> Tensor:
    """`log2(x)` of positive integers below 2**50, with 38 fraction bits (error below 2**-26)."""
    log2 = table("log2", str(x.device))
    exponent = bit_length(x) - 1
    fraction = torch.where(
        exponent <= 36, x << (36 - exponent).clamp(min=0), x >> (exponent - 36).clamp(min=0)
    ) & ((1 << 36) - 1)
    index = fraction >> 24
    low = log2[index]
    return (
        (exponent << LOG_BITS)
        + low
        + round_shift((log2[index + 1] - low) * (fraction & 0xFFFFFF), 24)
    )


def _base2_distance(below: Tensor) -> Tensor:
    """Natural-log distances (16 fraction bits, >= 0) in base 2, at most `MAX_DISTANCE`."""
    return round_shift(below.clamp(max=MAX_DISTANCE) * LOG2_E, 16).clamp(max=MAX_DISTANCE)


def adjust(
    logits: Tensor, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]
) -> Tensor:
    """Penalties and bias: int64 [vocabulary], 16 fraction bits, in and out."""
    out = logits
    if sampling.repetition_penalty != Q16 and (prompt or generated):
        seen = torch.tensor(sorted({*prompt, *generated}), device=logits.device)
        was, penalty = out[seen], sampling.repetition_penalty
        out = out.clone()
        out[seen] = torch.where(was > 0, (was << 16) // penalty, (was * penalty) >> 16)
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(generated)
        ids = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), device=logits.device)
        out = out.clone()
        out[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times
    if sampling.logit_bias:
        out = out.clone()
        ids = torch.tensor([i for i, _ in sampling.logit_bias], device=logits.device)
        out[ids] += torch.tensor([b for _, b in sampling.logit_bias], device=logits.device)
    return out.clamp(-_SCORE_LIMIT, _SCORE_LIMIT)


def _ranked(below: Tensor, count: int) -> Tensor:
    """Ids of the `count` best tokens, best first: ties by id, which makes every key unique."""
    ids = torch.arange(below.shape[0], device=below.device)
    keys = (below.clamp(max=_SCORE_LIMIT) << 20) | ids
    return torch.topk(keys, count, largest=False).values & ((1 << 20) - 1)


def _nucleus(below: Tensor, p: Tensor, top_p: int, kept: int) -> Tensor:
    """Ids of the smallest set of best tokens whose probability reaches `top_p`."""
    total = int(p.sum())
    threshold = (total >> 16) * top_p + (((total & 0xFFFF) * top_p) >> 16)
    count = min(kept, 64)
    while True:  # the set is small as a rule: look at few tokens first
        ids = _ranked(below, count)
        before = p[ids].cumsum(0) - p[ids]
        if count == kept or int(before[-1]) >= threshold:
            inside = before < threshold
            inside[0] = True
            return ids[inside]
        count = min(kept, count * 16)


def choose(
    logits: Tensor,
    sampling: Sampling,
    prompt: Sequence[int],
    generated: Sequence[int],
    position: int,
) -> int:
    """The next token.

    Args:
        logits: int64 [vocabulary], 16 fraction bits.
        prompt, generated: the tokens before it, for the penalties.
        position: absolute position of the token that is chosen.
    """
    scores = adjust(logits, sampling, prompt, generated)
    top = scores.max()
    if sampling.temperature == 0:
        return int((scores == top).nonzero()[0, 0])
    below = ((top - scores) << LOGIT_FRACTION) // sampling.temperature
    p = exp2_negative(_base2_distance(below), PROBABILITY_BITS)
    kept = below.shape[0]
    if 0 < sampling.top_k < kept:
        kept = sampling.top_k
        mask = torch.zeros_like(p, dtype=torch.bool)
        mask[_ranked(below, kept)] = True
        p = p.masked_fill(~mask, 0)
    if sampling.top_p < Q16:
        mask = torch.zeros_like(p, dtype=torch.bool)
        mask[_nucleus(below, p, sampling.top_p, kept)] = True
        p = p.masked_fill(~mask, 0)
    if sampling.min_p:
        p = p.masked_fill(p < (sampling.min_p << (PROBABILITY_BITS - 16)), 0)
    ids = p.nonzero().squeeze(-1)
    distance = _base2_distance(below[ids])
    # -log2 of a uniform number in (0, 1) with 33 bits is exponential; minus its log is Gumbel
    uniform = 2 * philox(ids, position, sampling.seed) + 1
    exponential = ((33 << LOG_BITS) - log2_fixed(uniform)).clamp(min=1)
    gumbel = round_shift((LOG_BITS << LOG_BITS) - log2_fixed(exponential), LOG_BITS - 16)
    keys = gumbel - distance
    return int(ids[(keys == keys.max()).nonzero()[0, 0]])


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """Natural-log probabilities of some tokens under the unaltered logits, 16 fraction bits.

    Tokens more than 40 bits below the likeliest are reported at that distance.
    """
    distance = _base2_distance(logits.max() - logits)
    total = exp2_negative(distance, PROBABILITY_BITS).sum()
    log_total = round_shift(log2_fixed(total) - (PROBABILITY_BITS << LOG_BITS), LOG_BITS - 16)
    return round_shift(-(distance[ids] + log_total) * LN_2, 16)


def likeliest(logits: Tensor, count: int) -> Tensor:
    """Ids of the `count` tokens with the largest logits, best first, ties by id."""
    return _ranked(logits.max() - logits, count)
