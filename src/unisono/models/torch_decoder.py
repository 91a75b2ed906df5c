"""The decoder in torch operators: any device, and the form that has no compiled code at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unisono.models.cache import PAGE, LayerGroup
from unisono.models.config import DecoderConfig
from unisono.models.constants import constants
from unisono.models.decoder import KV_BYTES, Choice, Decoder, Draw, Rows, Segment
from unisono.models.weights import BlockWeights, LayerWeights
from unisono.numerics import residual, tensors
from unisono.numerics.activation import gated
from unisono.numerics.fixed import reduce_rows
from unisono.numerics.linear import Matrix, Vector, from_numpy, linear
from unisono.numerics.norm import rms_norm
from unisono.numerics.rotary import HEAD_BITS, rotate, rotation
from unisono.numerics.sampling import choose, likeliest, log_probabilities
from unisono.numerics.softmax import attend_causal
from unisono.numerics.tensors import RESIDUAL_FRACTION

_QUERY_CHUNK = 256
"""Rows whose scores are held at once."""

Scaled = tuple[Tensor, Tensor]
"""Mantissas [n, width] and exponents [n, 1]."""


@dataclass(frozen=True, slots=True)
class _Pages:
    """The pages of one group: keys, values [pages, layers, PAGE, kv_heads, size], and their
    exponents [pages, layers, PAGE, kv_heads], all int16."""

    keys: Tensor
    values: Tensor
    key_exponents: Tensor
    value_exponents: Tensor

    def all(self) -> tuple[Tensor, ...]:
        return self.keys, self.values, self.key_exponents, self.value_exponents


class TorchDecoder(Decoder):
    """A block of layers on one device."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: BlockWeights,
        device: str = "cpu",
        *,
        threads: int | None = None,
        kv_bytes: int = KV_BYTES,
    ) -> None:
        ends = weights.embedding is not None, weights.head is not None
        super().__init__(config, weights.layers, ends, kv_bytes)
        torch.set_grad_enabled(False)
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = device
        self.constants = constants(config)
        self._layers = {i: _layer_on(device, w) for i, w in weights.layer.items()}
        self._embedding = _matrix_on(device, weights.embedding)
        tied = weights.head is weights.embedding
        self._head = self._embedding if tied else _matrix_on(device, weights.head)
        norm = weights.final_norm
        self._final_norm = None if norm is None else Vector.on(device, norm)
        self._turns = [
            torch.tensor(turns, dtype=torch.int64, device=device)
            for turns in (self.constants.frequencies, self.constants.local_frequencies)
        ]
        if device != "cpu":  # there memory is taken as it is written, elsewhere at once
            self.store.share_equally()
        self._pages = [
            self._make_pages(group, limit)
            for group, limit in zip(self.store.groups, self.store.limits, strict=True)
        ]
        self._place = {
            layer: (group, index)
            for group, found in enumerate(self.store.groups)
            for index, layer in enumerate(found.layers)
        }
        self.store.memory = self

    def _make_pages(self, group: LayerGroup, count: int) -> _Pages:
        heads, size = self.config.kv_head_count, self.config.head_size

        def empty(*last: int) -> Tensor:
            shape = (count, len(group.layers), PAGE, heads, *last)
            return torch.empty(shape, dtype=torch.int16, device=self.device)

        return _Pages(empty(size), empty(size), empty(), empty())

    def _embed(self, ids: NDArray[np.int64]) -> Rows:
        assert self._embedding is not None
        tokens = from_numpy(ids).to(self.device)
        return _array(residual.embed(tokens, self._embedding, self.constants.embedding_scale))

    def _logits(self, rows: Rows) -> Rows:
        return _array(self._scores(from_numpy(np.ascontiguousarray(rows)).to(self.device)))

    def _scores(self, rows: Tensor) -> Tensor:
        assert self._final_norm is not None
        assert self._head is not None
        exponent = _residual_exponent(rows)
        return residual.logits(*self._norm((rows, exponent), self._final_norm), self._head)

    def _choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        wanted = rows[[row for row, _, _ in draws]]
        logits = self._scores(from_numpy(wanted).to(self.device))
        return [
            _choice(one, draw, position)
            for one, (_, position, draw) in zip(logits, draws, strict=True)
        ]

    def _forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
        positions = torch.cat([torch.arange(s.start, s.start + s.count) for s in segments])
        positions = positions.to(self.device)
        c = self.constants
        everywhere = rotation(positions, self._turns[0], c.factor)
        local = everywhere
        if any(self.config.windows) and self.config.local_rope != self.config.rope:
            local = rotation(positions, self._turns[1], c.local_factor)
        x = from_numpy(np.ascontiguousarray(rows)).to(self.device)
        for i in range(self.layers.start, self.layers.stop):
            turn = local if self.config.windows[i] else everywhere
            x = self._layer(i, x, segments, turn)
        return _array(x)

    def _norm(self, x: Scaled, weight: Vector) -> Scaled:
        return rms_norm(*x, weight.values, weight.exponent, self.constants.epsilon)

    def _layer(
        self, i: int, rows: Tensor, segments: Sequence[Segment], turn: tuple[Tensor, Tensor]
    ) -> Tensor:
        w = self._layers[i]
        exponent = _residual_exponent(rows)
        x = self._attention(i, w, self._norm((rows, exponent), w.attention_norm), segments, turn)
        if w.post_attention_norm is not None:
            x = self._norm(x, w.post_attention_norm)
        rows = residual.add(rows, *x)
        h = reduce_rows(*self._norm((rows, exponent), w.mlp_norm), HEAD_BITS)
        gate = linear(*h, w.gate, w.gate_bias)
        up = linear(*h, w.up, w.up_bias)
        x = linear(*gated(self.config.activation, *gate, *up), w.down, w.down_bias)
        if w.post_mlp_norm is not None:
            x = self._norm(x, w.post_mlp_norm)
        return residual.add(rows, *x)

    def _heads(self, x: Scaled, norm: Vector | None) -> Scaled:
        """Split rows [n, heads * size] into [n, heads, size] with an exponent each."""
        mantissas = x[0].view(x[0].shape[0], -1, self.config.head_size)
        heads = mantissas, x[1].unsqueeze(-1).expand(*mantissas.shape[:2], 1)
        return heads if norm is None else self._norm(heads, norm)

    def _attention(
        self, i: int, w: Any, x: Scaled, segments: Sequence[Segment], turn: tuple[Tensor, Tensor]
    ) -> Scaled:
        h = reduce_rows(*x, HEAD_BITS)
        queries = self._heads(linear(*h, w.query, w.query_bias), w.query_norm)
        keys = self._heads(linear(*h, w.key, w.key_bias), w.key_norm)
        query, query_exponent = rotate(*queries, *turn)
        key, key_exponent = rotate(*keys, *turn)
        value, value_exponent = reduce_rows(
            *self._heads(linear(*h, w.value, w.value_bias), None), HEAD_BITS
        )
        outputs: list[Scaled] = []
        first = 0
        for s in segments:
            span = slice(first, first + s.count)
            self._write(i, s, key[span], value[span], key_exponent[span], value_exponent[span])
            for chunk in range(0, s.count, _QUERY_CHUNK):
                stop = min(chunk + _QUERY_CHUNK, s.count)
                part = slice(first + chunk, first + stop)
                outputs.append(
                    self._attend(i, s, s.start + chunk, query[part], query_exponent[part])
                )
            first += s.count
        out = torch.cat([o[0] for o in outputs]), torch.cat([o[1] for o in outputs])
        return linear(*out, w.output, w.output_bias)

    def _write(self, i: int, s: Segment, *given: Tensor) -> None:
        group, index = self._place[i]
        positions = np.arange(s.start, s.start + s.count)
        page = from_numpy(s.cache.tables[group][positions // PAGE]).to(self.device)
        slot = from_numpy(positions % PAGE).to(self.device)
        keys, values, key_exponents, value_exponents = given
        kept = keys, values, key_exponents[..., 0], value_exponents[..., 0]
        for store, new in zip(self._pages[group].all(), kept, strict=True):
            store[page, index, slot] = new.to(torch.int16)

    def _attend(
        self, i: int, s: Segment, start: int, query: Tensor, query_exponent: Tensor
    ) -> Scaled:
        window = self.config.windows[i]
        first = max(0, start - window + 1) if window else 0
        stop = start + query.shape[0]
        group, index = self._place[i]
        begin = first // PAGE
        table = from_numpy(s.cache.tables[group][begin : -(-stop // PAGE)]).to(self.device)
        span = slice(first - begin * PAGE, stop - begin * PAGE)
        keys, values, key_exponents, value_exponents = (
            store[table, index].flatten(0, 1)[span] for store in self._pages[group].all()
        )
        return attend_causal(
            (query, query_exponent),
            (keys, key_exponents),
            (values, value_exponents),
            start,
            first,
            window,
            self.constants.score_scale,
        )

    def close(self) -> None:
        self.store.memory = None
        self._pages, self._layers = [], {}
        self._embedding = self._head = None

    def read_page(self, group: int, page: int) -> bytes:
        return b"".join(
            cast(Any, part[page].cpu()).numpy().tobytes() for part in self._pages[group].all()
        )

    def write_page(self, group: int, page: int, data: bytes) -> None:
        offset = 0
        for part in self._pages[group].all():
            count = part[page].numel()
            values = np.frombuffer(data, np.int16, count, offset).copy()
            part[page] = from_numpy(values).view(part[page].shape).to(self.device)
            offset += 2 * count

    def discard_page(self, group: int, page: int) -> None:
        """torch's memory stays with the process."""


def _layer_on(device: str, weights: LayerWeights) -> Any:
    """A layer's tensors on a device, under the same names."""
    moved: dict[str, Any] = {}
    for field in fields(weights):
        part = getattr(weights, field.name)
        if isinstance(part, tensors.Matrix):
            moved[field.name] = Matrix.on(device, part)
        elif isinstance(part, tensors.Vector):
            moved[field.name] = Vector.on(device, part)
        else:
            moved[field.name] = None
    return SimpleNamespace(**moved)


def _matrix_on(device: str, stored: tensors.Matrix | None) -> Matrix | None:
    return None if stored is None else Matrix.on(device, stored)


def _choice(logits: Tensor, draw: Draw, position: int) -> Choice:
    known = cast("list[int]", draw.tokens.tolist())
    token = choose(logits, draw.sampling, known[: draw.prompt], known[draw.prompt :], position)
    if draw.top_logprobs < 0:
        return Choice(token)
    best = _integers(likeliest(logits, draw.top_logprobs)) if draw.top_logprobs else []
    chosen = torch.tensor([token, *best], device=logits.device)
    values = _integers(log_probabilities(logits, chosen))
    return Choice(token, values[0], tuple(zip(best, values[1:], strict=True)))


def _integers(x: Tensor) -> list[int]:
    return cast("list[int]", cast(Any, x).tolist())


def _array(x: Tensor) -> Rows:
    return cast(Rows, cast(Any, x.cpu()).numpy())


def _residual_exponent(rows: Tensor) -> Tensor:
    return torch.full((rows.shape[0], 1), -RESIDUAL_FRACTION, dtype=torch.int64, device=rows.device)
