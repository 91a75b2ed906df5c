"""Writes small GGUF files from transformers checkpoints, as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tests.models import tiny

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
PLAIN = {"post_attention_layernorm": "ffn_norm"}
SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def tensors(model: PreTrainedModel, architecture: str) -> dict[str, NDArray[np.float32]]:
    """The checkpoint's weights under llama.cpp's names, changed as its converter changes them."""
    gemma = architecture == "gemma3"
    result: dict[str, NDArray[np.float32]] = {}
    for name, parameter in model.state_dict().items():
        value = parameter.float().numpy()
        if gemma and "norm" in name:
            value = value + 1
        if name == "model.embed_tokens.weight":
            result["token_embd.weight"] = value
        elif name == "model.norm.weight":
            result["output_norm.weight"] = value
        elif name == "lm_head.weight":
            if not model.config.tie_word_embeddings:
                result["output.weight"] = value
        else:
            _, _, layer, rest = name.split(".", 3)
            leaf, kind = rest.rsplit(".", 1)
            if architecture == "llama" and leaf in ("self_attn.q_proj", "self_attn.k_proj"):
                value = permuted(value, model.config.head_dim)
            names = NAMES | (SANDWICH if gemma else PLAIN)
            result[f"blk.{layer}.{names[leaf]}.{kind}"] = value
    return result


def permuted(value: NDArray[np.float32], head_size: int) -> NDArray[np.float32]:
    """llama.cpp's order of rows for rotary pairs that lie side by side."""
    heads = value.shape[0] // head_size
    split = value.reshape(heads, 2, head_size // 2, *value.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(value.shape))


def write(
    path: Path,
    model: PreTrainedModel,
    architecture: str,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    keys: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    replace: dict[str, NDArray[np.float32]] | None = None,
    vocabulary: bool = True,
) -> Path:
    """Matrices in `kind`, vectors in F32. `keys` adds or (None) removes metadata keys."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    base: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "context_length": config.max_position_embeddings,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": 10000.0,
    }
    for key, value in (base | (keys or {})).items():
        full = f"{architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        elif isinstance(value, list):
            writer.add_array(full, value)
        elif value is not None:
            writer.add_uint32(full, value)
    if vocabulary:
        add_vocabulary(writer)
    for name, value in (tensors(model, architecture) | (replace or {})).items():
        if name in drop:
            continue
        form = kind if value.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(value, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """The byte-level vocabulary of `tiny`, with the pre-tokenizer called gpt-2."""
    tokenizer = tiny.byte_level_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if i < 2 else 1 for _, i in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
