"""The compiled CPU kernel: products of integer rows with grouped int8 weights.

`bench/kernels.py` justifies it: one thread streams weights at 11 GB/s on a machine with AVX2
alone, where a plain loop reaches 2 GB/s (the compiler does not find the 16-bit multiply-add
in it) and the float64 path first expands every weight to eight bytes.
"""

from __future__ import annotations

import threading
from typing import Any, cast

import numba
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from unisono.errors import UnisonoError

_lock = threading.Lock()
"""numba's default thread pool must not be entered from two threads at once."""

_GROUP = 32
_LANES = 8


@intrinsic
def _dot_groups(_context: Any, x: Any, values: Any, multipliers: Any, groups: Any) -> Any:
    """Sum over groups of `multipliers[g] * sum(x[g, :] * values[g, :])`, as LLVM vectors.

    A group's 32 products are added in pairs (one multiply-add instruction on x86 and Arm)
    and folded to 8 int32 lanes, below 2**24 each; the lanes times the multiplier
    are summed in float64, exactly, since the whole sum stays below 2**53.
    """
    del x, values, multipliers, groups
    signature = types.int64(
        types.CPointer(types.int16),
        types.CPointer(types.int8),
        types.CPointer(types.uint16),
        types.intp,
    )

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x_at, values_at, multipliers_at, count = arguments
        i32, f64 = ir.IntType(32), ir.DoubleType()
        wide, lanes = ir.VectorType(i32, _GROUP), ir.VectorType(f64, _LANES)

        def pick(vector: Any, indices: list[int]) -> Any:
            mask = ir.Constant(ir.VectorType(i32, len(indices)), indices)
            return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)

        def load(pointer: Any, offset: Any, width: int, align: int) -> Any:
            vector = ir.VectorType(ir.IntType(width), _GROUP).as_pointer()
            loaded = builder.load(builder.bitcast(builder.gep(pointer, [offset]), vector))
            loaded.align = align
            return builder.sext(loaded, wide)

        total = cgutils.alloca_once(builder, lanes)
        builder.store(ir.Constant(lanes, [0.0] * _LANES), total)
        with cgutils.for_range(builder, count) as loop:
            offset = builder.mul(loop.index, ir.Constant(loop.index.type, _GROUP))
            products = builder.mul(load(x_at, offset, 16, 2), load(values_at, offset, 8, 1))
            pairs = builder.add(
                pick(products, list(range(0, _GROUP, 2))),
                pick(products, list(range(1, _GROUP, 2))),
            )
            folded = builder.add(
                pick(pairs, list(range(_LANES))), pick(pairs, list(range(_LANES, 2 * _LANES)))
            )
            multiplier = builder.uitofp(
                builder.load(builder.gep(multipliers_at, [loop.index])), f64
            )
            first = builder.insert_element(
                ir.Constant(lanes, ir.Undefined), multiplier, ir.Constant(i32, 0)
            )
            scaled = builder.fmul(builder.sitofp(folded, lanes), pick(first, [0] * _LANES))
            builder.store(builder.fadd(builder.load(total), scaled, flags=("contract",)), total)
        sums = builder.fptosi(builder.load(total), ir.VectorType(ir.IntType(64), _LANES))
        out = builder.extract_element(sums, ir.Constant(i32, 0))
        for lane in range(1, _LANES):
            out = builder.add(out, builder.extract_element(sums, ir.Constant(i32, lane)))
        return out

    return signature, generate


@intrinsic
def _row_address(_context: Any, array: Any, row: Any) -> Any:
    """Pointer to the first element of a row of a two-dimensional array."""
    signature = types.CPointer(array.dtype)(array, row)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        array = context.make_array(kind)(context, builder, arguments[0])
        zero = context.get_constant(types.intp, 0)
        return cgutils.get_item_pointer(context, builder, kind, array, [arguments[1], zero])

    return signature, generate


def _row_product(x: Any, values: Any, multipliers: Any, out: Any) -> None:  # pragma: no cover
    groups = multipliers.shape[1]
    for n in numba.prange(values.shape[0]):
        row, scales = _row_address(values, n), _row_address(multipliers, n)
        for m in range(x.shape[0]):
            out[m, n] = _dot_groups(_row_address(x, m), row, scales, groups)


_SIGNATURE = "void(int16[:,::1], int8[:,::1], uint16[:,::1], int64[:,::1])"
_serial: Any = numba.njit(_SIGNATURE, cache=True, nogil=True)(_row_product)
_parallel: Any = numba.njit(_SIGNATURE, cache=True, nogil=True, parallel=True)(_row_product)

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
    arrays = (
        cast(Any, x.to(torch.int16).contiguous()).numpy(),
        cast(Any, values).numpy(),
        cast(Any, multipliers).numpy(),
        cast(Any, out).numpy(),
    )
    if x.shape[0] * values.numel() < _PARALLEL_FROM or torch.get_num_threads() == 1:
        _serial(*arrays)
    else:
        with _lock:
            _parallel(*arrays)
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
