"""The shape of a decoder: one frozen description drives one definition (`models.decoder`).

Numbers that are not integers are decimal strings, so that a configuration has one
encoding and its hash does not depend on how a float is printed.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from unisono.errors import UnsupportedModel

MAX_CONTEXT = 1 << 18
"""Positions that integer attention is proven exact for; loaders cut longer contexts to it."""


class RopeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rotary position embedding over the two halves of a head (GPT-NeoX order).

    `scaling` names the published variant that changes the frequencies:
    `none`; `linear` (divide by `factor`); `llama3` (Llama 3.1: `factor`, `low_frequency_factor`,
    `high_frequency_factor`, `original_context`); `yarn` (`factor`, `beta_fast`, `beta_slow`,
    `original_context`, `attention_factor`, Peng et al. 2023); `factors` (explicit divisors per
    frequency, as GGUF files carry them in `rope_freqs.weight`).
    """

    theta: str = "10000"
    scaling: Literal["none", "linear", "llama3", "yarn", "factors"] = "none"
    factor: str = "1"
    low_frequency_factor: str = "1"
    high_frequency_factor: str = "4"
    original_context: int = 0
    beta_fast: str = "32"
    beta_slow: str = "1"
    attention_factor: str = "1"
    """Multiplies cosine and sine (YaRN)."""
    factors: tuple[str, ...] = ()


class DecoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about a decoder except its weights."""

    architecture: str
    """`gemma3`, `llama`, `mistral`, `qwen2` or `qwen3`: for people, no code branches on it."""
    vocabulary_size: int
    hidden_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_size: int
    mlp_size: int
    context_length: int
    norm_epsilon: str
    activation: Literal["silu", "gelu_tanh"]
    windows: tuple[int, ...]
    """Per layer: how many positions it sees, itself included; 0 is all."""
    rope: RopeConfig
    """Of layers that see everything."""
    local_rope: RopeConfig
    """Of sliding-window layers (equal to `rope` where the model makes no difference)."""
    query_scalar: int
    """Scores are divided by the square root of this (usually `head_size`)."""
    scale_embedding: bool = False
    """Multiply embeddings by the square root of `hidden_size` (Gemma)."""
    query_key_norm: bool = False
    post_norms: bool = False
    """Normalize the output of attention and of the MLP before the residual sum (Gemma)."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied_head: bool = True

    def __post_init__(self) -> None:
        for name in ("hidden_size", "mlp_size", "head_size"):
            if getattr(self, name) % 32:
                raise UnsupportedModel(
                    f"{name} is {getattr(self, name)}; weight groups need a multiple of 32"
                )
        if max(self.hidden_size, self.mlp_size, self.head_count * self.head_size) > 32768:
            raise UnsupportedModel(
                "a matrix has more than 32,768 columns: sums would leave the proven range"
            )
        if self.head_size > 512:
            raise UnsupportedModel(
                f"heads of {self.head_size} elements: scores are proven exact up to 512"
            )
        if self.kv_head_count < 1 or self.head_count % self.kv_head_count:
            raise UnsupportedModel(
                f"{self.head_count} query heads cannot share {self.kv_head_count} key heads evenly"
            )
        if len(self.windows) != self.layer_count:
            raise UnsupportedModel(
                f"{len(self.windows)} windows for {self.layer_count} layers: one each is expected"
            )
        if self.vocabulary_size > 1 << 20:
            raise UnsupportedModel("vocabularies above 1,048,576 tokens are not supported")
        if self.context_length > MAX_CONTEXT:
            raise UnsupportedModel("contexts above 262,144 positions are not supported")


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Canonical tensor names and their shapes; matrices are (outputs, inputs).

    Norm weights are the factors themselves: a loader adds the 1 that some formats leave out.
    """
    c = config
    queries, keys = c.head_count * c.head_size, c.kv_head_count * c.head_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (c.vocabulary_size, c.hidden_size)}
    for i in range(c.layer_count):
        layer: dict[str, tuple[int, ...]] = {
            "attention_norm": (c.hidden_size,),
            "query": (queries, c.hidden_size),
            "key": (keys, c.hidden_size),
            "value": (keys, c.hidden_size),
            "output": (c.hidden_size, queries),
            "mlp_norm": (c.hidden_size,),
            "gate": (c.mlp_size, c.hidden_size),
            "up": (c.mlp_size, c.hidden_size),
            "down": (c.hidden_size, c.mlp_size),
        }
        if c.qkv_bias:
            layer |= {"query_bias": (queries,), "key_bias": (keys,), "value_bias": (keys,)}
        if c.output_bias:
            layer |= {"output_bias": (c.hidden_size,)}
        if c.mlp_bias:
            layer |= {
                "gate_bias": (c.mlp_size,),
                "up_bias": (c.mlp_size,),
                "down_bias": (c.hidden_size,),
            }
        if c.query_key_norm:
            layer |= {"query_norm": (c.head_size,), "key_norm": (c.head_size,)}
        if c.post_norms:
            layer |= {"post_attention_norm": (c.hidden_size,), "post_mlp_norm": (c.hidden_size,)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["final_norm"] = (c.hidden_size,)
    if not c.tied_head:
        shapes["head"] = (c.vocabulary_size, c.hidden_size)
    return shapes
