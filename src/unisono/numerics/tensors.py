"""Canonical weights as they are stored: int8 values in groups that share a multiplier.

A matrix holds int8 values in groups of 32 along its inputs; each group has a multiplier of
16 bits, and the matrix one power of two:

    weight[n, k] = values[n, k] * multipliers[n, k // 32] * 2**exponent
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = 32
"""Inputs that share a multiplier."""
INPUT_BITS = 15
"""Magnitude bits of a matrix product's inputs."""
BIAS_BITS = 24
"""Magnitude bits of biases."""
WEIGHT_BITS = 20
"""Magnitude bits of norm weights."""
EPSILON_BITS = 24
"""Magnitude bits of a norm's epsilon."""
TURN_BITS = 42
"""Fraction bits of a rotary phase; frequencies are turns per position in this unit."""
FACTOR_BITS = 16
"""Fraction bits of the factor on cosine and sine (YaRN)."""
RESIDUAL_FRACTION = 20
"""Fraction bits of the residual stream."""
LOGIT_FRACTION = 16
"""Fraction bits of logits."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Grouped int8 weights: `values` int8 [outputs, inputs], `multipliers` uint16
    [outputs, inputs / 32], one `exponent`."""

    values: NDArray[np.int8]
    multipliers: NDArray[np.uint16]
    exponent: int

    @property
    def outputs(self) -> int:
        return self.values.shape[0]

    @property
    def inputs(self) -> int:
        return self.values.shape[1]


@dataclass(frozen=True, slots=True)
class Vector:
    """A norm weight or bias: `values` int64 [n] of value `values * 2**exponent`."""

    values: NDArray[np.int64]
    exponent: int
