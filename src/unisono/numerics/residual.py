"""The residual stream: fixed-point rows that cross block boundaries, and both of its ends."""

from __future__ import annotations

import torch
from torch import Tensor

from unisono.numerics.fixed import align
from unisono.numerics.linear import Matrix, linear
from unisono.numerics.tensors import GROUP, LOGIT_FRACTION, RESIDUAL_FRACTION

RESIDUAL_BITS = 43
"""Magnitude bits at which it saturates: values up to 2**23 = 8,388,608."""
LOGIT_BITS = 40


def embed(ids: Tensor, matrix: Matrix, scale: tuple[int, int]) -> Tensor:
    """Rows of the embedding matrix as residual rows.

    Args:
        ids: int64 [n], each below `matrix.outputs`.
        scale: (mantissa below 2**18, exponent) that multiplies every element.

    Returns:
        int64 [n, inputs] with 20 fraction bits.
    """
    mantissa, exponent = scale
    values = matrix.values[ids].to(torch.int64)
    # uint16 rows are gathered as int32: torch indexes few unsigned types
    multipliers = matrix.multipliers.view(torch.int16)[ids].to(torch.int64) & 0xFFFF
    rows = values * multipliers.repeat_interleave(GROUP, dim=-1) * mantissa
    return align(rows, -(matrix.exponent + exponent + RESIDUAL_FRACTION), RESIDUAL_BITS)


def add(residual: Tensor, x: Tensor, exponent: Tensor) -> Tensor:
    """`residual + x * 2**exponent`, saturated: the end of every attention and MLP."""
    limit = (1 << RESIDUAL_BITS) - 1
    added = align(x, -(exponent + RESIDUAL_FRACTION), RESIDUAL_BITS)
    return (residual + added).clamp(-limit, limit)


def logits(x: Tensor, exponent: Tensor, head: Matrix) -> Tensor:
    """Scores of all tokens: int64 [rows, vocabulary] with 16 fraction bits."""
    out, out_exponent = linear(x, exponent, head)
    return align(out, -(out_exponent + LOGIT_FRACTION), LOGIT_BITS)
