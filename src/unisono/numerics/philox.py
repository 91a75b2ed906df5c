"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011).

A token's random word depends on (seed, position, token id) alone, so that it is the same
whichever other tokens are looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
ROUNDS = 10


def _split(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of a 32 × 32 bit product, by 16-bit halves: no product overflows."""
    low = (x & 0xFFFF) * multiplier
    high = (x >> 16) * multiplier + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: Tensor, position: int, seed: int) -> Tensor:
    """First output word for counters (counter, position, 0, 0) under the key `seed`.

    Args:
        counter: int64 [n], 0 <= counter < 2**32 (token ids).
        position: below 2**32. seed: below 2**64.

    Returns:
        int64 [n], 0 <= word < 2**32.
    """
    a, b = counter, torch.full_like(counter, position)
    c, d = torch.zeros_like(counter), torch.zeros_like(counter)
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(ROUNDS):
        high0, low0 = _split(_MULTIPLIERS[0], a)
        high1, low1 = _split(_MULTIPLIERS[1], c)
        a, b, c, d = high1 ^ b ^ key0, low1, high0 ^ d ^ key1, low0
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return a
