"""Canonical models against transformers: the whole way from a checkpoint to integer logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.models import tiny
from tests.models.conftest import Checkpoint
from unisono.models.conversion import convert
from unisono.models.decoder import Decoder, Rows, Segment, make_decoder
from unisono.models.loading import load_block
from unisono.models.manifest import tensor_kind
from unisono.models.quantise import quantise_bias, quantise_matrix, quantise_norm
from unisono.models.reference import reference_logits
from unisono.models.safetensors import SafetensorsSource
from unisono.models.store import StoredModel
from unisono.numerics.tensors import GROUP
from unisono.types import LayerRange

CHUNKS = ([40], [1] * 40, [7, 1, 20, 12])


def canonical_logits(decoder: Decoder, ids: list[int], chunks: list[int]) -> Rows:
    """int64 [positions, vocabulary] of ids computed in chunks of these sizes."""
    cache, start, rows = decoder.new_cache(len(ids)), 0, []
    for count in chunks:
        part = decoder.embed(ids[start : start + count])
        rows.append(decoder.forward(part, [Segment(cache, start, count)]))
        start += count
    return decoder.logits(np.concatenate(rows))


def cosine_similarity(a: NDArray[np.float64], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Per row."""
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


class Quantised:
    """A source whose weights are the canonical integers as floats."""

    def __init__(self, source: SafetensorsSource) -> None:
        self._source = source
        self.config = source.config
        self.name = source.name
        self.fingerprint = source.fingerprint

    def read(self, name: str) -> np.ndarray:
        weight = self._source.read(name)
        if tensor_kind(name) == "matrix":
            matrix = quantise_matrix(name, weight)
            factors = matrix.multipliers.astype(np.float64).repeat(GROUP, axis=-1)
            return (matrix.values * factors * 2.0**matrix.exponent).astype(np.float32)
        make = quantise_norm if tensor_kind(name) == "norm" else quantise_bias
        vector = make(name, weight)
        return (vector.values * 2.0**vector.exponent).astype(np.float32)

    def tokenizer_files(self) -> dict[str, bytes]:
        return self._source.tokenizer_files()


def opened(folder: Path, root: Path) -> Decoder:
    stored = StoredModel(convert(SafetensorsSource(folder), root))
    whole = LayerRange(0, stored.layer_count)
    return make_decoder(stored.manifest.config, load_block(stored, whole), threads=2)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_canonical_logits_point_where_those_of_transformers_do(family: str, tmp_path: Path) -> None:
    model = tiny.build(family, initializer_range=0.02)  # what transformers starts training from
    folder = tiny.save(model, tmp_path / "checkpoint")
    decoder = opened(folder, tmp_path)
    one, *others = (canonical_logits(decoder, tiny.IDS, chunks) for chunks in CHUNKS)
    similarity = cosine_similarity(one.astype(np.float64), tiny.expected_logits(model).numpy())
    assert similarity.shape == (40,)
    assert similarity.min() > 0.999
    assert all(np.array_equal(one, other) for other in others)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_integer_arithmetic_itself_loses_almost_nothing(
    checkpoint: Callable[[str], Checkpoint], family: str, tmp_path: Path
) -> None:
    """Against a float forward of the same quantised weights, in models whose large weights make
    attention sharp, so that every error grows."""
    _, folder = checkpoint(family)
    logits = canonical_logits(opened(folder, tmp_path), tiny.IDS, [40]) / 65536
    source = Quantised(SafetensorsSource(folder))
    expected = np.stack(list(reference_logits(source, tiny.IDS))).astype(np.float64)
    assert cosine_similarity(logits, expected).min() > 0.99999
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 0.002
