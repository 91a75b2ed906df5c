"""Rotary position embedding (Su et al. 2021) with integer phases.

An angle is a fraction of a turn with 42 bits: `position * frequency` wraps exactly, at any
position. Cosine and sine come from one table of 4,096 entries with linear interpolation
(error below 6e-7).
"""

from __future__ import annotations

import torch
from torch import Tensor

from unisono.numerics.fixed import reduce_rows, round_shift
from unisono.numerics.tables import COS_BITS, table
from unisono.numerics.tensors import FACTOR_BITS, TURN_BITS

HEAD_BITS = 15
"""Magnitude bits of rotated queries and keys."""
INPUT_BITS = 24


def _cosine(phase: Tensor) -> Tensor:
    cosines = table("cosine", str(phase.device))
    index = phase >> 30
    fraction = (phase >> 14) & 0xFFFF
    low = cosines[index]
    return low + round_shift((cosines[index + 1] - low) * fraction, 16)


def rotation(positions: Tensor, frequencies: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for some positions.

    Args:
        positions: int64 [n], 0 <= position < 2**18.
        frequencies: int64 [head_size / 2], turns per position with 42 fraction bits.
        factor: 16 fraction bits, below 2**20.

    Returns:
        Two int64 [n, head_size / 2] with 22 fraction bits.
    """
    turn = (1 << TURN_BITS) - 1
    phase = (positions.unsqueeze(-1) * frequencies) & turn
    quarter = 3 << (TURN_BITS - 2)  # sin(a) = cos(a + 3/4 turn)
    cosines, sines = _cosine(phase), _cosine((phase + quarter) & turn)
    if factor == 1 << FACTOR_BITS:
        return cosines, sines
    return round_shift(cosines * factor, FACTOR_BITS), round_shift(sines * factor, FACTOR_BITS)


def rotate(x: Tensor, exponent: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the two halves of each head against each other.

    Args:
        x: int64 [n, heads, head_size], `|x| < 2**62`. exponent: int64 [n, heads, 1].
        cosines, sines: int64 [n, head_size / 2].

    Returns:
        int64 [n, heads, head_size] of at most 15 magnitude bits, and exponents.
    """
    x, exponent = reduce_rows(x, exponent, INPUT_BITS)
    c, s = cosines.unsqueeze(1), sines.unsqueeze(1)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    rotated = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
    return reduce_rows(rotated, exponent - COS_BITS, HEAD_BITS)
