"""Making secrets: the one time that a client, or somebody it trusts, holds a model's weights."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import fields

import numpy as np

from unisono.errors import ConfigurationError
from unisono.models.config import DecoderConfig
from unisono.models.loading import load_block
from unisono.models.store import StoredModel
from unisono.models.tiles import tensor_root
from unisono.models.weights import BlockWeights
from unisono.numerics import tensors
from unisono.types import LayerRange, ModelId
from unisono.verification.light.field import SEED_BYTES, secret_vector, weights_product
from unisono.verification.light.secrets import Secrets

Progress = Callable[[int, int], None]
"""Called with (layers done, layers in all)."""


def build(model: StoredModel, progress: Progress | None = None) -> Secrets:
    """Make secrets from the weights of a store, every tensor's hash checked, layer by layer.

    Raises:
        CorruptModel: a tensor is missing or has another hash.
    """
    count = model.layer_count

    def blocks() -> Iterable[BlockWeights]:
        for i in range(count):
            yield load_block(model, LayerRange(i, i + 1))
            if progress is not None:
                progress(i + 1, count)

    return from_weights(model.id, model.manifest.config, blocks())


def from_weights(
    model: ModelId,
    config: DecoderConfig,
    blocks: Iterable[BlockWeights],
    seed: bytes | None = None,
) -> Secrets:
    """Make secrets from blocks of verified weights that make up a model.

    `seed` is 32 bytes from the operating system's randomness unless a test gives one.
    """
    seed = secrets.token_bytes(SEED_BYTES) if seed is None else seed
    made = Secrets(model, config, seed, b"", {}, {}, {})

    def keep(name: str, tensor: tensors.Matrix | tensors.Vector) -> None:
        made.exponents[name] = tensor.exponent
        if isinstance(tensor, tensors.Vector):
            made.vectors[name] = tensor.values.astype(np.int64)
        else:
            vector = secret_vector(seed, name, tensor.outputs)
            made.sums[name] = weights_product(vector, tensor)

    for block in blocks:
        for i, layer in block.layer.items():
            for part in fields(layer):
                tensor = getattr(layer, part.name)
                if tensor is not None:
                    keep(f"layers.{i}.{part.name}", tensor)
        if block.embedding is not None:
            root = tensor_root([block.embedding.values, block.embedding.multipliers])
            made.embedding_root = bytes.fromhex(root)
            made.exponents["embedding"] = block.embedding.exponent
        if block.head is not None and block.final_norm is not None:
            keep("head", block.head)
            keep("final_norm", block.final_norm)
    problem = made.problem()
    if problem is not None:
        raise ConfigurationError(f"these blocks are not the whole model: {problem}")
    return made
