"""Matrix products of integer rows with grouped int8 weights. Exact, whatever computes them.

Inputs are reduced to 15 magnitude bits, so every partial sum stays below
2**15 * 127 * 65535 * 32768 < 2**53: float64 products are exact in any order, and so are
int64 ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from unisono.numerics import tensors
from unisono.numerics.fixed import MAX_SHIFT, align, reduce_rows, round_shift
from unisono.numerics.tensors import BIAS_BITS, GROUP, INPUT_BITS

SUM_BITS = 60
"""Magnitude bits of an aligned bias."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """`tensors.Matrix` on a device."""

    values: Tensor
    multipliers: Tensor
    exponent: int

    @classmethod
    def on(cls, device: str, stored: tensors.Matrix) -> Matrix:
        """Copy stored weights to a device; on a CPU they are shared."""
        return cls(
            from_numpy(stored.values).to(device),
            from_numpy(stored.multipliers).to(device),
            stored.exponent,
        )

    @property
    def outputs(self) -> int:
        return self.values.shape[0]

    @property
    def inputs(self) -> int:
        return self.values.shape[1]

    def effective(self, start: int, stop: int) -> Tensor:
        """Rows `start:stop` as exact float64 integers `values * multipliers`."""
        values = self.values[start:stop].to(torch.float64).view(stop - start, -1, GROUP)
        scale = self.multipliers[start:stop].to(torch.float64).unsqueeze(-1)
        return (values * scale).view(stop - start, -1)


@dataclass(frozen=True, slots=True)
class Vector:
    """`tensors.Vector` on a device."""

    values: Tensor
    exponent: int

    @classmethod
    def on(cls, device: str, stored: tensors.Vector) -> Vector:
        """Copy a stored vector to a device; on a CPU it is shared."""
        return cls(from_numpy(stored.values).to(device), stored.exponent)


def from_numpy(array: NDArray[Any]) -> Tensor:
    """A tensor that shares a contiguous array's memory."""
    return cast("Tensor", cast(Any, torch).from_numpy(array))


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """Exact integer product: int64 [rows, inputs] (`|x| < 2**15`) → int64 [rows, outputs].

    Multiplied in float64, where every partial sum is exact, at most 2**22 weights at a time.
    """
    rows = x.shape[0]
    wide = x.to(torch.float64)
    step = max(1, (1 << 22) // matrix.inputs)
    out = torch.empty(rows, matrix.outputs, dtype=torch.int64, device=x.device)
    for start in range(0, matrix.outputs, step):
        stop = min(start + step, matrix.outputs)
        out[:, start:stop] = wide @ matrix.effective(start, stop).t()
    return out


def linear(
    x: Tensor, exponent: Tensor, matrix: Matrix, bias: Vector | None = None
) -> tuple[Tensor, Tensor]:
    """`x @ weight.T + bias` of rows with exponents.

    Args:
        x: int64 [rows, inputs], any magnitude below 2**62; reduced to 15 bits here.
        exponent: int64 [rows, 1].

    Returns:
        int64 [rows, outputs], below 2**53 without a bias and 2**61 with one, and the rows'
        exponents.
    """
    narrow, exponent = reduce_rows(x, exponent, INPUT_BITS)
    out_exponent = exponent + matrix.exponent
    out = product(narrow, matrix)
    if bias is not None:
        # a bias far above the product (of a row of zeros, say) sets the exponent
        common = out_exponent.clamp(min=bias.exponent - (SUM_BITS - BIAS_BITS))
        out = round_shift(out, (common - out_exponent).clamp(max=MAX_SHIFT))
        out = out + align(bias.values.expand_as(out), common - bias.exponent, SUM_BITS)
        out_exponent = common
    return out, out_exponent
