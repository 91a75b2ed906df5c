"""Integer building blocks: shifts with rounding, saturation, per-row scaling, square root.

All tensors are int64. A *row with exponent* is a pair (mantissas [..., n], exponent [..., 1])
of value `mantissa * 2**exponent`: nothing is rounded to a fixed number of fraction bits
before an operator that is scale-free. `numerics.scalar` defines every function here one
element at a time, in unbounded Python integers; docs/numerics.md proves the ranges.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SHIFT = 62


def round_shift(x: Tensor, shift: Tensor | int) -> Tensor:
    """`x / 2**shift`, rounded to the nearest integer, halves upward.

    `shift` is in 0..62 and broadcasts; `|x| < 2**62`.
    """
    if isinstance(shift, int):
        return x if shift == 0 else (x + (1 << (shift - 1))) >> shift
    return (x + ((torch.ones_like(shift) << shift) >> 1)) >> shift


def align(x: Tensor, right: Tensor | int, bits: int) -> Tensor:
    """`x / 2**right` (a left shift where `right` is negative), saturated to `bits` bits.

    Right shifts round halves upward. What would pass `2**bits - 1` becomes it, so that the
    result is monotonic in `x`. Shifts by more than 62 count as 62.
    """
    limit = (1 << bits) - 1
    if isinstance(right, int):
        if right >= 0:
            return round_shift(x, min(right, MAX_SHIFT)).clamp(-limit, limit)
        left = min(-right, MAX_SHIFT)
        bound = limit >> left
        shifted = x.clamp(-bound, bound) << left
        return torch.where(x > bound, limit, torch.where(x < -bound, -limit, shifted))
    y = round_shift(x, right.clamp(0, MAX_SHIFT))
    left = (-right).clamp(0, MAX_SHIFT)
    bound = torch.full_like(left, limit) >> left
    shifted = torch.minimum(torch.maximum(y, -bound), bound) << left
    return torch.where(y > bound, limit, torch.where(y < -bound, -limit, shifted))


def bit_length(x: Tensor) -> Tensor:
    """Number of bits of each non-negative element (0 for 0); exact for all of int64.

    A conversion to float64 is exact below 2**53 only, hence the two halves.
    """
    high = x >> 31
    low_bits = torch.frexp((x & 0x7FFFFFFF).to(torch.float64))[1]
    high_bits = torch.frexp(high.to(torch.float64))[1]
    return torch.where(high > 0, high_bits + 31, low_bits).to(torch.int64)


def reduce_rows(x: Tensor, exponent: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Shift each row right until its largest magnitude has at most `bits` bits.

    Rows that fit already are unchanged. Rounding may carry the largest element to
    `2**bits`; it saturates at `2**bits - 1`.
    """
    limit = (1 << bits) - 1
    largest = x.abs().amax(-1, keepdim=True)
    shift = (bit_length(largest) - bits).clamp(min=0)
    return round_shift(x, shift).clamp(-limit, limit), exponent + shift


def square_root(x: Tensor) -> Tensor:
    """Integer square root, rounded down; `0 <= x < 2**52`.

    float64 square roots are correctly rounded by IEEE 754; the two corrections make the
    result independent even of that.
    """
    r = torch.sqrt(x.to(torch.float64)).to(torch.int64)
    r = torch.where(r * r > x, r - 1, r)
    return torch.where((r + 1) * (r + 1) <= x, r + 1, r)
