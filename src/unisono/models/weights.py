"""The integer weights of a block of layers."""

from __future__ import annotations

from dataclasses import dataclass

from unisono.numerics.tensors import Matrix, Vector
from unisono.types import LayerRange


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. A field is None where the configuration leaves the part out."""

    attention_norm: Vector
    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    mlp_norm: Vector
    gate: Matrix
    up: Matrix
    down: Matrix
    query_bias: Vector | None = None
    key_bias: Vector | None = None
    value_bias: Vector | None = None
    output_bias: Vector | None = None
    gate_bias: Vector | None = None
    up_bias: Vector | None = None
    down_bias: Vector | None = None
    query_norm: Vector | None = None
    key_norm: Vector | None = None
    post_attention_norm: Vector | None = None
    post_mlp_norm: Vector | None = None


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """Layers `layers`; with the embedding if they begin the model, and the final norm and
    the output matrix if they end it."""

    layers: LayerRange
    layer: dict[int, LayerWeights]
    embedding: Matrix | None = None
    final_norm: Vector | None = None
    head: Matrix | None = None
