"""Products weight by weight, in plain int64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def exact_product(
    x: NDArray[np.int64], values: NDArray[np.int8], multipliers: NDArray[np.uint16]
) -> NDArray[np.int64]:
    """The product in int64, weight by weight."""
    return x @ (values.astype(np.int64) * multipliers.astype(np.int64).repeat(32, axis=1)).T
