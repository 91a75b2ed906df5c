"""The specification of rotary embedding and of attention for one query position."""

from __future__ import annotations

from collections.abc import Sequence

from unisono.numerics.scalar.fixed import (
    MAX_SHIFT,
    Row,
    Scaled,
    align,
    exact_sum,
    in_range,
    reduce_row,
    round_shift,
)
from unisono.numerics.tables import cosine_values, exp2_values

TURN_BITS = 42
MAX_DISTANCE = 40 << 16
"""Scores 40 binary orders below the maximum have probability 0."""
DIGIT = 14
"""Probabilities are split here, so that each half's weighted sum is exact in float64."""


def _cosine(phase: int) -> int:
    """Cosine, 22 fraction bits, of a phase in turns with 42 fraction bits."""
    table = cosine_values()
    index, fraction = phase >> 30, (phase >> 14) & 0xFFFF
    return table[index] + round_shift((table[index + 1] - table[index]) * fraction, 16)


def rotation(position: int, frequencies: Row, factor: int) -> tuple[Row, Row]:
    """Cosines and sines (22 fraction bits) of `position * frequency` turns, times `factor`
    (16 fraction bits)."""
    mask, quarter = (1 << TURN_BITS) - 1, 3 << (TURN_BITS - 2)
    phases = [in_range(position * frequency) & mask for frequency in frequencies]
    in_range(factor, 20)
    cosines = [round_shift(_cosine(phase) * factor, 16) for phase in phases]
    sines = [round_shift(_cosine((phase + quarter) & mask) * factor, 16) for phase in phases]
    return cosines, sines


def rotate(head: Row, exponent: int, cosines: Row, sines: Row) -> Scaled:
    """One head whose first half is rotated against its second, reduced to 15 bits."""
    x, exponent = reduce_row(head, exponent, 24)
    half = len(x) // 2
    pairs = list(zip(x[:half], x[half:], cosines, sines, strict=True))
    first = [a * c - b * s for a, b, c, s in pairs]
    second = [b * c + a * s for a, b, c, s in pairs]
    return reduce_row(first + second, exponent - 22, 15)


def exp2_negative(distance: int, bits: int) -> int:
    """`2**-distance` with `bits` fraction bits; `distance >= 0` has 16."""
    table = exp2_values()
    index, fraction = (distance >> 6) & 1023, distance & 63
    value = table[index] - round_shift((table[index] - table[index + 1]) * fraction, 6)
    return round_shift(value, min((distance >> 16) + (38 - bits), MAX_SHIFT))


def _attend_head(
    query: Scaled, keys: Sequence[Scaled], values: Sequence[Scaled], scale: tuple[int, int]
) -> Scaled:
    """One head: mantissas with 9 fraction bits below the values' exponent, and that exponent."""
    mantissa, scale_exponent = scale
    in_range(mantissa, 20)
    scores: list[int] = []
    for key, exponent in keys:
        dot = exact_sum(
            in_range(q, 15) * in_range(k, 15) for q, k in zip(query[0], key, strict=True)
        )
        right = -(query[1] + exponent + scale_exponent + 16)
        scores.append(align(dot * mantissa, right, 40))
    top = max(scores)
    p = [exp2_negative(min(top - score, MAX_DISTANCE), 28) for score in scores]
    highest = max(exponent for _, exponent in values)
    weights = [
        round_shift(w, min(highest - exponent, MAX_SHIFT))
        for w, (_, exponent) in zip(p, values, strict=True)
    ]
    divisor = in_range(sum(p)) >> 9
    out: list[int] = []
    for i in range(len(values[0][0])):
        column = [in_range(value[i], 15) for value, _ in values]
        high = exact_sum((w >> DIGIT) * v for w, v in zip(weights, column, strict=True))
        low = exact_sum((w % (1 << DIGIT)) * v for w, v in zip(weights, column, strict=True))
        out.append(in_range((high << DIGIT) + low) // divisor)
    return out, highest


def attend(
    queries: Sequence[Scaled],
    keys: Sequence[Sequence[Scaled]],
    values: Sequence[Sequence[Scaled]],
    scale: tuple[int, int],
) -> Scaled:
    """Softmax attention of one position over the positions that it may see.

    Args:
        queries: one 15-bit row per head.
        keys, values: per seen position, one 15-bit row per key/value head; consecutive query
            heads share one.
        scale: (mantissa below 2**20, exponent) of `log2(e) / sqrt(query_scalar)`.

    Returns:
        The heads' outputs one after another, with the exponent they share.
    """
    group = len(queries) // len(keys[0])
    heads = [
        _attend_head(query, [k[h // group] for k in keys], [v[h // group] for v in values], scale)
        for h, query in enumerate(queries)
    ]
    common = max(exponent for _, exponent in heads)
    row = [
        round_shift(x << 24, min(common - exponent, MAX_SHIFT))
        for head, exponent in heads
        for x in head
    ]
    return row, common - 33
