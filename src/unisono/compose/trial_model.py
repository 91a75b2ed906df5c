"""A random model of two layers with every operator, for demonstrations: it is made in a second."""

from __future__ import annotations

import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unisono.models.config import DecoderConfig, RopeConfig, tensor_shapes
from unisono.models.conversion import convert
from unisono.models.manifest import tensor_kind
from unisono.models.store import StoredModel
from unisono.models.tokenizer_settings import SETTINGS_FILE, TOKENIZER_FILE, TokenizerSettings

NAME = "trial"
CONFIG = DecoderConfig(
    architecture="llama",
    vocabulary_size=320,
    hidden_size=64,
    layer_count=2,
    head_count=4,
    kv_head_count=2,
    head_size=32,
    mlp_size=96,
    context_length=512,
    norm_epsilon="0.000001",
    activation="silu",
    windows=(8, 0),
    rope=RopeConfig(),
    local_rope=RopeConfig(),
    query_scalar=32,
    query_key_norm=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
)


class TrialSource:
    """Random weights as a `ModelSource`; the same at each call."""

    name = NAME
    fingerprint = NAME
    config = CONFIG

    def read(self, name: str) -> NDArray[np.float32]:
        """See `ModelSource.read`."""
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        shape = tensor_shapes(self.config)[name]
        kind = tensor_kind(name)
        drawn = generator.standard_normal(shape)
        if kind == "norm":
            drawn = 1 + 0.2 * drawn
        elif kind == "bias":
            drawn = 0.1 * drawn
        else:
            drawn = drawn / np.sqrt(shape[-1])
        return drawn.astype(np.float32)

    def tokenizer_files(self) -> dict[str, bytes]:
        """See `ModelSource.tokenizer_files`."""
        return {TOKENIZER_FILE: self._bytes, SETTINGS_FILE: TokenizerSettings().encoded()}

    @cached_property
    def _bytes(self) -> bytes:
        """A tokenizer whose tokens are bytes."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        alphabet = pre_tokenizers.ByteLevel.alphabet()
        pieces = {piece: index for index, piece in enumerate(sorted(alphabet))}
        made = Tokenizer(models.BPE(vocab=pieces, merges=[]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        return made.to_str().encode()


def trial_model(root: Path) -> StoredModel:
    """The model, converted into a store's folder."""
    root.mkdir(parents=True, exist_ok=True)
    return StoredModel(convert(TrialSource(), root))
