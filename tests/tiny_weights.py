"""Small random decoders in integers, made directly, without a checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from unisono.models.config import DecoderConfig, RopeConfig, tensor_shapes
from unisono.models.manifest import tensor_kind
from unisono.models.weights import BlockWeights, LayerWeights
from unisono.numerics.tensors import Matrix, Vector
from unisono.types import LayerRange

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "rope": RopeConfig(
            theta="500000",
            scaling="llama3",
            factor="8",
            low_frequency_factor="1",
            high_frequency_factor="4",
            original_context=16,
        ),
        "output_bias": True,
        "mlp_bias": True,
    },
    "gemma": {
        "activation": "gelu_tanh",
        "windows": (3, 0),
        "rope": RopeConfig(theta="1000000", scaling="linear", factor="8"),
        "local_rope": RopeConfig(theta="10000"),
        "scale_embedding": True,
        "query_key_norm": True,
        "post_norms": True,
        "hidden_size": 64,
        "query_scalar": 24,
    },
    "qwen2": {"qkv_bias": True, "windows": (0, 4), "kv_head_count": 1},
    "qwen3": {"query_key_norm": True, "tied_head": False, "head_size": 64, "query_scalar": 64},
    "yarn": {
        "rope": RopeConfig(
            scaling="yarn", factor="4", original_context=32, attention_factor="1.1386294361"
        ),
        "hidden_size": 64,
        "kv_head_count": 4,
    },
}
"""What each family of decoders has that a plain one has not; together, every switch."""


def tiny_config(family: str, **changes: Any) -> DecoderConfig:
    """A decoder of two layers with the features of a family."""
    fields: dict[str, Any] = {
        "architecture": family,
        "vocabulary_size": 50,
        "hidden_size": 32,
        "layer_count": 2,
        "head_count": 4,
        "kv_head_count": 2,
        "head_size": 32,
        "mlp_size": 96,
        "context_length": 512,
        "norm_epsilon": "0.000001",
        "activation": "silu",
        "rope": RopeConfig(),
        "query_scalar": 32,
        **FAMILIES[family],
        **changes,
    }
    fields.setdefault("windows", (0,) * fields["layer_count"])
    fields.setdefault("local_rope", fields["rope"])
    return DecoderConfig(**fields)


def tiny_weights(
    config: DecoderConfig, seed: int = 0, layers: LayerRange | None = None
) -> BlockWeights:
    """Random weights of a block (by default all layers), of the size that real ones have.

    The same seed gives the same tensors whatever the block, so that blocks fit together.
    """
    generator = np.random.default_rng(seed)

    def matrix(outputs: int, inputs: int) -> Matrix:
        values = generator.integers(-127, 128, (outputs, inputs), dtype=np.int8)
        multipliers = generator.integers(9000, 65536, (outputs, inputs // 32), dtype=np.uint16)
        return Matrix(values, multipliers, -24)

    def vector(size: int, low: int, high: int, exponent: int) -> Vector:
        return Vector(generator.integers(low, high, size), exponent)

    made: dict[str, Any] = {}
    for name, shape in tensor_shapes(config).items():
        kind = tensor_kind(name)
        if kind == "matrix":
            made[name] = matrix(shape[0], shape[1])
        elif kind == "norm":
            made[name] = vector(shape[0], 1 << 18, 1 << 20, -19)
        else:
            made[name] = vector(shape[0], -(1 << 23), 1 << 23, -23)
    layers = layers or LayerRange(0, config.layer_count)
    ends = layers.stop == config.layer_count
    return BlockWeights(
        layers=layers,
        layer={
            i: LayerWeights(
                **{
                    name.split(".")[2]: tensor
                    for name, tensor in made.items()
                    if name.startswith(f"layers.{i}.")
                }
            )
            for i in range(layers.start, layers.stop)
        },
        embedding=made["embedding"] if layers.start == 0 else None,
        final_norm=made["final_norm"] if ends else None,
        head=made["embedding" if config.tied_head else "head"] if ends else None,
    )
