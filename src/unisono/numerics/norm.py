"""Root-mean-square normalization (Zhang & Sennrich 2019) of rows with exponents."""

from __future__ import annotations

import torch
from torch import Tensor

from unisono.numerics.fixed import align, reduce_rows, round_shift, square_root

ROW_BITS = 30
"""Magnitude bits that the row itself keeps: outliers of 2**17 leave 13 bits for the rest."""
SUM_BITS = 15
"""Magnitude bits of the copy that is squared and summed."""
NORMAL_BITS = 24
"""Fraction bits of a normalized element before its weight."""


def rms_norm(
    x: Tensor,
    exponent: Tensor,
    weight: Tensor,
    weight_exponent: int,
    epsilon: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """`x / sqrt(mean(x**2) + epsilon) * weight`, per row.

    Args:
        x: int64 [..., n], `|x| < 2**62`, n <= 32768.
        exponent: int64 [..., 1].
        weight: int64 [n], `|weight| < 2**20`, of value `weight * 2**weight_exponent`.
        epsilon: (mantissa below 2**24, exponent).

    Returns:
        int64 [..., n] below 2**53 with the constant exponent `weight_exponent - 24`.
    """
    out_exponent = torch.full_like(exponent, weight_exponent - NORMAL_BITS)
    n = x.shape[-1]
    row, row_exponent = reduce_rows(x, exponent, ROW_BITS)
    copy, copy_exponent = reduce_rows(row, row_exponent, SUM_BITS)
    mean = ((copy * copy).sum(-1, keepdim=True) << 16) // n
    mantissa, epsilon_exponent = epsilon
    added = align(
        torch.full_like(mean, mantissa), 2 * copy_exponent - 16 - epsilon_exponent, bits=50
    )
    root = square_root(mean + added).clamp(min=1)  # in units of 2**(copy_exponent - 8)
    inverse = (1 << 46) // root
    normal = round_shift(row * inverse, copy_exponent - row_exponent + (38 - NORMAL_BITS))
    return normal * weight, out_exponent
