"""The real default model: what the design promises about every model, on the one people run."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from unisono.models.catalog import DEFAULT_MODEL, open_source
from unisono.models.decoder import Decoder, Draw, Rows, Segment, make_decoder
from unisono.models.loading import load_block
from unisono.models.reference import reference_nll
from unisono.models.store import ModelStore, StoredModel
from unisono.models.tokenizer import Tokenizer
from unisono.models.torch_decoder import TorchDecoder
from unisono.routing.placement import even_blocks
from unisono.types import LayerRange, Sampling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROSE = (Path(__file__).parents[2] / "LICENSE").read_text()


@pytest.fixture(scope="module")
def model() -> StoredModel:
    return ModelStore().ensure(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def decoder(model: StoredModel) -> Decoder:
    return make_decoder(model.manifest.config, load_block(model, LayerRange(0, model.layer_count)))


@pytest.fixture(scope="module")
def ids(model: StoredModel) -> list[int]:
    return Tokenizer.from_files(model.tokenizer_files()).encode(PROSE)[:700]


def run(decoder: Decoder, ids: list[int], chunks: list[int]) -> Rows:
    """Hidden rows of `ids`, computed in chunks of these sizes."""
    assert sum(chunks) == len(ids)
    cache, start, rows = decoder.new_cache(len(ids)), 0, []
    for count in chunks:
        part = decoder.embed(ids[start : start + count])
        rows.append(decoder.forward(part, [Segment(cache, start, count)]))
        start += count
    cache.close()
    return np.concatenate(rows)


def test_chunks_and_single_tokens_give_the_rows_of_one_pass(
    decoder: Decoder, ids: list[int]
) -> None:
    ids = ids[:64]
    whole = run(decoder, ids, [64])
    assert np.array_equal(run(decoder, ids, [1, 7, 30, 26]), whole)
    assert np.array_equal(run(decoder, ids, [1] * 64), whole)


def test_rows_past_the_sliding_window_do_not_depend_on_chunks(
    decoder: Decoder, ids: list[int]
) -> None:
    whole = run(decoder, ids[:600], [600])
    assert np.array_equal(run(decoder, ids[:600], [128] * 4 + [80] + [1] * 8), whole)


def test_sessions_in_one_batch_give_the_rows_they_give_alone(
    decoder: Decoder, ids: list[int]
) -> None:
    prompts = [ids[:20], ids[100:141], ids[300:307]]
    alone = [run(decoder, p, [len(p)]) for p in prompts]
    order = [0, 1, 2]
    random.Random(5).shuffle(order)
    caches = [decoder.new_cache(len(p)) for p in prompts]
    batch = np.concatenate([decoder.embed(prompts[i]) for i in order])
    out = decoder.forward(batch, [Segment(caches[i], 0, len(prompts[i])) for i in order])
    stops = np.cumsum([len(prompts[i]) for i in order])
    for i, rows in zip(order, np.split(out, stops[:-1]), strict=True):
        assert np.array_equal(rows, alone[i])


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_any_split_into_blocks_gives_the_same_rows_and_tokens(
    model: StoredModel, decoder: Decoder, ids: list[int], parts: int
) -> None:
    ids = ids[:40]
    whole = run(decoder, ids, [40])
    rows: Rows | None = None
    for layers in even_blocks(model.layer_count, parts):
        block = make_decoder(model.manifest.config, load_block(model, layers))
        rows = block.embed(ids) if rows is None else rows
        rows = block.forward(rows, [Segment(block.new_cache(40), 0, 40)])
    assert rows is not None
    assert np.array_equal(rows, whole)
    assert np.array_equal(block.logits(rows[-1:]), decoder.logits(whole)[-1:])
    sampling = Sampling(temperature=52429, top_p=60000, seed=7)
    draw = Draw(sampling, np.array(ids, dtype=np.int32), len(ids), 5)
    assert block.choose(rows[-4:], [(3, 40, draw)]) == decoder.choose(whole, [(39, 40, draw)])


def test_compiled_operators_give_the_integers_of_the_torch_forms(
    model: StoredModel, decoder: Decoder, ids: list[int]
) -> None:
    plain = TorchDecoder(model.manifest.config, load_block(model, LayerRange(0, model.layer_count)))
    assert type(plain) is not type(decoder)
    compiled, rows = run(decoder, ids[:24], [20, 4]), run(plain, ids[:24], [24])
    assert np.array_equal(rows, compiled)
    assert np.array_equal(plain.logits(rows[-1:]), decoder.logits(compiled[-1:]))
    for sampling in (Sampling(), Sampling(temperature=52429, top_k=40, top_p=60000, seed=7)):
        draw = Draw(sampling, np.array(ids[:24], dtype=np.int32), 20, 5)
        asked = [(23, 24, draw), (11, 12, draw)]
        assert plain.choose(rows, asked) == decoder.choose(compiled, asked)


def test_perplexity_is_within_half_a_per_cent_of_fp32(decoder: Decoder, ids: list[int]) -> None:
    ids = ids[:400]
    rows = run(decoder, ids, [256, 144])
    losses: list[float] = []
    for start in range(0, len(ids) - 1, 100):
        stop = min(start + 100, len(ids) - 1)
        scores = decoder.logits(rows[start:stop]) / 65536
        scores -= scores.max(-1, keepdims=True)
        wanted = scores[np.arange(stop - start), ids[start + 1 : stop + 1]]
        losses += (np.log(np.exp(scores).sum(-1)) - wanted).tolist()
    expected = reference_nll(open_source(DEFAULT_MODEL), ids)
    change = math.exp(sum(losses) / len(losses) - sum(expected) / len(expected)) - 1
    assert abs(change) < 0.005
