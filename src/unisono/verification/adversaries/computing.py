"""Nodes that compute something else than the layers that they sign for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from unisono.models.config import DecoderConfig, tensor_shapes
from unisono.models.decoder import Choice, Decoder, Draw, Rows, Segment, make_decoder
from unisono.models.weights import BlockWeights
from unisono.numerics.tensors import GROUP, RESIDUAL_FRACTION, Matrix
from unisono.types import LayerRange


class Dishonest(Decoder):
    """Passes everything on to an honest decoder; attacks change what goes in or comes out.

    `layers` is what the node says that it holds.
    """

    def __init__(self, inner: Decoder, layers: LayerRange | None = None) -> None:
        # not the base class's: the pages are the inner decoder's
        self.inner = inner
        self.config, self.ends, self.store = inner.config, inner.ends, inner.store
        self.layers = layers or inner.layers

    @classmethod
    def of(cls, config: DecoderConfig, weights: BlockWeights, kv_bytes: int) -> Decoder:
        """The attack on a block, by whoever holds its true weights."""
        return cls(make_decoder(config, weights, kv_bytes=kv_bytes))

    @classmethod
    def saved(cls, config: DecoderConfig) -> float:
        """The share of weight bytes that a node with the whole model does not read per token."""
        return 0.0

    def close(self) -> None:
        self.inner.close()

    def _embed(self, ids: NDArray[np.int64]) -> Rows:
        return self.inner.embed(ids.tolist())

    def _forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
        return self.inner._forward(rows, segments)

    def _logits(self, rows: Rows) -> Rows:
        return self.inner.logits(rows)

    def _choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        return self.inner.choose(rows, draws)


class OtherWeights(Dishonest):
    """Computes with weights of another training: here one in a thousand has the other sign."""

    SHARE = 0.001

    @classmethod
    def of(cls, config: DecoderConfig, weights: BlockWeights, kv_bytes: int) -> Decoder:
        return cls(make_decoder(config, cls.altered(weights), kv_bytes=kv_bytes))

    @classmethod
    def altered(cls, weights: BlockWeights) -> BlockWeights:
        """What it computes with."""
        return with_matrices(weights, cls._flipped)

    @classmethod
    def _flipped(cls, matrix: Matrix) -> Matrix:
        chance = np.random.default_rng(zlib.crc32(matrix.values.tobytes()))
        flipped = chance.random(matrix.values.shape) < cls.SHARE
        # at least one: a small matrix might be left as it is
        flipped.flat[chance.integers(flipped.size)] = True
        values = np.clip(matrix.values.astype(np.int16), -127, 127)
        return replace(matrix, values=np.where(flipped, -values - 1, values).astype(np.int8))


class FourBitWeights(OtherWeights):
    """Holds weights of four bits, in the same groups: half of the bytes of every pass."""

    @classmethod
    def altered(cls, weights: BlockWeights) -> BlockWeights:
        return with_matrices(weights, _four_bits)

    @classmethod
    def saved(cls, config: DecoderConfig) -> float:
        return 0.5 * GROUP / (GROUP + 2)  # the multipliers stay


class FewerLayers(Dishonest):
    """Leaves out the last layer of its block."""

    @classmethod
    def of(cls, config: DecoderConfig, weights: BlockWeights, kv_bytes: int) -> Decoder:
        layers = weights.layers
        if layers.count < 2:
            return PassedOn.of(config, weights, kv_bytes)
        kept = LayerRange(layers.start, layers.stop - 1)
        cut = replace(weights, layers=kept, layer={i: weights.layer[i] for i in _range(kept)})
        return cls(make_decoder(config, cut, kv_bytes=kv_bytes), layers)

    @classmethod
    def saved(cls, config: DecoderConfig) -> float:
        return _share(config, "layers.0.")


class PassedOn(Dishonest):
    """Passes rows on as they came. A friend behind it signs that it received them: neighbours
    agree, and only the weights show that nothing was computed."""

    @classmethod
    def saved(cls, config: DecoderConfig) -> float:
        return 1.0 - head_share(config)

    def _forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
        return np.array(rows)


class RandomRows(Dishonest):
    """Computes nothing: rows are drawn, and tokens too."""

    def __init__(self, inner: Decoder, layers: LayerRange | None = None) -> None:
        super().__init__(inner, layers)
        self._chance = np.random.default_rng(0)

    @classmethod
    def saved(cls, config: DecoderConfig) -> float:
        return 1.0

    def _forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
        return self._chance.integers(-1 << RESIDUAL_FRACTION, 1 << RESIDUAL_FRACTION, rows.shape)

    def _choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        drawn = self._chance.integers(0, self.config.vocabulary_size, len(draws))
        return [Choice(int(token)) for token in drawn]


def with_matrices(weights: BlockWeights, change: Callable[[Matrix], Matrix]) -> BlockWeights:
    """A block with each of its matrices changed; embedding and head stay one if they were."""
    embedding = None if weights.embedding is None else change(weights.embedding)
    tied = weights.head is weights.embedding
    head = embedding if tied or weights.head is None else change(weights.head)
    return replace(
        weights,
        layer={
            i: replace(
                layer,
                **{
                    part.name: change(tensor)
                    for part in fields(layer)
                    if isinstance(tensor := getattr(layer, part.name), Matrix)
                },
            )
            for i, layer in weights.layer.items()
        },
        embedding=embedding,
        head=None if weights.head is None else head,
    )


def _four_bits(matrix: Matrix) -> Matrix:
    """Each value is the nearest of 15 multiples of 16."""
    coarse = np.clip(np.rint(matrix.values / 16), -7, 7)
    return replace(matrix, values=(16 * coarse).astype(np.int8))


def _range(layers: LayerRange) -> range:
    return range(layers.start, layers.stop)


def head_share(config: DecoderConfig) -> float:
    """The output matrix's share of the weights that a decoded token reads."""
    return _share(config, "embedding" if config.tied_head else "head")


def _share(config: DecoderConfig, prefix: str) -> float:
    """The share of the weights that a decoded token reads whose names begin so."""
    read = {
        name: prod(shape)
        for name, shape in tensor_shapes(config).items()
        if name != "embedding" or config.tied_head
    }
    return sum(size for name, size in read.items() if name.startswith(prefix)) / sum(read.values())
