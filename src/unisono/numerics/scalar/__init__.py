"""The specification: every canonical operator on Python integers and lists, one element at a
time, without torch.

The vectorised operators are faster spellings of these functions, and the tests compare them
with `==`. Integers here are unbounded, so every claim about ranges is checked and not assumed:
`in_range` raises OverflowError where a value would leave the width that docs/numerics.md
proves, and `exact_sum` where some order of summation could leave the integers that float64
holds exactly.
"""

from unisono.numerics.scalar.attention import attend, exp2_negative, rotate, rotation
from unisono.numerics.scalar.fixed import (
    Row,
    Scaled,
    align,
    bit_length,
    exact_sum,
    in_range,
    reduce_row,
    round_shift,
    square_root,
)
from unisono.numerics.scalar.layers import (
    Matrix,
    Vector,
    add,
    embed,
    gated,
    linear,
    logits,
    product,
    rms_norm,
    sigmoid,
)
from unisono.numerics.scalar.sampling import (
    adjust,
    choose,
    likeliest,
    log2_fixed,
    log_probabilities,
    philox,
    philox4x32,
)

__all__ = [
    "Matrix",
    "Row",
    "Scaled",
    "Vector",
    "add",
    "adjust",
    "align",
    "attend",
    "bit_length",
    "choose",
    "embed",
    "exact_sum",
    "exp2_negative",
    "gated",
    "in_range",
    "likeliest",
    "linear",
    "log2_fixed",
    "log_probabilities",
    "logits",
    "philox",
    "philox4x32",
    "product",
    "reduce_row",
    "rms_norm",
    "rotate",
    "rotation",
    "round_shift",
    "sigmoid",
    "square_root",
]
