"""Vector instructions for compiled kernels, as LLVM intermediate code.

A multiply of 16-bit lanes whose neighbours are added is one instruction on x86 and Arm, but
compilers do not find it in a plain loop over groups of 32.
"""
# numba and llvmlite carry no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

_intrinsic: Any = extending.intrinsic
_GROUP = 32
_LANES = 8
_I32, _I64, _F64 = ir.IntType(32), ir.IntType(64), ir.DoubleType()


def _pick(builder: Any, vector: Any, indices: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(_I32, len(indices)), indices)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _load(builder: Any, pointer: Any, offset: Any, bits: int) -> Any:
    """32 integers of 8 or 16 bits from `pointer[offset]` on, widened to 32 bits."""
    vector = ir.VectorType(ir.IntType(bits), _GROUP).as_pointer()
    loaded = builder.load(builder.bitcast(builder.gep(pointer, [offset]), vector))
    loaded.align = bits // 8
    return builder.sext(loaded, ir.VectorType(_I32, _GROUP))


def _pairs(builder: Any, x: Any, y: Any) -> Any:
    """16 sums of neighbouring products."""
    products = builder.mul(x, y)
    even, odd = list(range(0, _GROUP, 2)), list(range(1, _GROUP, 2))
    return builder.add(_pick(builder, products, even), _pick(builder, products, odd))


def _sum(builder: Any, vector: Any) -> Any:
    """The sum of a vector's lanes."""
    out = builder.extract_element(vector, ir.Constant(_I32, 0))
    for lane in range(1, vector.type.count):
        out = builder.add(out, builder.extract_element(vector, ir.Constant(_I32, lane)))
    return out


def _dot_groups(
    builder: Any, rows: list[Any], values_at: Any, multipliers_at: Any, count: Any
) -> list[Any]:
    """For each pointer to int16 inputs: the sum over groups of `multipliers[g] * sum(x[g, :] *
    values[g, :])`.

    A group's 32 products are folded to 8 int32 lanes, below 2**24 each; the lanes times the
    multiplier are summed in float64, exactly, since the whole sum stays below 2**53.
    """
    lanes = ir.VectorType(_F64, _LANES)
    totals = [cgutils.alloca_once(builder, lanes) for _ in rows]
    for total in totals:
        builder.store(ir.Constant(lanes, [0.0] * _LANES), total)
    low, high = list(range(_LANES)), list(range(_LANES, 2 * _LANES))
    with cgutils.for_range(builder, count) as loop:
        offset = builder.mul(loop.index, ir.Constant(loop.index.type, _GROUP))
        values = _load(builder, values_at, offset, 8)
        scale = builder.uitofp(builder.load(builder.gep(multipliers_at, [loop.index])), _F64)
        first = builder.insert_element(
            ir.Constant(lanes, ir.Undefined), scale, ir.Constant(_I32, 0)
        )
        spread = _pick(builder, first, [0] * _LANES)
        for x_at, total in zip(rows, totals, strict=True):
            pairs = _pairs(builder, _load(builder, x_at, offset, 16), values)
            folded = builder.add(_pick(builder, pairs, low), _pick(builder, pairs, high))
            scaled = builder.fmul(builder.sitofp(folded, lanes), spread, flags=("contract",))
            added = builder.fadd(builder.load(total), scaled, flags=("contract",))
            builder.store(added, total)
    wide = ir.VectorType(_I64, _LANES)
    return [_sum(builder, builder.fptosi(builder.load(total), wide)) for total in totals]


_INPUTS = types.CPointer(types.int16)
_VALUES = types.CPointer(types.int8)
_MULTIPLIERS = types.CPointer(types.uint16)
_OUTPUTS = types.CPointer(types.int64)

ROW_BLOCK = 4
"""Rows that share one read of the weights in `dot_groups_block`."""


@_intrinsic
def dot_groups(_context: Any, x: Any, values: Any, multipliers: Any, groups: Any) -> Any:
    """One row of inputs times one row of grouped weights."""
    del x, values, multipliers, groups

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x_at, values_at, multipliers_at, count = arguments
        return _dot_groups(builder, [x_at], values_at, multipliers_at, count)[0]

    return types.int64(_INPUTS, _VALUES, _MULTIPLIERS, types.intp), generate


@_intrinsic
def dot_groups_block(
    _context: Any,
    x: Any,
    stride: Any,
    values: Any,
    multipliers: Any,
    groups: Any,
    out: Any,
    step: Any,
) -> Any:
    """`ROW_BLOCK` rows of inputs, `stride` elements apart, times one row of grouped weights;
    the sums are stored at `out`, `step` elements apart."""
    del x, stride, values, multipliers, groups, out, step
    signature = types.void(
        _INPUTS, types.intp, _VALUES, _MULTIPLIERS, types.intp, _OUTPUTS, types.intp
    )

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x_at, stride, values_at, multipliers_at, count, out_at, step = arguments

        def times(distance: Any, row: int) -> Any:
            return builder.mul(distance, ir.Constant(distance.type, row))

        rows = [builder.gep(x_at, [times(stride, r)]) for r in range(ROW_BLOCK)]
        sums = _dot_groups(builder, rows, values_at, multipliers_at, count)
        for r, total in enumerate(sums):
            builder.store(total, builder.gep(out_at, [times(step, r)]))
        return context.get_dummy_value()

    return signature, generate


@_intrinsic
def dot_heads(_context: Any, x: Any, y: Any, groups: Any) -> Any:
    """Dot product of two int16 vectors of 32 elements per group, `|x|, |y| < 2**15`.

    Two neighbouring products stay below 2**31 together; sums of pairs are taken in int64.
    """
    del x, y, groups
    signature = types.int64(types.CPointer(types.int16), types.CPointer(types.int16), types.intp)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x_at, y_at, count = arguments
        lanes = ir.VectorType(_I64, 2 * _LANES)
        total = cgutils.alloca_once(builder, lanes)
        builder.store(ir.Constant(lanes, [0] * (2 * _LANES)), total)
        with cgutils.for_range(builder, count) as loop:
            offset = builder.mul(loop.index, ir.Constant(loop.index.type, _GROUP))
            pairs = _pairs(
                builder, _load(builder, x_at, offset, 16), _load(builder, y_at, offset, 16)
            )
            builder.store(builder.add(builder.load(total), builder.sext(pairs, lanes)), total)
        return _sum(builder, builder.load(total))

    return signature, generate


@_intrinsic
def row_address(_context: Any, array: Any, row: Any) -> Any:
    """Pointer to the first element of a row of a two-dimensional array."""
    return _address(array, (row,))


@_intrinsic
def element_address(_context: Any, array: Any, row: Any, column: Any) -> Any:
    """Pointer to an element of a two-dimensional array."""
    return _address(array, (row, column), inner=False)


@_intrinsic
def head_address(_context: Any, array: Any, row: Any, head: Any) -> Any:
    """Pointer to the first element of a head of a three-dimensional array."""
    return _address(array, (row, head))


def _address(array: Any, indices: tuple[Any, ...], inner: bool = True) -> Any:
    signature = types.CPointer(array.dtype)(array, *indices)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        made = context.make_array(kind)(context, builder, arguments[0])
        last = [context.get_constant(types.intp, 0)] if inner else []
        return cgutils.get_item_pointer(
            context, builder, kind, made, [*arguments[1:], *last], wraparound=False
        )

    return signature, generate
