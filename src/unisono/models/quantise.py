"""From float weights to the canonical integers. Deterministic on every machine.

Only operations whose result IEEE 754 fixes are used (scaling by powers of two, single
divisions, rounding, sums of small integers in float64), so that everybody who converts the
same file gets the same model id.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from unisono.errors import CorruptModel, UnsupportedModel
from unisono.numerics.linear import BIAS_BITS, GROUP, Matrix, Vector
from unisono.numerics.norm import WEIGHT_BITS

LEVELS = (127, 126, 124, 121, 120, 117, 112)
"""Candidates for the integer that stands for a group's largest weight. The one with the
least squared error is taken: weights that lie on a coarser grid (5-bit and 8-bit GGUF
types) then come out exact, because some candidate is a multiple of their largest step."""
_EXTRA_BITS = 4
_MAX_EXPONENT = 128
_CHUNK = 1 << 22

_from_numpy = cast("Callable[[NDArray[Any]], torch.Tensor]", cast("Any", torch).from_numpy)


def quantise_matrix(name: str, weight: NDArray[np.float32]) -> Matrix:
    """Grouped int8 form of a float matrix [outputs, inputs].

    Raises:
        CorruptModel: a weight is infinite or not a number.
    """
    w = _from_numpy(np.ascontiguousarray(weight, dtype=np.float32))
    outputs, inputs = w.shape
    largest = float(w.abs().max()) if w.numel() else 0.0
    if not math.isfinite(largest):
        raise CorruptModel(f"tensor '{name}' holds infinite weights or NaN")
    exponent = math.frexp(largest / LEVELS[-1])[1] - 16 if largest else 0
    exponent = max(-_MAX_EXPONENT, min(_MAX_EXPONENT, exponent))
    values = torch.empty(outputs, inputs, dtype=torch.int8)
    multipliers = torch.empty(outputs, inputs // GROUP, dtype=torch.int32)
    step = max(1, _CHUNK // inputs)
    unit = 2.0 ** (_EXTRA_BITS - exponent)
    for start in range(0, outputs, step):
        rows = w[start : start + step]
        groups = (rows.to(torch.float64) * unit).round_().view(-1, GROUP)
        q, m = _quantise_groups(groups)
        values[start : start + step] = q.view(rows.shape)
        multipliers[start : start + step] = m.view(rows.shape[0], -1)
    return Matrix(values, multipliers.to(torch.uint16), exponent)


def _quantise_groups(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[g, 32] float64 integers → int8 [g, 32] and multipliers [g]."""
    top = groups.abs().amax(-1, keepdim=True)
    scale = 1 << _EXTRA_BITS
    best_error: torch.Tensor | None = None
    best_q = best_m = torch.empty(0)
    for level in LEVELS:
        m = (top / (scale * level)).round_().clamp_(1, 65535)
        q = (groups / (m * scale)).round_().clamp_(-127, 127)
        error = (groups - q * (m * scale)).square_().sum(-1, keepdim=True)
        if best_error is None:
            best_error, best_q, best_m = error, q, m
        else:
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_q = torch.where(better, q, best_q)
            best_m = torch.where(better, m, best_m)
        if not bool(best_error.any()):
            break
    return best_q.to(torch.int8), best_m.to(torch.int32).squeeze(-1)


def _quantise_vector(name: str, values: NDArray[np.float32], bits: int) -> Vector:
    largest = float(np.max(np.abs(values))) if values.size else 0.0
    if not math.isfinite(largest):
        raise CorruptModel(f"tensor '{name}' holds infinite values or NaN")
    exponent = math.frexp(largest)[1] - bits if largest else 0
    exponent = max(-_MAX_EXPONENT, exponent)
    limit = (1 << bits) - 1
    scaled = np.rint(values.astype(np.float64) * 2.0**-exponent).clip(-limit, limit)
    return Vector(_from_numpy(scaled.astype(np.int64)), exponent)


def quantise_norm(name: str, values: NDArray[np.float32]) -> Vector:
    """Norm weights as 20-bit integers with one exponent."""
    return _quantise_vector(name, values, WEIGHT_BITS)


def quantise_bias(name: str, values: NDArray[np.float32]) -> Vector:
    """A bias as 24-bit integers with one exponent."""
    return _quantise_vector(name, values, BIAS_BITS)


def fraction_to_fixed(value: Fraction, bits: int) -> tuple[int, int]:
    """The (mantissa, exponent) nearest to a positive number, mantissa of exactly `bits` bits.

    Raises:
        UnsupportedModel: the number is not positive.
    """
    if value <= 0:
        raise UnsupportedModel(f"a constant of the model is {value}: a positive one was expected")
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - bits
    while value / Fraction(2) ** exponent >= 1 << bits:
        exponent += 1
    while value / Fraction(2) ** exponent < 1 << (bits - 1):
        exponent -= 1
    scaled = value / Fraction(2) ** exponent
    mantissa = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    if mantissa == 1 << bits:
        return mantissa >> 1, exponent + 1
    return mantissa, exponent


def inverse_square_root(value: int, bits: int = 80) -> Fraction:
    """`1 / sqrt(value)` of a positive integer to `bits` fraction bits, from integer square roots.

    Raises:
        UnsupportedModel: the integer is not positive.
    """
    if value <= 0:
        raise UnsupportedModel(f"{value} has no inverse square root: expected a positive integer")
    return Fraction(math.isqrt((1 << (2 * bits)) // value), 1 << bits)


def square_root(value: int, bits: int = 80) -> Fraction:
    """`sqrt(value)` to `bits` fraction bits, from integer square roots."""
    return Fraction(math.isqrt(value << (2 * bits)), 1 << bits)
