"""The specification of what acts on whole rows: products, norm, gates, the residual stream."""

from __future__ import annotations

from typing import NamedTuple

from unisono.numerics.scalar.attention import exp2_negative
from unisono.numerics.scalar.fixed import (
    Row,
    Scaled,
    align,
    clamp,
    exact_sum,
    in_range,
    reduce_row,
    round_shift,
    square_root,
)
from unisono.numerics.tables import gate_values

GROUP = 32
LOG2_E = 94548
"""log2(e) with 16 fraction bits."""
GELU_LINEAR = 1713444047
"""2 sqrt(2/π) with 30 fraction bits."""
GELU_CUBIC = 76616651
"""2 sqrt(2/π) 0.044715 with 30 fraction bits."""
RESIDUAL_LIMIT = (1 << 43) - 1


class Matrix(NamedTuple):
    """Grouped weights: `weight[n][k] = values[n][k] * multipliers[n][k // 32] * 2**exponent`,
    with values in -128..127 and multipliers in 0..65535."""

    values: list[list[int]]
    multipliers: list[list[int]]
    exponent: int


class Vector(NamedTuple):
    """A norm weight (20 magnitude bits) or bias (24), of value `values * 2**exponent`."""

    values: list[int]
    exponent: int


def product(row: Row, matrix: Matrix) -> Row:
    """Exact integer products of a row (`|x| < 2**15`) with every row of the matrix."""
    if len(row) > 1 << 15:
        raise OverflowError(f"{len(row)} columns; sums are proven exact up to 32,768")
    for x in row:
        in_range(x, 15)
    return [
        exact_sum(
            x * value * multipliers[k // GROUP]
            for k, (x, value) in enumerate(zip(row, values, strict=True))
        )
        for values, multipliers in zip(matrix.values, matrix.multipliers, strict=True)
    ]


def linear(row: Row, exponent: int, matrix: Matrix, bias: Vector | None = None) -> Scaled:
    """`row @ weight.T + bias`, of a row with any magnitudes below 2**62."""
    narrow, exponent = reduce_row(row, exponent, 15)
    out_exponent = exponent + matrix.exponent
    out = product(narrow, matrix)
    if bias is None:
        return out, out_exponent
    common = max(out_exponent, bias.exponent - 36)
    out = [round_shift(x, min(common - out_exponent, 62)) for x in out]
    added = [align(in_range(b, 24), common - bias.exponent, 60) for b in bias.values]
    return [in_range(x + b, 61) for x, b in zip(out, added, strict=True)], common


def rms_norm(row: Row, exponent: int, weight: Vector, epsilon: tuple[int, int]) -> Scaled:
    """`row / sqrt(mean(row**2) + epsilon) * weight`; `epsilon` is (mantissa, exponent)."""
    wide, wide_exponent = reduce_row(row, exponent, 30)
    copy, copy_exponent = reduce_row(wide, wide_exponent, 15)
    mean = in_range(sum(x * x for x in copy) << 16) // len(row)
    mantissa, epsilon_exponent = epsilon
    added = align(in_range(mantissa, 24), 2 * copy_exponent - 16 - epsilon_exponent, 50)
    root = max(1, square_root(mean + added))  # in units of 2**(copy_exponent - 8)
    inverse = (1 << 46) // root
    shift = copy_exponent - wide_exponent + 14
    normal = [in_range(round_shift(x * inverse, shift), 33) for x in wide]
    out = [in_range(x * in_range(w, 20), 53) for x, w in zip(normal, weight.values, strict=True)]
    return out, weight.exponent - 24


def sigmoid(a: int) -> int:
    """Logistic function: argument with 20 fraction bits, `|a| < 2**25`; result with 38.

    A negative argument gives `2**-d * sigmoid(|a|)` with d = |a| log2(e), whose relative
    precision does not fade in the tail.
    """
    gate, size = gate_values(), abs(in_range(a, 25))
    if size >= 16 << 20:
        upper = 1 << 24
    else:
        low = gate[size >> 12]
        upper = low + round_shift((gate[(size >> 12) + 1] - low) * (size & 4095), 12)
    if a >= 0:
        return upper << 14
    distance = round_shift(size * LOG2_E, 20)
    return round_shift(exp2_negative(distance, 38) * upper, 24)


def gelu_argument(t: int) -> int:
    """`2 sqrt(2/π) (t + 0.044715 t**3)`, 20 fraction bits in and out, saturated to 25 bits."""
    square = round_shift(in_range(t, 25) ** 2, 20)
    inner = GELU_LINEAR + round_shift(square * GELU_CUBIC, 20)
    return clamp(round_shift(t * inner, 30), (1 << 25) - 1)


def gated(kind: str, gate: Row, gate_exponent: int, up: Row, up_exponent: int) -> Scaled:
    """`activation(gate) * up`; `kind` is `silu` or `gelu_tanh`."""
    arguments = [align(x, -(gate_exponent + 20), 25) for x in gate]
    if kind == "gelu_tanh":
        arguments = [gelu_argument(t) for t in arguments]
    row, row_exponent = reduce_row(gate, gate_exponent, 24)
    weighted = [x * sigmoid(a) for x, a in zip(row, arguments, strict=True)]
    active, active_exponent = reduce_row(weighted, row_exponent - 38, 31)
    other, other_exponent = reduce_row(up, up_exponent, 31)
    out = [in_range(a * b, 62) for a, b in zip(active, other, strict=True)]
    return out, active_exponent + other_exponent


def embed(token: int, matrix: Matrix, scale: tuple[int, int]) -> Row:
    """A row of the embedding matrix times (mantissa below 2**18, exponent), as a residual row:
    20 fraction bits, saturated to 43 magnitude bits."""
    mantissa, exponent = scale
    in_range(mantissa, 18)
    right = -(matrix.exponent + exponent + 20)
    multipliers = matrix.multipliers[token]
    return [
        align(value * multipliers[k // GROUP] * mantissa, right, 43)
        for k, value in enumerate(matrix.values[token])
    ]


def add(residual: Row, row: Row, exponent: int) -> Row:
    """The residual row plus a row with an exponent, saturated to 43 magnitude bits."""
    return [
        clamp(in_range(r, 43) + align(x, -(exponent + 20), 43), RESIDUAL_LIMIT)
        for r, x in zip(residual, row, strict=True)
    ]


def logits(row: Row, exponent: int, head: Matrix) -> Row:
    """Scores of all tokens with 16 fraction bits, saturated to 40 magnitude bits."""
    out, out_exponent = linear(row, exponent, head)
    return [align(x, -(out_exponent + 16), 40) for x in out]
