"""Attention over a session's keys and values: integer scores, integer softmax.

Scores are exact products of 15-bit queries and keys, brought to base-2 logarithms with 16
fraction bits; probabilities are `2**-d` from a table; the weighted sum of values is exact,
and one division per element ends it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unisono.numerics.fixed import align, round_shift
from unisono.numerics.tables import EXP_BITS, table

SCORE_FRACTION = 16
SCORE_BITS = 40
MAX_DISTANCE = 40 << SCORE_FRACTION
"""Scores this far below the row's maximum (2**-40) have probability 0."""
PROBABILITY_BITS = 28
OUTPUT_BITS = 9
HEAD_GUARD_BITS = 24
_DIGIT = 14


def exp2_negative(distance: Tensor, bits: int) -> Tensor:
    """`2**-distance` with `bits` (<= 38) fraction bits; `distance` >= 0, 16 fraction bits."""
    exp2 = table("exp2", str(distance.device))
    index = (distance >> 6) & 1023
    low = exp2[index]
    value = low - round_shift((low - exp2[index + 1]) * (distance & 63), 6)
    return round_shift(value, ((distance >> 16) + (EXP_BITS - bits)).clamp(max=62))


def attend(
    queries: Tensor,
    query_exponent: Tensor,
    keys: Tensor,
    key_exponent: Tensor,
    values: Tensor,
    value_exponent: Tensor,
    allowed: Tensor,
    scale: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Softmax attention with grouped key/value heads (Ainslie et al. 2023).

    Args:
        queries: int64 [n, heads, size] of 15 bits. query_exponent: int64 [n, heads, 1].
        keys, values: integers [t, kv_heads, size] of 15 bits, t <= 2**18.
        key_exponent, value_exponent: integers [t, kv_heads].
        allowed: bool [n, t]; every row allows at least one position.
        scale: (mantissa below 2**20, exponent) of `log2(e) / sqrt(query_scalar)`.

    Returns:
        int64 [n, heads * size] and exponents [n, 1]: rows for the output projection.
    """
    n, heads, size = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    f64 = torch.float64
    q = queries.view(n, kv_heads, group, size).permute(1, 0, 2, 3).reshape(kv_heads, -1, size)
    k = keys.permute(1, 2, 0)
    dot = (q.to(f64) @ k.to(f64)).to(torch.int64).view(kv_heads, n, group, -1)  # below 2**39
    mantissa, scale_exponent = scale
    exponent = (
        query_exponent.view(n, kv_heads, group, 1).permute(1, 0, 2, 3)
        + (key_exponent.to(torch.int64).t()[:, None, None, :])
    )
    right = -(exponent + (scale_exponent + SCORE_FRACTION))
    score = align(dot * mantissa, right, SCORE_BITS)
    mask = allowed[None, :, None, :]
    top = score.masked_fill(~mask, -(1 << 62)).amax(-1, keepdim=True)
    distance = (top - score).clamp(min=0, max=MAX_DISTANCE)
    p = exp2_negative(distance, PROBABILITY_BITS).masked_fill(~mask, 0)

    v_exponent = value_exponent.to(torch.int64).t()[:, None, None, :]
    highest = v_exponent.expand_as(p).masked_fill(~mask, -(1 << 30)).amax(-1, keepdim=True)
    weight = round_shift(p, (highest - v_exponent).clamp(0, 62))
    v = values.permute(1, 0, 2).to(f64)
    # two digits keep each float64 sum below 2**53
    digits = torch.stack([weight >> _DIGIT, weight & ((1 << _DIGIT) - 1)])
    sums = (digits.to(f64).flatten(2, 3) @ v).to(torch.int64)
    total = (sums[0] << _DIGIT) + sums[1]
    out = total.view(kv_heads, n, group, size) // (p.sum(-1, keepdim=True) >> OUTPUT_BITS)

    return _join_heads(
        out.permute(1, 0, 2, 3).reshape(n, heads, size),
        highest.permute(1, 0, 2, 3).reshape(n, heads, 1),
    )


def _join_heads(out: Tensor, head_exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Bring a row's heads [n, heads, size] to one exponent and put them side by side."""
    common = head_exponent.amax(1, keepdim=True)
    shift = (common - head_exponent).clamp(max=62)
    joined = round_shift(out << HEAD_GUARD_BITS, shift)
    return joined.flatten(1), common[..., 0] - (OUTPUT_BITS + HEAD_GUARD_BITS)


def attend_causal(
    queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    start: int,
    first: int,
    window: int,
    scale: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """`attend` for consecutive queries, each seeing itself and what came before it.

    Args:
        queries: mantissas [n, heads, size] and exponents, of positions `start`, `start` + 1, …
        keys, values: int16 mantissas [t, kv_heads, size] and exponents [t, kv_heads], of
            positions `first`, `first` + 1, … up to the last query's.
        window: how many positions a query sees, itself included; 0 is all.
    """
    n, device = queries[0].shape[0], queries[0].device
    last = torch.arange(start + 1 - first, start + n + 1 - first, device=device)
    begin = (last - window).clamp(min=0) if window else torch.zeros_like(last)
    seen = torch.arange(keys[0].shape[0], device=device)
    allowed = (seen >= begin[:, None]) & (seen < last[:, None])
    return attend(*queries, *keys, *values, allowed, scale)
