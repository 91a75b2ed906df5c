"""Matrix products of integer rows with grouped int8 weights. Exact, whatever computes them.

A matrix holds int8 values in groups of 32 along its inputs; each group has a multiplier of
16 bits, and the matrix one power of two:

    weight[n, k] = values[n, k] * multipliers[n, k // 32] * 2**exponent

Inputs are reduced to 15 magnitude bits, so every partial sum stays below
2**15 * 127 * 65535 * 32768 < 2**53: float64 products are exact in any order, and so are
int64 ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unisono.numerics.fixed import MAX_SHIFT, align, reduce_rows, round_shift
from unisono.numerics.kernels import row_product

GROUP = 32
"""Inputs that share a multiplier."""
INPUT_BITS = 15
"""Magnitude bits of a matrix product's inputs."""
BIAS_BITS = 24
KERNEL_ROWS = 48
"""Up to this many rows the compiled kernel wins on a CPU (`bench/kernels.py`)."""
SUM_BITS = 60
"""Magnitude bits of an aligned bias."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Grouped int8 weights: `values` int8 [outputs, inputs], `multipliers` uint16
    [outputs, inputs / 32], one `exponent`."""

    values: Tensor
    multipliers: Tensor
    exponent: int

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
    """A norm weight or bias: `values` int64 [n] of value `values * 2**exponent`."""

    values: Tensor
    exponent: int


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """Exact integer product: int64 [rows, inputs] (`|x| < 2**15`) → int64 [rows, outputs].

    Few rows on a CPU go through the compiled kernel, which streams the int8 weights; many
    rows, and other devices, multiply in float64, at most 2**22 weights at a time.
    """
    rows = x.shape[0]
    if x.device.type == "cpu" and rows <= KERNEL_ROWS:
        return row_product(x, matrix.values, matrix.multipliers)
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
