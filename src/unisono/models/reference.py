"""The float32 decoder that the integer one is measured against.

A plain forward pass with torch over any `ModelSource`: it sets the standard for perplexity and
for tests of loaders. Nothing canonical comes from here; results differ in the last bits between
machines. Weights are read layer by layer and the output matrix is applied to a few rows at a
time, so memory is one layer, the embedding, and some activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from unisono.errors import RequestError
from unisono.models.config import DecoderConfig, RopeConfig
from unisono.models.rope import rope_attention_factor, rope_frequencies
from unisono.models.source import ModelSource

_HEAD_ROWS = 64
_QUERY_ROWS = 512

_from_numpy = cast("Callable[[NDArray[np.float32]], Tensor]", cast("Any", torch).from_numpy)


def reference_logits(source: ModelSource, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Logits after each of `ids`, in order: one array of shape (vocabulary,) per position.

    Raises:
        RequestError: no ids, or an id outside the vocabulary.
        CorruptModel: a tensor is missing or malformed.
    """
    for chunk in _logit_chunks(source, ids):
        yield from cast("NDArray[np.float32]", chunk.numpy())


def reference_nll(source: ModelSource, ids: Sequence[int]) -> list[float]:
    """Natural-log loss of each predicted token: `len(ids) - 1` values, for `ids[1:]`.

    Never holds more than 64 rows of logits. Raises as `reference_logits` does.
    """
    losses: list[float] = []
    targets = torch.tensor([*ids[1:], 0])
    for first, chunk in enumerate(_logit_chunks(source, ids)):
        rows = targets[first * _HEAD_ROWS : first * _HEAD_ROWS + len(chunk)]
        loss = functional.cross_entropy(chunk.double(), rows, reduction="none")
        losses += [float(value) for value in loss]
    return losses[:-1]


def reference_hidden(source: ModelSource, ids: Sequence[int]) -> NDArray[np.float32]:
    """The normalized last hidden state after each of `ids`, shape (ids, hidden_size).

    Raises as `reference_logits` does.
    """
    with torch.inference_mode():
        hidden, _ = _hidden(source, ids)
        return cast("NDArray[np.float32]", hidden.numpy())


def _logit_chunks(source: ModelSource, ids: Sequence[int]) -> Iterator[Tensor]:
    with torch.inference_mode():
        hidden, embedding = _hidden(source, ids)
        head = embedding if source.config.tied_head else _from_numpy(source.read("head"))
    for first in range(0, len(hidden), _HEAD_ROWS):
        with torch.inference_mode():
            chunk = hidden[first : first + _HEAD_ROWS] @ head.T
        yield chunk


def _hidden(source: ModelSource, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    config = source.config
    if not ids or not all(0 <= token < config.vocabulary_size for token in ids):
        raise RequestError(
            f"token ids must be some numbers from 0 to {config.vocabulary_size - 1}", "prompt"
        )
    embedding = _from_numpy(source.read("embedding"))
    hidden = embedding[torch.tensor(list(ids))]
    if config.scale_embedding:
        hidden = hidden * config.hidden_size**0.5
    angles = {rope: _angles(rope, config, len(ids)) for rope in (config.rope, config.local_rope)}
    for layer in range(config.layer_count):
        rope = config.local_rope if config.windows[layer] else config.rope
        hidden = _Layer(source, layer).forward(hidden, *angles[rope])
    return _norm(hidden, _from_numpy(source.read("final_norm")), config), embedding


def _angles(rope: RopeConfig, config: DecoderConfig, count: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (positions, 1, head_size / 2), of positions from 0."""
    frequencies = [float(value) for value in rope_frequencies(rope, config.head_size)]
    scale = float(rope_attention_factor(rope))
    turned = torch.arange(count, dtype=torch.float64)[:, None] * torch.tensor(
        frequencies, dtype=torch.float64
    )
    cosine, sine = torch.cos(turned) * scale, torch.sin(turned) * scale
    return cosine.float()[:, None], sine.float()[:, None]


def _norm(rows: Tensor, weight: Tensor, config: DecoderConfig) -> Tensor:
    mean = rows.pow(2).mean(-1, keepdim=True)
    return rows * torch.rsqrt(mean + float(config.norm_epsilon)) * weight


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate (positions, heads, head_size); the two halves of a head are the coordinates."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class _Layer:
    """One decoder layer; its weights are read when they are needed and dropped after use."""

    def __init__(self, source: ModelSource, index: int) -> None:
        self._source, self._config, self._index = source, source.config, index

    def _read(self, leaf: str) -> Tensor:
        return _from_numpy(self._source.read(f"layers.{self._index}.{leaf}"))

    def _linear(self, rows: Tensor, leaf: str, *, bias: bool) -> Tensor:
        return functional.linear(
            rows, self._read(leaf), self._read(f"{leaf}_bias") if bias else None
        )

    def _normed(self, rows: Tensor, leaf: str) -> Tensor:
        return _norm(rows, self._read(leaf), self._config)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        config = self._config
        mixed = self._attention(self._normed(hidden, "attention_norm"), cosine, sine)
        if config.post_norms:
            mixed = self._normed(mixed, "post_attention_norm")
        hidden = hidden + mixed
        mixed = self._mlp(self._normed(hidden, "mlp_norm"))
        if config.post_norms:
            mixed = self._normed(mixed, "post_mlp_norm")
        return hidden + mixed

    def _mlp(self, rows: Tensor) -> Tensor:
        bias = self._config.mlp_bias
        gate = self._linear(rows, "gate", bias=bias)
        if self._config.activation == "silu":
            gate = functional.silu(gate)
        else:
            gate = functional.gelu(gate, approximate="tanh")
        return self._linear(gate * self._linear(rows, "up", bias=bias), "down", bias=bias)

    def _attention(self, rows: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        config, count = self._config, len(rows)

        def heads(leaf: str) -> Tensor:
            return self._linear(rows, leaf, bias=config.qkv_bias).view(count, -1, config.head_size)

        query, key, value = heads("query"), heads("key"), heads("value")
        if config.query_key_norm:
            query, key = self._normed(query, "query_norm"), self._normed(key, "key_norm")
        query, key = _rotate(query, cosine, sine), _rotate(key, cosine, sine)
        shared = config.head_count // config.kv_head_count
        key = key.repeat_interleave(shared, dim=1).permute(1, 2, 0)
        value = value.repeat_interleave(shared, dim=1).transpose(0, 1)
        places = torch.arange(count)
        window = config.windows[self._index] or count
        parts: list[Tensor] = []
        for first in range(0, count, _QUERY_ROWS):
            here = places[first : first + _QUERY_ROWS, None]
            hidden = (places > here) | (places <= here - window)
            some = query[first : first + _QUERY_ROWS].transpose(0, 1)
            scores = some @ key * config.query_scalar**-0.5
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            parts.append((weights @ value).transpose(0, 1).reshape(len(here), -1))
        return self._linear(torch.cat(parts), "output", bias=config.output_bias)
