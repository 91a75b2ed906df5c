"""Models in GGUF files: llama.cpp's keys and tensor names turned into a `DecoderConfig`.

What llama.cpp's converter changed is changed back here: rows of query and key matrices of the
`llama` architecture are permuted for interleaved rotary pairs. Norm weights of Gemma already
hold the 1 that Gemma's own checkpoints leave out.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unisono.errors import CorruptModel, UnsupportedModel
from unisono.models.config import MAX_CONTEXT, DecoderConfig, RopeConfig, tensor_shapes
from unisono.models.decimals import single_string
from unisono.models.fingerprint import files_fingerprint
from unisono.models.gguf_file import GgufFile
from unisono.models.gguf_tokenizer import gguf_tokenizer_files
from unisono.models.rope import yarn_attention_factor

ARCHITECTURES = ("gemma3", "llama", "qwen2", "qwen3")

_GEMMA_LOCAL_THETA = 10000.0
_GEMMA_PATTERN = 6
_GEMMA_27B_LAYERS = 62
"""llama.cpp knows the 27B model, whose query scalar differs, by this number of layers."""

_TOP = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
}
_LAYER = {
    "attention_norm": "attn_norm.weight",
    "query": "attn_q.weight",
    "key": "attn_k.weight",
    "value": "attn_v.weight",
    "output": "attn_output.weight",
    "query_bias": "attn_q.bias",
    "key_bias": "attn_k.bias",
    "value_bias": "attn_v.bias",
    "output_bias": "attn_output.bias",
    "query_norm": "attn_q_norm.weight",
    "key_norm": "attn_k_norm.weight",
    "post_attention_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "gate_bias": "ffn_gate.bias",
    "up_bias": "ffn_up.bias",
    "down_bias": "ffn_down.bias",
    "post_mlp_norm": "post_ffw_norm.weight",
}
_INTERLEAVED = ("query", "query_bias", "key", "key_bias")


class GgufSource:
    """A `ModelSource` over one GGUF file of an architecture in `ARCHITECTURES`.

    `name` and `fingerprint` replace the ones taken from the file and its path, for a file that
    is only a temporary copy of something with a name.

    Raises:
        ConfigurationError: the file cannot be opened.
        CorruptModel: truncated, malformed, or lacking a key or tensor; names file and tensor.
        UnsupportedModel: an architecture or feature outside the decoder definition.
    """

    def __init__(
        self, path: Path | str, *, name: str | None = None, fingerprint: str | None = None
    ) -> None:
        self._path = Path(path)
        self._file = GgufFile(self._path)
        self._fingerprint = fingerprint or f"gguf:{files_fingerprint([self._path])}"
        self._keys = _Keys(self._file)
        self._architecture = self._keys.text("general.architecture")
        if self._architecture not in ARCHITECTURES:
            raise UnsupportedModel(
                f"{path}: architecture '{self._architecture}' is not supported;"
                f" supported are {', '.join(ARCHITECTURES)}"
            )
        self._name = name or self._path.stem
        self._config = _Reading(self._file, self._keys, self._architecture).config()
        self._shapes = tensor_shapes(self._config)
        self._interleaved = _INTERLEAVED if self._architecture == "llama" else ()

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def config(self) -> DecoderConfig:
        return self._config

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor with this canonical name, float32, in the shape of `tensor_shapes`.

        Raises:
            CorruptModel: missing or of another shape; names the file and the tensor.
            UnsupportedModel: a tensor format that cannot be dequantized.
            KeyError: not a canonical name of this configuration.
        """
        foreign, leaf = self._checked(name)
        return self._ordered(leaf, self._file.read(foreign))

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start:stop` (not none) of the matrix `read(name)`; raises as it does.

        Nothing else is dequantized, but for whole heads. Several threads may read at once.
        """
        foreign, leaf = self._checked(name)
        first, last = start, stop
        if leaf in self._interleaved:  # their order is changed within whole heads
            size = self._config.head_size
            first, last = start // size * size, -(-stop // size) * size
        value = _with_rows(self._file, foreign, first, last).read(foreign)
        return self._ordered(leaf, value)[start - first : stop - first]

    def _checked(self, name: str) -> tuple[str, str]:
        """llama.cpp's name of a tensor, which has the right shape if it is there, and the leaf."""
        shape, (foreign, leaf) = self._shapes[name], _foreign_name(name)
        found = self._file.tensors.get(foreign)
        if found is not None and found.shape != shape:
            raise CorruptModel(
                f"{self._path}: tensor '{foreign}' has shape {found.shape}; the model's"
                f" configuration needs {shape}"
            )
        return foreign, leaf

    def _ordered(self, leaf: str, value: NDArray[np.float32]) -> NDArray[np.float32]:
        return _uninterleave(value, self._config.head_size) if leaf in self._interleaved else value

    def tokenizer_files(self) -> dict[str, bytes]:
        """`tokenizer.json` and `tokenizer_settings.json`, converted from the file's vocabulary.

        Raises:
            CorruptModel: the vocabulary is missing or inconsistent.
            UnsupportedModel: an unknown kind of vocabulary or pre-tokenizer.
        """
        return dict(self._tokenizer_files)

    @cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        return gguf_tokenizer_files(self._file.metadata, str(self._path))


def _foreign_name(name: str) -> tuple[str, str]:
    if name in _TOP:
        return _TOP[name], name
    _, layer, leaf = name.split(".")
    return f"blk.{layer}.{_LAYER[leaf]}", leaf


def _with_rows(file: GgufFile, name: str, start: int, stop: int) -> GgufFile:
    """The same open file, with nothing but rows `start:stop` of a matrix in it."""
    part = copy(file)
    tensor = file.tensors.get(name)
    if tensor is not None:
        row = tensor.size // tensor.shape[0]
        rows = (stop - start, *tensor.shape[1:])
        offset, size = tensor.offset + start * row, (stop - start) * row
        part.tensors = {name: replace(tensor, shape=rows, offset=offset, size=size)}
    return part


def _uninterleave(value: NDArray[np.float32], head_size: int) -> NDArray[np.float32]:
    """Rows of each head from (pair, half) order back to (half, pair) order."""
    split = value.reshape(-1, head_size // 2, 2, *value.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(value.shape))


class _Keys:
    """Typed access to metadata; an error names the file and the key."""

    def __init__(self, file: GgufFile) -> None:
        self._metadata = file.metadata
        self._path = file.path

    def where(self, key: str) -> str:
        return f"{self._path}: metadata key '{key}'"

    def text(self, key: str, default: str | None = None) -> str:
        value = self._metadata.get(key, default)
        if not isinstance(value, str):
            raise CorruptModel(f"{self.where(key)} is {_shown(value)}; text was expected")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._metadata.get(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # one number per layer, all the same
        if isinstance(value, list):
            raise UnsupportedModel(f"{self.where(key)} differs between layers")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise CorruptModel(f"{self.where(key)} is {_shown(value)}; an integer was expected")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._metadata.get(key, default)
        if not isinstance(value, int | float):
            raise CorruptModel(f"{self.where(key)} is {_shown(value)}; a number was expected")
        return float(value)

    def flags(self, key: str) -> list[bool] | int | None:
        value = self._metadata.get(key)
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, list):
            return [bool(item) for item in value]
        raise CorruptModel(f"{self.where(key)} is {_shown(value)}; flags were expected")


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]


class _Reading:
    """Builds the configuration of one file."""

    def __init__(self, file: GgufFile, keys: _Keys, architecture: str) -> None:
        self._file, self._keys, self._architecture = file, keys, architecture

    def _key(self, name: str) -> str:
        return f"{self._architecture}.{name}"

    def _integer(self, name: str, default: int | None = None) -> int:
        return self._keys.integer(self._key(name), default)

    def _string(self, name: str, default: float | None = None) -> str:
        key = self._key(name)
        return single_string(self._keys.number(key, default), self._keys.where(key))

    def _refuse(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self._file.path}: {what} is not supported")

    def config(self) -> DecoderConfig:
        gemma = self._architecture == "gemma3"
        layers, hidden = self._integer("block_count"), self._integer("embedding_length")
        heads = self._integer("attention.head_count")
        if not layers or not hidden or not heads or layers > 1024:
            raise CorruptModel(
                f"{self._file.path}: {layers} layers, {heads} heads, {hidden} hidden units"
            )
        size = self._integer("attention.key_length", hidden // heads)
        if size < 2:
            raise CorruptModel(f"{self._file.path}: heads of {size} units")
        if self._integer("attention.value_length", size) != size:
            raise self._refuse("a value length other than the key length")
        if self._integer("rope.dimension_count", size) != size:
            raise self._refuse("rotary embedding of a part of each head")
        if self._integer("expert_count", 0):
            raise self._refuse("a mixture of experts")
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            if self._keys.number(self._key(cap), 0.0):
                raise self._refuse(f"logit soft capping ({self._key(cap)})")
        embedding = self._file.tensors.get(_TOP["embedding"])
        if embedding is None or len(embedding.shape) != 2:
            raise CorruptModel(
                f"{self._file.path} lacks the matrix '{_TOP['embedding']}': it is incomplete"
            )
        rope = self._rope(size)
        wide = gemma and layers == _GEMMA_27B_LAYERS
        try:
            return DecoderConfig(
                architecture=self._architecture,
                vocabulary_size=embedding.shape[0],
                hidden_size=hidden,
                layer_count=layers,
                head_count=heads,
                kv_head_count=self._integer("attention.head_count_kv", heads),
                head_size=size,
                mlp_size=self._integer("feed_forward_length"),
                context_length=min(MAX_CONTEXT, self._integer("context_length")),
                norm_epsilon=self._string("attention.layer_norm_rms_epsilon"),
                activation="gelu_tanh" if gemma else "silu",
                windows=self._windows(layers),
                rope=rope,
                local_rope=self._local_rope(rope),
                query_scalar=hidden // heads if wide else size,
                scale_embedding=gemma,
                query_key_norm=self._has("query_norm"),
                post_norms=gemma,
                qkv_bias=self._has("query_bias"),
                output_bias=self._has("output_bias"),
                mlp_bias=self._has("gate_bias"),
                tied_head=_TOP["head"] not in self._file.tensors,
            )
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{self._file.path}: {error}") from error

    def _has(self, leaf: str) -> bool:
        return f"blk.0.{_LAYER[leaf]}" in self._file.tensors

    def _windows(self, layers: int) -> tuple[int, ...]:
        window = self._integer("attention.sliding_window", 0)
        pattern = self._keys.flags(self._key("attention.sliding_window_pattern"))
        if not window:
            return (0,) * layers
        if isinstance(pattern, list):
            if len(pattern) != layers:
                raise CorruptModel(
                    f"{self._keys.where(self._key('attention.sliding_window_pattern'))} has"
                    f" {len(pattern)} items for {layers} layers"
                )
            return tuple(window if local else 0 for local in pattern)
        if pattern is None:
            if self._architecture == "llama":
                return (window,) * layers  # Mistral
            if self._architecture != "gemma3":
                return (0,) * layers  # Qwen files carry the size of a window that is switched off
        every = pattern or _GEMMA_PATTERN
        return tuple(0 if i % every == every - 1 else window for i in range(layers))

    def _rope(self, head_size: int) -> RopeConfig:
        theta = self._string("rope.freq_base", 10000.0)
        kind = self._keys.text(self._key("rope.scaling.type"), "")
        factor = self._string("rope.scaling.factor", 0.0)
        if factor == "0":
            factor = self._string("rope.scale_linear", 1.0)
        scaling: Literal["none", "linear"] = "none" if factor == "1" else "linear"
        if "rope_freqs.weight" in self._file.tensors:
            if kind not in ("", "none") or scaling != "none":
                raise self._refuse("rope scaling together with rope_freqs.weight")
            values = self._file.read("rope_freqs.weight")
            if values.shape != (head_size // 2,):
                raise CorruptModel(
                    f"{self._file.path}: tensor 'rope_freqs.weight' has shape {values.shape};"
                    f" ({head_size // 2},) was expected"
                )
            where = f"{self._file.path}: an element of tensor 'rope_freqs.weight'"
            factors = tuple(single_string(float(value), where) for value in values)
            return RopeConfig(theta=theta, scaling="factors", factors=factors)
        if kind == "none" or (kind in ("", "linear") and scaling == "none"):
            return RopeConfig(theta=theta)
        if kind in ("", "linear"):
            return RopeConfig(theta=theta, scaling="linear", factor=factor)
        if kind == "yarn":
            return self._yarn(theta, factor)
        raise self._refuse(f"rope scaling '{kind}'")

    def _yarn(self, theta: str, factor: str) -> RopeConfig:
        for name in ("yarn_ext_factor", "yarn_attn_factor"):
            if self._string(f"rope.scaling.{name}", 1.0) not in ("1", "-1"):
                raise self._refuse(f"rope.scaling.{name} other than 1")
        if self._string("rope.scaling.yarn_log_multiplier", 0.0) != "0":
            raise self._refuse("rope.scaling.yarn_log_multiplier")
        if factor == "0":
            raise CorruptModel(f"{self._file.path}: yarn rope scaling with a factor of 0")
        original = self._integer("rope.scaling.original_context_length", 0)
        return RopeConfig(
            theta=theta,
            scaling="yarn",
            factor=factor,
            original_context=original or self._integer("context_length"),
            beta_fast=self._string("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self._string("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=yarn_attention_factor(factor),
        )

    def _local_rope(self, rope: RopeConfig) -> RopeConfig:
        if self._architecture != "gemma3":
            return rope
        return RopeConfig(theta=self._string("rope.freq_base_swa", _GEMMA_LOCAL_THETA))
