"""Keys and values of all positions of a layer, from the rows that enter it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unisono.models.config import DecoderConfig
from unisono.models.constants import Constants
from unisono.models.weights import LayerWeights
from unisono.numerics import tensors
from unisono.numerics.fixed import reduce_rows
from unisono.numerics.linear import Matrix, Vector, from_numpy, linear
from unisono.numerics.norm import rms_norm
from unisono.numerics.rotary import HEAD_BITS, rotate, rotation
from unisono.numerics.tensors import RESIDUAL_FRACTION

Array = NDArray[np.int64]


class KeysAndValues:
    """The projections of one configuration."""

    def __init__(self, config: DecoderConfig, fixed: Constants) -> None:
        self._config, self._fixed = config, fixed

    def of(self, weights: LayerWeights, rows: Array, *, windowed: bool) -> dict[str, Array]:
        """`keys`, `keys.exponent`, `values`, `values.exponent` of positions 0, 1, …, each
        int64 [positions, size]."""
        fixed = self._fixed
        turns = fixed.local_frequencies if windowed else fixed.frequencies
        factor = fixed.local_factor if windowed else fixed.factor
        frequencies = torch.tensor(turns, dtype=torch.int64)
        turn = rotation(torch.arange(len(rows)), frequencies, factor)
        x = from_numpy(np.ascontiguousarray(rows))
        exponent = torch.full((len(rows), 1), -RESIDUAL_FRACTION, dtype=torch.int64)
        h = reduce_rows(*self._norm(x, exponent, weights.attention_norm), HEAD_BITS)
        keys = self._heads(*h, weights.key, weights.key_bias)
        if weights.key_norm is not None:
            keys = self._norm(*keys, weights.key_norm)
        values = self._heads(*h, weights.value, weights.value_bias)
        made = {"keys": rotate(*keys, *turn), "values": reduce_rows(*values, HEAD_BITS)}
        out: dict[str, Array] = {}
        for name, (mantissas, exponents) in made.items():
            out[name] = _array(mantissas.flatten(1))
            out[f"{name}.exponent"] = _array(exponents[..., 0])
        return out

    def _norm(self, x: Tensor, exponent: Tensor, weight: tensors.Vector) -> tuple[Tensor, Tensor]:
        values = from_numpy(weight.values)
        return rms_norm(x, exponent, values, weight.exponent, self._fixed.epsilon)

    def _heads(
        self, x: Tensor, exponent: Tensor, matrix: tensors.Matrix, bias: tensors.Vector | None
    ) -> tuple[Tensor, Tensor]:
        vector = None if bias is None else Vector.on("cpu", bias)
        out, exponents = linear(x, exponent, Matrix.on("cpu", matrix), vector)
        heads = out.view(out.shape[0], -1, self._config.head_size)
        return heads, exponents.unsqueeze(-1).expand(*heads.shape[:2], 1)


def _array(x: Tensor) -> Array:
    return np.ascontiguousarray(cast(Any, x).numpy(), dtype=np.int64)
