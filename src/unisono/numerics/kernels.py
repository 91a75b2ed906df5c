"""The compiled CPU kernel: products of integer rows with grouped int8 weights.

`bench/kernels.py` justifies it: one thread streams weights at 11 GB/s on a machine with AVX2
alone, where a plain loop reaches 2 GB/s (the compiler does not find the 16-bit multiply-add
in it) and the float64 path first expands every weight to eight bytes.
"""

# numba and llvmlite carry no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import numba
import torch
from torch import Tensor

from unisono.errors import UnisonoError
from unisono.numerics.compiled import Kernel, array
from unisono.numerics.vectors import (
    ROW_BLOCK,
    dot_groups,
    dot_groups_block,
    element_address,
    row_address,
)


def _row_product(x: Any, values: Any, multipliers: Any, out: Any) -> None:  # pragma: no cover
    groups = multipliers.shape[1]
    rows, inputs, outputs = x.shape[0], x.shape[1], values.shape[0]
    blocks = rows // ROW_BLOCK
    for n in numba.prange(outputs):
        row, scales = row_address(values, n), row_address(multipliers, n)
        for block in range(blocks):
            m = block * ROW_BLOCK
            at, to = row_address(x, m), element_address(out, m, n)
            dot_groups_block(at, inputs, row, scales, groups, to, outputs)
        for m in range(blocks * ROW_BLOCK, rows):
            out[m, n] = dot_groups(row_address(x, m), row, scales, groups)


_kernel = Kernel("void(int16[:,::1], int8[:,::1], uint16[:,::1], int64[:,::1])", _row_product)

_PARALLEL_FROM = 1 << 18
"""Multiply-adds from which waking the other threads costs less than it saves."""


def row_product(x: Tensor, values: Tensor, multipliers: Tensor) -> Tensor:
    """Exact integer product on the CPU.

    Args:
        x: int64 [rows, inputs], `|x| < 2**15`.
        values: int8 [outputs, inputs]. multipliers: uint16 [outputs, inputs / 32].

    Returns:
        int64 [rows, outputs].
    """
    out = torch.empty(x.shape[0], values.shape[0], dtype=torch.int64)
    _kernel(
        x.shape[0] * values.numel() >= _PARALLEL_FROM,
        array(x.to(torch.int16)),
        array(values),
        array(multipliers),
        array(out),
    )
    return out


def self_test() -> None:
    """Known answers at the edges of every range, before a process computes for others.

    Raises:
        UnisonoError: this machine's products are not exact.
    """
    x = torch.tensor([[32767, -32767] * 512, [-32767] * 1024], dtype=torch.int64)
    signs = torch.tensor([127, -127] * 512, dtype=torch.int8)
    values = torch.stack([signs, torch.full((1024,), 127, dtype=torch.int8)])
    multipliers = torch.full((2, 32), 65535, dtype=torch.int32).to(torch.uint16)
    expected = torch.tensor([[1, 0], [0, -1]], dtype=torch.int64) * (32767 * 127 * 65535 * 1024)
    wide = values.to(torch.float64) * 65535.0
    for name, got in (
        ("row kernel", row_product(x, values, multipliers)),
        ("float64 product", (x.to(torch.float64) @ wide.t()).to(torch.int64)),
    ):
        if not torch.equal(got, expected):
            raise UnisonoError(
                f"this machine's {name} is not exact: expected {expected.tolist()}, got "
                f"{got.tolist()}. Its answers would be rejected; do not serve from it."
            )
