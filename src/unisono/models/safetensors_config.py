"""`config.json` of supported checkpoints turned into a `DecoderConfig`.

Keys are read in the old form (`rope_theta` beside `rope_scaling`) and in the form of
transformers 5 (`rope_parameters`, per kind of layer for Gemma 3); defaults for absent keys are
those of transformers' configuration classes.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from unisono.errors import CorruptModel, UnsupportedModel
from unisono.models.config import MAX_CONTEXT, DecoderConfig, RopeConfig
from unisono.models.decimals import decimal_string
from unisono.models.rope import yarn_attention_factor

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
}

_Json = dict[str, Any]
_COMMON: _Json = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}
_DEFAULTS: dict[str, _Json] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": {
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "qwen3": {
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "head_dim": 128,
    },
    "gemma3": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
}
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_REFUSED = {
    "quantization_config": "a quantized checkpoint",
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "final_logit_softcapping": "logit soft capping",
    "attn_logit_softcapping": "attention soft capping",
    "use_bidirectional_attention": "bidirectional attention",
}


def decoder_config(document: _Json, where: str) -> DecoderConfig:
    """The configuration that a parsed `config.json` describes; `where` names it in errors.

    Raises:
        UnsupportedModel: an architecture or feature outside the decoder definition.
        CorruptModel: a key is missing or of the wrong kind.
    """
    return _Reading(document, where).config()


class _Reading:
    def __init__(self, document: _Json, where: str) -> None:
        self._where = where
        names: list[Any] = document.get("architectures") or [None]
        if names[0] not in ARCHITECTURES:
            raise UnsupportedModel(
                f"{where}: architecture {names[0]!r} is not supported; supported are"
                f" {', '.join(ARCHITECTURES)}"
            )
        self._architecture = ARCHITECTURES[names[0]]
        inner = document.get("text_config")
        if inner is not None and not isinstance(inner, dict):
            raise CorruptModel(f"{where}: text_config is not an object")
        text = cast("_Json | None", inner)
        for source in (document, text or {}):
            for key, what in _REFUSED.items():
                if source.get(key):
                    raise self._refuse(f"{what} ({key})")
        given: _Json = document if text is None else {**text}
        if text is not None and "tie_word_embeddings" in document:
            given["tie_word_embeddings"] = document["tie_word_embeddings"]
        self._given = given
        self._keys = _COMMON | _DEFAULTS[self._architecture] | given

    def _refuse(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self._where}: {what} is not supported")

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._keys.get(key)
        value = default if value is None else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CorruptModel(
                f"{self._where}: {key} is {_shown(value)}; a positive integer was expected"
            )
        return value

    def _number(self, source: _Json, key: str, default: float | None = None) -> str:
        value = source.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise CorruptModel(f"{self._where}: {key} is {_shown(value)}; a number was expected")
        return decimal_string(value, f"{self._where}: {key}")

    def _flag(self, key: str) -> bool:
        return bool(self._keys.get(key))

    def config(self) -> DecoderConfig:
        gemma = self._architecture == "gemma3"
        hidden, heads = self._integer("hidden_size"), self._integer("num_attention_heads")
        layers = self._integer("num_hidden_layers")
        size = self._integer("head_dim", hidden // heads)
        action = self._keys["hidden_activation" if gemma else "hidden_act"]
        if action not in _ACTIVATIONS:
            raise self._refuse(f"activation {action!r}")
        attention_bias = self._flag("attention_bias")
        if self._architecture in ("qwen2", "mistral"):
            attention_bias = False  # these classes do not read the key
        rope, local_rope = self._ropes()
        try:
            return DecoderConfig(
                architecture=self._architecture,
                vocabulary_size=self._integer("vocab_size"),
                hidden_size=hidden,
                layer_count=layers,
                head_count=heads,
                kv_head_count=self._integer("num_key_value_heads", heads),
                head_size=size,
                mlp_size=self._integer("intermediate_size"),
                context_length=min(MAX_CONTEXT, self._integer("max_position_embeddings")),
                norm_epsilon=self._number(self._keys, "rms_norm_eps"),
                activation=_ACTIVATIONS[action],
                windows=self._windows(layers),
                rope=rope,
                local_rope=local_rope,
                query_scalar=self._integer("query_pre_attn_scalar", size) if gemma else size,
                scale_embedding=gemma,
                query_key_norm=gemma or self._architecture == "qwen3",
                post_norms=gemma,
                qkv_bias=attention_bias or self._architecture == "qwen2",
                output_bias=attention_bias,
                mlp_bias=self._architecture == "llama" and self._flag("mlp_bias"),
                tied_head=self._flag("tie_word_embeddings"),
            )
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{self._where}: {error}") from error

    def _windows(self, layers: int) -> tuple[int, ...]:
        everything = (0,) * layers
        window = self._keys.get("sliding_window")
        qwen = self._architecture in ("qwen2", "qwen3")
        if self._architecture == "llama" or window is None:
            return everything
        if qwen and not self._flag("use_sliding_window"):
            return everything
        size = self._integer("sliding_window")
        if self._architecture == "mistral":
            return (size,) * layers
        kinds = cast("list[str] | None", self._keys.get("layer_types"))
        if kinds is None:
            if qwen:
                first = self._keys["max_window_layers"]
                return tuple(size if i >= first else 0 for i in range(layers))
            every = self._integer(
                "sliding_window_pattern"
                if "sliding_window_pattern" in self._given
                else "_sliding_window_pattern",
                6,
            )
            return tuple(size if (i + 1) % every else 0 for i in range(layers))
        if len(kinds) != layers:
            raise CorruptModel(f"{self._where}: {len(kinds)} layer_types for {layers} layers")
        sizes = {"sliding_attention": size, "full_attention": 0}
        if not set(kinds) <= set(sizes):
            raise self._refuse(f"a layer type among {sorted(set(kinds))}")
        return tuple(sizes[kind] for kind in kinds)

    def _ropes(self) -> tuple[RopeConfig, RopeConfig]:
        if self._flag("partial_rotary_factor") and self._keys["partial_rotary_factor"] != 1:
            raise self._refuse("rotary embedding of a part of each head (partial_rotary_factor)")
        gemma = self._architecture == "gemma3"
        theta = 1_000_000.0 if gemma else 10_000.0
        new = self._object(self._keys, "rope_parameters")
        old = self._object(self._keys, "rope_scaling")
        nested = {"full_attention", "sliding_attention"} & set(new)
        full = self._object(new, "full_attention") if nested else new
        full = {"rope_theta": self._keys.get("rope_theta", theta)} | full | old
        if not gemma and not nested:
            rope = self._rope(full)
            return rope, rope
        base = self._keys.get("rope_local_base_freq", 10_000.0)
        local = {"rope_theta": base} | self._object(new, "sliding_attention")
        return self._rope(full), self._rope(local)

    def _object(self, source: _Json, key: str) -> _Json:
        value = source.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise CorruptModel(f"{self._where}: {key} is {_shown(value)}; an object was expected")
        return cast("_Json", value)

    def _rope(self, values: _Json) -> RopeConfig:
        kind = values.get("rope_type", values.get("type", "default"))
        theta = self._number(values, "rope_theta")
        if values.get("partial_rotary_factor", 1) != 1:
            raise self._refuse("rotary embedding of a part of each head (partial_rotary_factor)")
        if kind == "default":
            return RopeConfig(theta=theta)
        if kind == "linear":
            return RopeConfig(theta=theta, scaling="linear", factor=self._number(values, "factor"))
        if kind not in ("llama3", "yarn"):
            raise self._refuse(f"rope scaling {kind!r}")
        context = self._integer("max_position_embeddings")
        original = values.get(
            "original_max_position_embeddings",
            self._keys.get("original_max_position_embeddings", context),
        )
        if not isinstance(original, int) or original < 1:
            raise CorruptModel(
                f"{self._where}: original_max_position_embeddings is {_shown(original)}"
            )
        factor = self._number(values, "factor", context / original)
        if kind == "llama3":
            return RopeConfig(
                theta=theta,
                scaling="llama3",
                factor=factor,
                low_frequency_factor=self._number(values, "low_freq_factor"),
                high_frequency_factor=self._number(values, "high_freq_factor"),
                original_context=original,
            )
        if values.get("truncate") is False:
            raise self._refuse("yarn rope scaling without truncation")
        if values.get("attention_factor") is not None:
            attention = self._number(values, "attention_factor")
        elif values.get("mscale") and values.get("mscale_all_dim"):
            attention = yarn_attention_factor(
                factor, self._number(values, "mscale"), self._number(values, "mscale_all_dim")
            )
        else:
            attention = yarn_attention_factor(factor)
        return RopeConfig(
            theta=theta,
            scaling="yarn",
            factor=factor,
            original_context=original,
            beta_fast=self._number(values, "beta_fast", 32.0) if values.get("beta_fast") else "32",
            beta_slow=self._number(values, "beta_slow", 1.0) if values.get("beta_slow") else "1",
            attention_factor=attention,
        )


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]
