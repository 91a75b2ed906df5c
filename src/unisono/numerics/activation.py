"""Gated activations: SwiGLU and GeGLU (Shazeer 2020) in integers.

Both are `gate * sigmoid(a) * up`, with `a = gate` for SiLU and
`a = 2 sqrt(2/π) (gate + 0.044715 gate**3)` for the tanh form of GELU. The sigmoid of a
negative argument is `2**-d * sigmoid(|a|)`: its *relative* precision survives deep in the
tail, which rows without any positive gate depend on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unisono.numerics.fixed import align, reduce_rows, round_shift
from unisono.numerics.softmax import exp2_negative
from unisono.numerics.tables import GATE_BITS, table

ARGUMENT_FRACTION = 20
ARGUMENT_BITS = 25
"""Arguments saturate at ±32, where the sigmoid is below 2**-46 or above 1 - 2**-46."""
SIGMOID_BITS = 38
LOG2_E = 94548
"""log2(e) with 16 fraction bits."""
GELU_LINEAR = 1713444047
"""2 sqrt(2/π) with 30 fraction bits."""
GELU_CUBIC = 76616651
"""2 sqrt(2/π) 0.044715 with 30 fraction bits."""
_GATE_ROW_BITS = 24
_PRODUCT_BITS = 31


def sigmoid(a: Tensor) -> Tensor:
    """Logistic function: argument with 20 fraction bits, `|a| < 2**25`; result with 38."""
    gate = table("gate", str(a.device))
    size = a.abs()
    index = (size >> 12).clamp(max=4095)
    low = gate[index]
    upper = low + round_shift((gate[index + 1] - low) * (size & 4095), 12)
    upper = torch.where(size >= 16 << ARGUMENT_FRACTION, 1 << GATE_BITS, upper)
    distance = round_shift(size * LOG2_E, 20)
    lower = round_shift(exp2_negative(distance, SIGMOID_BITS) * upper, GATE_BITS)
    return torch.where(a < 0, lower, upper << (SIGMOID_BITS - GATE_BITS))


def _gelu_argument(t: Tensor) -> Tensor:
    square = round_shift(t * t, ARGUMENT_FRACTION)
    inner = GELU_LINEAR + round_shift(square * GELU_CUBIC, ARGUMENT_FRACTION)
    limit = (1 << ARGUMENT_BITS) - 1
    return round_shift(t * inner, 30).clamp(-limit, limit)


def gated(
    kind: str, gate: Tensor, gate_exponent: Tensor, up: Tensor, up_exponent: Tensor
) -> tuple[Tensor, Tensor]:
    """`activation(gate) * up` of rows with exponents, `|gate|, |up| < 2**62`.

    `kind` is `silu` or `gelu_tanh`. Returns int64 rows below 2**62 and their exponents;
    nothing is rounded to fixed fraction bits on the way.
    """
    argument = align(gate, -(gate_exponent + ARGUMENT_FRACTION), ARGUMENT_BITS)
    if kind == "gelu_tanh":
        argument = _gelu_argument(argument)
    row, row_exponent = reduce_rows(gate, gate_exponent, _GATE_ROW_BITS)
    active, active_exponent = reduce_rows(
        row * sigmoid(argument), row_exponent - SIGMOID_BITS, _PRODUCT_BITS
    )
    other, other_exponent = reduce_rows(up, up_exponent, _PRODUCT_BITS)
    return active * other, active_exponent + other_exponent
