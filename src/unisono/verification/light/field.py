"""Arithmetic modulo the prime 2**61 - 1, exact in float64 matrix units.

Freivalds' check (1977) of `y = W x`: for a secret random `r`, `r·y = (r·W)·x` always holds if the
product is right, and with probability at most 2**-60 if it is not. Both sides are inner products
of long vectors, which numpy multiplies fast in float64 only: numbers are split into limbs so
small that every partial sum stays below 2**53, where float64 is exact in any order.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from unisono.numerics.tensors import GROUP, Matrix
from unisono.types import digest

PRIME = (1 << 61) - 1
SEED_BYTES = 32
PRODUCT_BITS = 53
"""Magnitude bits of a matrix product's outputs: its definition guarantees them."""

_SHIFTS = (0, 21, 41)
"""Where the limbs of a field element begin: 21, 20 and 20 bits."""
_DIGIT = 18
"""Bits of a limb of a product's output: the upper one has a sign and 17 bits."""
_OUTPUTS = 1 << 14
"""Outputs summed at once: 21 + 18 + 14 bits."""
_INPUTS = 1 << 17
"""Inputs summed at once: 21 + 15 + 17 bits."""
_WEIGHT_ROWS = 1 << 9
"""Rows of a matrix summed at once: 21 + 23 + 9 bits."""

Elements = NDArray[np.uint64]
Limbs = NDArray[np.float64]


def secret_vector(seed: bytes, name: str, count: int) -> Elements:
    """`count` pseudorandom field elements: AES-256 in counter mode, keyed by seed and name.

    Each is 61 bits of the stream, so that 0 (as 0 and as 2**61 - 1) has probability 2**-60 and
    every other element 2**-61.
    """
    cipher = Cipher(algorithms.AES256(digest("light-vector/1", seed, name.encode())), _COUNTER)
    stream = cipher.encryptor().update(bytes(8 * count))
    return np.frombuffer(stream, dtype="<u8") & np.uint64(PRIME)


_COUNTER = modes.CTR(bytes(16))


def limbs(elements: Elements) -> Limbs:
    """Field elements [n] as float64 limbs [3, n] of at most 21 bits."""
    out = np.empty((3, elements.shape[0]))
    out[0] = elements & np.uint64((1 << 21) - 1)
    out[1] = (elements >> np.uint64(21)) & np.uint64((1 << 20) - 1)
    out[2] = elements >> np.uint64(41)
    return out


def output_product(secret: Limbs, outputs: NDArray[np.int64]) -> int:
    """`r · y` of outputs [n], magnitudes below 2**53."""
    total, mask = 0, (1 << _DIGIT) - 1
    digits = np.empty((3, min(len(outputs), _OUTPUTS)))
    for start in range(0, len(outputs), _OUTPUTS):
        part = outputs[start : start + _OUTPUTS]
        held = digits[:, : len(part)]
        held[0] = part & mask
        held[1] = (part >> _DIGIT) & mask
        held[2] = part >> (2 * _DIGIT)
        sums = _integers(secret[:, start : start + _OUTPUTS] @ held.T)
        total += sum(
            sums[limb][digit] << (shift + digit * _DIGIT)
            for limb, shift in enumerate(_SHIFTS)
            for digit in range(3)
        )
    return total % PRIME


def input_product(secret: Limbs, inputs: NDArray[np.int64]) -> int:
    """`s · x` of inputs [n], magnitudes below 2**15."""
    total, wide = 0, inputs.astype(np.float64)
    for start in range(0, len(inputs), _INPUTS):
        stop = start + _INPUTS
        sums = _integers(secret[:, start:stop] @ wide[start:stop, None])
        total += sum(sums[limb][0] << shift for limb, shift in enumerate(_SHIFTS))
    return total % PRIME


def weights_product(secret: Elements, matrix: Matrix) -> Elements:
    """`s = r · W` of the integer weights `values * multipliers`: one element per input.

    Rows are widened a few at a time: memory is 512 rows of float64, whatever the matrix.
    """
    wide = limbs(secret)
    total = np.zeros(matrix.inputs, dtype=np.uint64)
    prime = np.uint64(PRIME)
    for start in range(0, matrix.outputs, _WEIGHT_ROWS):
        stop = min(start + _WEIGHT_ROWS, matrix.outputs)
        values = matrix.values[start:stop].astype(np.float64).reshape(stop - start, -1, GROUP)
        values *= matrix.multipliers[start:stop, :, None]
        sums = (wide[:, start:stop] @ values.reshape(stop - start, -1)).astype(np.int64)
        for part, shift in zip(sums, _SHIFTS, strict=True):
            total += _rotated((part % PRIME).astype(np.uint64), shift)
        total %= prime
    return total


def _rotated(elements: Elements, bits: int) -> Elements:
    """`elements * 2**bits` modulo 2**61 - 1: a rotation of 61 bits."""
    if bits == 0:
        return elements
    high = (elements << np.uint64(bits)) & np.uint64(PRIME)
    return high | (elements >> np.uint64(61 - bits))


def _integers(sums: NDArray[np.float64]) -> list[list[int]]:
    return cast("list[list[int]]", sums.astype(np.int64).tolist())
