"""One layer, operator by operator, for whoever has its weights and for whoever has not.

Both sides of an audit run this one definition. What differs is where a matrix product comes
from: a node multiplies; a client takes the row that the node claims and checks it (`Steps.run`
calls back for each). Every other operator is the canonical one of `numerics`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unisono.models.config import DecoderConfig
from unisono.models.constants import Constants
from unisono.numerics import residual
from unisono.numerics.activation import gated
from unisono.numerics.fixed import MAX_SHIFT, align, reduce_rows, round_shift
from unisono.numerics.linear import SUM_BITS, Vector
from unisono.numerics.norm import rms_norm
from unisono.numerics.rotary import HEAD_BITS, rotate, rotation
from unisono.numerics.softmax import attend_causal
from unisono.numerics.tensors import BIAS_BITS, INPUT_BITS, RESIDUAL_FRACTION

Scaled = tuple[Tensor, Tensor]
"""Mantissas [n, width] and exponents [n, 1]; of heads, [n, heads, size] and [n, heads, 1]."""

PRODUCTS = ("query", "key", "value", "output", "gate", "up", "down")
"""The matrices of a layer, in the order in which they are applied."""

Multiply = Callable[[str, Tensor], Tensor]
"""`(matrix, inputs int64 [n, k] of 15 bits) -> exact products int64 [n, outputs]`."""
Observe = Callable[[str, Tensor, Tensor | None], None]
"""Called with each operator's name, result, and exponents where it has any, in order."""


@dataclass(frozen=True, slots=True)
class PlainLayer:
    """What a layer has besides its matrices' values: small vectors, and matrices' exponents."""

    vectors: dict[str, Vector]
    """Norm weights and biases, by the names of `LayerWeights`."""
    exponents: dict[str, int]


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Stored keys and values of consecutive positions: mantissas int16 [t, kv_heads, size] and
    exponents int16 [t, kv_heads]."""

    keys: Tensor
    key_exponents: Tensor
    values: Tensor
    value_exponents: Tensor

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.keys, self.key_exponents, self.values, self.value_exponents

    def part(self, start: int, stop: int) -> KeysValues:
        return KeysValues(*(x[start:stop] for x in self.all()))


class Steps:
    """The operators of layer `index` of a model."""

    def __init__(
        self, config: DecoderConfig, fixed: Constants, index: int, plain: PlainLayer
    ) -> None:
        self.config, self.fixed, self.index, self.plain = config, fixed, index, plain
        self.window = config.windows[index]

    def first_seen(self, position: int) -> int:
        """The first position that `position` attends to."""
        return max(0, position - self.window + 1) if self.window else 0

    def stored(self, rows: Tensor, start: int, multiply: Multiply, observe: Observe) -> KeysValues:
        """Keys and values that consecutive positions from `start` leave to later ones."""
        return self._stored(self._normalized(rows, observe), start, multiply, observe)

    def run(
        self,
        rows: Tensor,
        start: int,
        multiply: Multiply,
        observe: Observe,
        seen: Callable[[KeysValues], tuple[int, KeysValues]],
    ) -> Tensor:
        """The layer for consecutive positions from `start`.

        Args:
            rows: int64 [n, hidden], the residual stream.
            seen: given these positions' own keys and values, all that they attend to: the first
                position of it, and keys and values up to the last of these positions.

        Returns:
            int64 [n, hidden].
        """
        h = self._normalized(rows, observe)
        product = multiply("query", h[0])
        queries = self.rotary("query", self._after("query", product, h[1]), start)
        observe("rotary", *queries)
        first, held = seen(self._stored(h, start, multiply, observe))
        attended = self.attention(queries, held, start, first)
        observe("attention", *attended)
        product = multiply("output", attended[0])
        rows = self.attention_sum(rows, self._after("output", product, attended[1]))
        observe("attention_sum", rows, None)
        h = self.mlp_norm(rows)
        observe("mlp_norm", *h)
        gate = self._after("gate", multiply("gate", h[0]), h[1])
        up = self._after("up", multiply("up", h[0]), h[1])
        active = self.activation(gate, up)
        observe("activation", *active)
        product = multiply("down", active[0])
        rows = self.mlp_sum(rows, self._after("down", product, active[1]))
        observe("mlp_sum", rows, None)
        return rows

    def _normalized(self, rows: Tensor, observe: Observe) -> Scaled:
        h = self.attention_norm(rows)
        observe("attention_norm", *h)
        return h

    def _stored(self, h: Scaled, start: int, multiply: Multiply, observe: Observe) -> KeysValues:
        product = multiply("key", h[0])
        keys = self.rotary("key", self._after("key", product, h[1]), start)
        observe("stored_key", *keys)
        values = self.stored_value(self._after("value", multiply("value", h[0]), h[1]))
        observe("stored_value", *values)
        return KeysValues(
            keys[0].to(torch.int16),
            keys[1][..., 0].to(torch.int16),
            values[0].to(torch.int16),
            values[1][..., 0].to(torch.int16),
        )

    # One method per operator, named as a verdict names it.

    def attention_norm(self, rows: Tensor) -> Scaled:
        return reduce_rows(*self._norm("attention_norm", residual_row(rows)), INPUT_BITS)

    def rotary(self, name: str, x: Scaled, start: int) -> Scaled:
        """Heads of queries or keys: normalized where the model does so, rotated, 15 bits."""
        positions = torch.arange(start, start + x[0].shape[0])
        frequencies, factor = self.fixed.frequencies, self.fixed.factor
        if self.window:
            frequencies, factor = self.fixed.local_frequencies, self.fixed.local_factor
        turn = rotation(positions, torch.tensor(frequencies, dtype=torch.int64), factor)
        return rotate(*self._norm(f"{name}_norm", self._heads(x)), *turn)

    def stored_value(self, x: Scaled) -> Scaled:
        return reduce_rows(*self._heads(x), HEAD_BITS)

    def attention(self, queries: Scaled, held: KeysValues, start: int, first: int) -> Scaled:
        keys, values = (held.keys, held.key_exponents), (held.values, held.value_exponents)
        scale = self.fixed.score_scale
        out = attend_causal(queries, keys, values, start, first, self.window, scale)
        return reduce_rows(*out, INPUT_BITS)

    def attention_sum(self, rows: Tensor, x: Scaled) -> Tensor:
        return residual.add(rows, *self._norm("post_attention_norm", x))

    def mlp_norm(self, rows: Tensor) -> Scaled:
        return reduce_rows(*self._norm("mlp_norm", residual_row(rows)), INPUT_BITS)

    def activation(self, gate: Scaled, up: Scaled) -> Scaled:
        return reduce_rows(*gated(self.config.activation, *gate, *up), INPUT_BITS)

    def mlp_sum(self, rows: Tensor, x: Scaled) -> Tensor:
        return residual.add(rows, *self._norm("post_mlp_norm", x))

    def _norm(self, name: str, x: Scaled) -> Scaled:
        weight = self.plain.vectors.get(name)
        if weight is None:
            return x
        return rms_norm(*x, weight.values, weight.exponent, self.fixed.epsilon)

    def _after(self, name: str, product: Tensor, exponent: Tensor) -> Scaled:
        """A product with its exponent, and its bias where it has one (`numerics.linear`)."""
        exponent = exponent + self.plain.exponents[name]
        bias = self.plain.vectors.get(f"{name}_bias")
        if bias is None:
            return product, exponent
        common = exponent.clamp(min=bias.exponent - (SUM_BITS - BIAS_BITS))
        out = round_shift(product, (common - exponent).clamp(max=MAX_SHIFT))
        return out + align(bias.values.expand_as(out), common - bias.exponent, SUM_BITS), common

    def _heads(self, x: Scaled) -> Scaled:
        mantissas = x[0].view(x[0].shape[0], -1, self.config.head_size)
        return mantissas, x[1].unsqueeze(-1).expand(*mantissas.shape[:2], 1)


def residual_row(rows: Tensor) -> Scaled:
    """Residual rows as rows with exponents."""
    return rows, torch.full((rows.shape[0], 1), -RESIDUAL_FRACTION, dtype=torch.int64)
