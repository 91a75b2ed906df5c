"""Building blocks of the specification: range checks, shifts, saturation, row scaling."""

from __future__ import annotations

import math
from collections.abc import Iterable

Row = list[int]
Scaled = tuple[list[int], int]
"""A row of mantissas and their common exponent: element i is worth `row[i] * 2**exponent`."""

MAX_SHIFT = 62
"""Shift counts above this count as this."""


def in_range(value: int, bits: int = 63) -> int:
    """`value` itself.

    Raises:
        OverflowError: its magnitude is not below `2**bits`.
    """
    if abs(value) >> bits:
        raise OverflowError(f"{value} has {value.bit_length()} bits; the proof allows {bits}")
    return value


def exact_sum(terms: Iterable[int]) -> int:
    """The sum of terms that float64 may add in any order.

    Raises:
        OverflowError: the magnitudes sum to 2**53 or more, so some partial sum might round.
    """
    total = magnitude = 0
    for term in terms:
        total += term
        magnitude += abs(term)
    in_range(magnitude, 53)
    return total


def round_shift(x: int, shift: int) -> int:
    """`x / 2**shift` to the nearest integer, halves upward; `|x| < 2**62`, shift in 0..62."""
    in_range(x, 62)
    if not 0 <= shift <= MAX_SHIFT:
        raise OverflowError(f"a shift by {shift} is not defined; 0..62 is")
    return (x + ((1 << shift) >> 1)) >> shift


def clamp(x: int, limit: int) -> int:
    """`x` limited to `-limit..limit`."""
    return max(-limit, min(limit, x))


def align(x: int, right: int, bits: int) -> int:
    """`x / 2**right`, saturated to `bits` magnitude bits.

    A right shift rounds halves upward; a negative `right` shifts left. Counts above 62 count
    as 62. What would pass `2**bits - 1` becomes it.
    """
    limit = (1 << bits) - 1
    if right >= 0:
        return clamp(round_shift(x, min(right, MAX_SHIFT)), limit)
    left = min(-right, MAX_SHIFT)
    return clamp(in_range(x, 62) << left, limit)


def bit_length(x: int) -> int:
    """Number of bits of a non-negative integer, 0 for 0."""
    return x.bit_length()


def reduce_row(row: Row, exponent: int, bits: int) -> Scaled:
    """The row shifted right until its largest magnitude has at most `bits` bits.

    A row that fits already is unchanged. Where rounding carries an element to `2**bits`, it
    becomes `2**bits - 1`.
    """
    largest = max(abs(in_range(x, 62)) for x in row)
    shift = max(0, bit_length(largest) - bits)
    limit = (1 << bits) - 1
    return [clamp(round_shift(x, shift), limit) for x in row], exponent + shift


def square_root(x: int) -> int:
    """Integer square root, rounded down; `0 <= x < 2**52`."""
    return math.isqrt(in_range(x, 52))
