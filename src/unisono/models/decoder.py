"""The decoder: one definition for all supported architectures, in integers.

A `Decoder` runs a block of layers over rows of any number of sessions at once. What a row
becomes depends on its own session's earlier rows only, never on what shares the batch: the
tests assert it with `==`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from unisono.errors import UnisonoError, UnsupportedModel
from unisono.models.cache import SessionCache
from unisono.models.config import DecoderConfig, RopeConfig
from unisono.models.quantise import fraction_to_fixed, inverse_square_root, square_root
from unisono.models.rope import rope_attention_factor, rope_frequencies
from unisono.models.weights import BlockWeights, LayerWeights
from unisono.numerics import residual
from unisono.numerics.activation import gated
from unisono.numerics.fixed import reduce_rows
from unisono.numerics.linear import Vector, linear
from unisono.numerics.norm import EPSILON_BITS, rms_norm
from unisono.numerics.rotary import FACTOR_BITS, HEAD_BITS, TURN_BITS, rotate, rotation
from unisono.numerics.softmax import attend_causal
from unisono.numerics.tables import ln2, pi

_QUERY_CHUNK = 256
"""Rows whose scores are held at once."""

Rows = tuple[Tensor, Tensor]
"""Mantissas [n, width] and exponents [n, 1]."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive positions of one session: `count` rows from `start`."""

    cache: SessionCache
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Constants:
    """Integers that follow from a configuration alone."""

    epsilon: tuple[int, int]
    embedding_scale: tuple[int, int]
    score_scale: tuple[int, int]
    frequencies: Tensor
    factor: int
    local_frequencies: Tensor
    local_factor: int


def constants(config: DecoderConfig, device: str = "cpu") -> Constants:
    """Derive the constants exactly (rational arithmetic, rounded once)."""
    log2_e = Fraction(1 << 160, ln2())
    embedding = square_root(config.hidden_size) if config.scale_embedding else Fraction(1)

    def turns(rope: RopeConfig) -> Tensor:
        per_turn = Fraction(1 << 160, 2 * pi())
        exact = [
            Fraction(f) * per_turn * (1 << TURN_BITS)
            for f in rope_frequencies(rope, config.head_size)
        ]
        if any(not 0 <= f <= 1 << TURN_BITS for f in exact):
            raise UnsupportedModel("a rotary frequency exceeds one turn per position")
        return torch.tensor([round(f) for f in exact], dtype=torch.int64, device=device)

    def factor(rope: RopeConfig) -> int:
        exact = Fraction(rope_attention_factor(rope))
        if not 0 < exact < 16:
            raise UnsupportedModel(f"a rotary factor of {float(exact):g}: below 16 is expected")
        return round(exact * (1 << FACTOR_BITS))

    return Constants(
        epsilon=fraction_to_fixed(Fraction(config.norm_epsilon), EPSILON_BITS),
        embedding_scale=fraction_to_fixed(embedding, 17),
        score_scale=fraction_to_fixed(log2_e * inverse_square_root(config.query_scalar), 20),
        frequencies=turns(config.rope),
        factor=factor(config.rope),
        local_frequencies=turns(config.local_rope),
        local_factor=factor(config.local_rope),
    )


class Decoder:
    """A block of layers with its weights on one device."""

    def __init__(self, config: DecoderConfig, weights: BlockWeights, device: str = "cpu") -> None:
        self.config = config
        self.weights = weights
        self.device = device
        self.constants = constants(config, device)

    def new_cache(self, capacity: int) -> SessionCache:
        """An empty cache for one session of at most `capacity` positions."""
        return SessionCache(self.config, self.weights.layers, capacity, self.device)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Residual rows int64 [n, hidden] of token ids; the block must begin the model."""
        if self.weights.embedding is None:
            raise UnisonoError(f"layers {self.weights.layers} do not hold the embedding")
        tokens = torch.tensor(ids, dtype=torch.int64, device=self.device)
        return residual.embed(tokens, self.weights.embedding, self.constants.embedding_scale)

    def logits(self, rows: Tensor) -> Tensor:
        """int64 [n, vocabulary], 16 fraction bits, of the last layer's residual rows."""
        if self.weights.final_norm is None or self.weights.head is None:
            raise UnisonoError(f"layers {self.weights.layers} do not hold the output matrix")
        exponent = _residual_exponent(rows)
        return residual.logits(
            *self._norm((rows, exponent), self.weights.final_norm), self.weights.head
        )

    def forward(self, rows: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Run the block.

        Args:
            rows: int64 [n, hidden] with 20 fraction bits, the segments' rows one after another.
            segments: sum of counts is n; each starts at most at its cache's length (an earlier
                start overwrites what follows).

        Returns:
            int64 [n, hidden].
        """
        if rows.shape[0] != sum(s.count for s in segments):
            raise UnisonoError(
                f"{rows.shape[0]} rows came for segments of {sum(s.count for s in segments)}"
            )
        for s in segments:
            if s.start > s.cache.length:
                raise UnisonoError(
                    f"position {s.start} of a session came before position {s.cache.length}"
                )
            s.cache.reserve(s.start + s.count)
        positions = torch.cat([torch.arange(s.start, s.start + s.count) for s in segments])
        positions = positions.to(self.device)
        c = self.constants
        everywhere = rotation(positions, c.frequencies, c.factor)
        local = everywhere
        if any(self.config.windows) and self.config.local_rope != self.config.rope:
            local = rotation(positions, c.local_frequencies, c.local_factor)
        for i in range(self.weights.layers.start, self.weights.layers.stop):
            turn = local if self.config.windows[i] else everywhere
            rows = self._layer(i, rows, segments, turn)
        for s in segments:
            s.cache.length = s.start + s.count
        return rows

    def _norm(self, x: Rows, weight: Vector) -> Rows:
        return rms_norm(*x, weight.values, weight.exponent, self.constants.epsilon)

    def _layer(
        self, i: int, rows: Tensor, segments: Sequence[Segment], turn: tuple[Tensor, Tensor]
    ) -> Tensor:
        w = self.weights.layer[i]
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

    def _heads(self, x: Rows, norm: Vector | None) -> Rows:
        """Split rows [n, heads * size] into [n, heads, size] with an exponent each."""
        mantissas = x[0].view(x[0].shape[0], -1, self.config.head_size)
        heads = mantissas, x[1].unsqueeze(-1).expand(*mantissas.shape[:2], 1)
        return heads if norm is None else self._norm(heads, norm)

    def _attention(
        self,
        i: int,
        w: LayerWeights,
        x: Rows,
        segments: Sequence[Segment],
        turn: tuple[Tensor, Tensor],
    ) -> Rows:
        h = reduce_rows(*x, HEAD_BITS)
        queries = self._heads(linear(*h, w.query, w.query_bias), w.query_norm)
        keys = self._heads(linear(*h, w.key, w.key_bias), w.key_norm)
        query, query_exponent = rotate(*queries, *turn)
        key, key_exponent = rotate(*keys, *turn)
        value, value_exponent = reduce_rows(
            *self._heads(linear(*h, w.value, w.value_bias), None), HEAD_BITS
        )
        outputs: list[Rows] = []
        first = 0
        for s in segments:
            span = slice(first, first + s.count)
            s.cache.write(
                i, s.start, (key[span], key_exponent[span]), (value[span], value_exponent[span])
            )
            for chunk in range(0, s.count, _QUERY_CHUNK):
                stop = min(chunk + _QUERY_CHUNK, s.count)
                part = slice(first + chunk, first + stop)
                outputs.append(
                    self._attend(i, s, s.start + chunk, query[part], query_exponent[part])
                )
            first += s.count
        out = torch.cat([o[0] for o in outputs]), torch.cat([o[1] for o in outputs])
        return linear(*out, w.output, w.output_bias)

    def _attend(
        self, i: int, s: Segment, start: int, query: Tensor, query_exponent: Tensor
    ) -> Rows:
        window = self.config.windows[i]
        first = max(0, start - window + 1) if window else 0
        key, key_exponent, value, value_exponent = s.cache.read(i, first, start + query.shape[0])
        return attend_causal(
            (query, query_exponent),
            (key, key_exponent),
            (value, value_exponent),
            start,
            first,
            window,
            self.constants.score_scale,
        )


def _residual_exponent(rows: Tensor) -> Tensor:
    return torch.full(
        (rows.shape[0], 1), -residual.RESIDUAL_FRACTION, dtype=torch.int64, device=rows.device
    )
