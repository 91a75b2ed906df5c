from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.scalar_decoder import ScalarDecoder
from tests.tiny_weights import FAMILIES, tiny_config, tiny_weights
from unisono.errors import UnisonoError
from unisono.models.decoder import Decoder, Draw, Rows, Segment
from unisono.models.native_decoder import NativeDecoder, native_draw
from unisono.models.torch_decoder import TorchDecoder
from unisono.models.weights import LayerWeights
from unisono.native import library, operators
from unisono.numerics.tensors import Matrix, Vector
from unisono.types import Q16, LayerRange, Sampling

pytestmark = pytest.mark.usefixtures("form")
KV_BYTES = 64 << 20
_form = ""


@pytest.fixture(scope="module", params=["native", "native without tiles", "torch"])
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    global _form
    _form = request.param
    if _form == "torch":
        yield
        return
    assert library.load() is not None, "the compiled kernels are not built"
    operators.enable_tiles(_form == "native")
    yield
    operators.enable_tiles(True)


def _made(config: Any, weights: Any, threads: int = 2) -> Decoder:
    kind = TorchDecoder if _form == "torch" else NativeDecoder
    return kind(config, weights, threads=threads, kv_bytes=KV_BYTES)


def _decoder(family: str, layers: LayerRange | None = None) -> Decoder:
    config = tiny_config(family)
    return _made(config, tiny_weights(config, seed=1, layers=layers))


def _tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(50), k=count)


def _in_chunks(decoder: Decoder, tokens: list[int], sizes: list[int]) -> Rows:
    """Residual rows of a session that arrives in chunks of these sizes."""
    cache, out, start = decoder.new_cache(len(tokens)), [], 0
    for size in sizes:
        rows = decoder.embed(tokens[start : start + size])
        out.append(decoder.forward(rows, [Segment(cache, start, size)]))
        start += size
    assert start == len(tokens)
    return np.concatenate(out)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_equals_the_scalar_specification(family: str) -> None:
    decoder, tokens = _decoder(family), _tokens(7)
    rows = _in_chunks(decoder, tokens, [7])
    specified = ScalarDecoder(decoder.config, tiny_weights(decoder.config, seed=1))
    steps = [specified.step(token) for token in tokens]
    assert rows.tolist() == [row for row, _ in steps]
    assert decoder.logits(rows).tolist() == [scores for _, scores in steps]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_chunks_and_single_tokens_give_the_same_bytes(family: str) -> None:
    decoder, tokens = _decoder(family), _tokens(23)
    whole = _in_chunks(decoder, tokens, [23])
    assert np.array_equal(_in_chunks(decoder, tokens, [1] * 23), whole)
    assert np.array_equal(_in_chunks(decoder, tokens, [9, 1, 1, 12]), whole)
    assert np.array_equal(_in_chunks(decoder, tokens, [2, 20, 1]), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_the_sessions_it_shares_a_batch_with(family: str) -> None:
    decoder, order = _decoder(family), random.Random(5)
    sessions = [_tokens(n, seed=n) for n in (11, 3, 17, 8, 1)]
    alone = [_in_chunks(decoder, tokens, [len(tokens)]) for tokens in sessions]
    caches = [decoder.new_cache(20) for _ in sessions]
    done = [0] * len(sessions)
    while any(d < len(s) for d, s in zip(done, sessions, strict=True)):
        batch = [i for i, s in enumerate(sessions) if done[i] < len(s)]
        order.shuffle(batch)
        counts = {i: order.randint(1, min(4, len(sessions[i]) - done[i])) for i in batch}
        tokens = [t for i in batch for t in sessions[i][done[i] : done[i] + counts[i]]]
        segments = [Segment(caches[i], done[i], counts[i]) for i in batch]
        rows = np.split(
            decoder.forward(decoder.embed(tokens), segments),
            np.cumsum(list(counts.values()))[:-1],
        )
        for i, got in zip(batch, rows, strict=True):
            assert np.array_equal(got, alone[i][done[i] : done[i] + counts[i]])
            done[i] += counts[i]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_layers_give_the_same_bytes_as_the_whole_model(family: str) -> None:
    whole, tokens = _decoder(family), _tokens(9)
    expected = _in_chunks(whole, tokens, [9])
    first, last = _decoder(family, LayerRange(0, 1)), _decoder(family, LayerRange(1, 2))
    caches, out = [first.new_cache(9), last.new_cache(9)], []
    for start, size in ((0, 4), (4, 1), (5, 4)):
        rows = first.embed(tokens[start : start + size])
        for block, cache in zip((first, last), caches, strict=True):
            rows = block.forward(rows, [Segment(cache, start, size)])
        out.append(rows)
    assert np.array_equal(np.concatenate(out), expected)
    assert np.array_equal(last.logits(expected), whole.logits(expected))


def test_writing_a_session_again_from_an_earlier_position_forgets_what_followed() -> None:
    decoder, tokens = _decoder("gemma"), _tokens(12)
    cache = decoder.new_cache(12)
    decoder.forward(decoder.embed(tokens[:5] + _tokens(7, seed=9)), [Segment(cache, 0, 12)])
    again = decoder.forward(decoder.embed(tokens[5:]), [Segment(cache, 5, 7)])
    assert np.array_equal(again, _in_chunks(decoder, tokens, [12])[5:])


def test_prompts_longer_than_a_query_chunk_and_a_cache_page_give_the_same_bytes() -> None:
    decoder, tokens = _decoder("qwen2"), _tokens(300)
    whole = _in_chunks(decoder, tokens, [300])
    assert np.array_equal(_in_chunks(decoder, tokens, [70, 229, 1]), whole)


def test_the_number_of_threads_does_not_change_a_byte() -> None:
    config, tokens = tiny_config("gemma"), _tokens(40)
    results: list[Rows] = []
    for count in (1, 2, 5):
        decoder = _made(config, tiny_weights(config, seed=1), threads=count)
        results.append(decoder.logits(_in_chunks(decoder, tokens, [40])))
        results.append(decoder.logits(_in_chunks(decoder, tokens, [1] * 40)))
    assert all(np.array_equal(r, results[0]) for r in results)


@pytest.mark.parametrize("family", ["gemma", "qwen3"])
@pytest.mark.parametrize("exponent", [-24, -30, -44, 30])
def test_a_token_of_a_large_vocabulary_is_that_of_all_its_logits(
    family: str, exponent: int
) -> None:
    """Of many tokens the chosen one is searched in a shortlist after some rows; also where logits
    are rounded to a few values, or saturated."""
    if _form == "torch":
        pytest.skip("torch computes all logits of every row")
    config = tiny_config(family, vocabulary_size=8201)
    weights = tiny_weights(config, seed=3)
    assert weights.head is not None
    weights = replace(weights, head=replace(weights.head, exponent=exponent))
    decoder = _made(config, weights)
    rows = _in_chunks(decoder, _tokens(60), [60])
    logits, none = decoder.logits(rows), np.zeros(0, dtype=np.int32)
    rules = [
        Sampling(),
        Sampling(temperature=Q16, seed=5),
        Sampling(temperature=Q16 // 3, min_p=Q16 // 10, seed=6),
        Sampling(temperature=3 * Q16, seed=7),
        Sampling(temperature=7, seed=8),
        Sampling(temperature=40 * Q16, seed=(1 << 63) - 1),
        Sampling(temperature=Q16, top_k=3),
    ]

    def expected(row: int, position: int, draw: Draw) -> int:
        kept: list[Any] = []
        alone = native_draw(draw, 0, position, kept)
        operators.choose(logits[row].copy(), alone)
        return alone.token

    number = 0
    for count in (4, 4, 4, 5, 1, 2, 3, 12, 1, 1):  # the first rows are what a list learns from
        for first in range(0, 60 - count, count):
            number += 1
            mixed = [rules[(number * 3 + i) % len(rules)] for i in range(count)]
            same = [rules[number % len(rules)]] * count
            draws = [
                (row, row * number, Draw(rule, none, 0))
                for row, rule in enumerate(mixed if number % 2 else same, first)
            ]
            chosen = [choice.token for choice in decoder.choose(rows, draws)]
            assert chosen == [expected(*draw) for draw in draws]


def test_a_gap_in_a_session_is_refused() -> None:
    decoder = _decoder("llama")
    with pytest.raises(UnisonoError, match="position 3 of a session came before position 0"):
        decoder.forward(decoder.embed([1]), [Segment(decoder.new_cache(8), 3, 1)])


def test_a_session_beyond_its_capacity_is_refused() -> None:
    decoder = _decoder("llama")
    with pytest.raises(UnisonoError, match="does not fit a session of 4 positions"):
        decoder.forward(decoder.embed([1] * 5), [Segment(decoder.new_cache(4), 0, 5)])


def test_a_block_without_an_end_of_the_model_says_so() -> None:
    with pytest.raises(UnisonoError, match="do not hold the embedding"):
        _decoder("llama", LayerRange(1, 2)).embed([1])
    with pytest.raises(UnisonoError, match="do not hold the output matrix"):
        _decoder("llama", LayerRange(0, 1)).logits(np.zeros((1, 32), dtype=np.int64))


@pytest.mark.parametrize("seed", range(6))
def test_a_model_with_absurd_weights_still_equals_the_specification(seed: int) -> None:
    config = tiny_config(("gemma", "llama", "qwen3")[seed % 3])
    weights, draw = tiny_weights(config, seed), random.Random(seed)

    def absurd(tensor: Matrix | Vector) -> Matrix | Vector:
        return replace(tensor, exponent=draw.randint(-256, 256))

    def every(part: LayerWeights) -> LayerWeights:
        present = {f: getattr(part, f) for f in part.__slots__ if getattr(part, f) is not None}
        return replace(part, **{f: absurd(t) for f, t in present.items()})

    weights = replace(weights, layer={i: every(w) for i, w in weights.layer.items()})
    decoder, tokens = _made(config, weights), _tokens(4)
    rows = _in_chunks(decoder, tokens, [4])
    specified = ScalarDecoder(config, weights)
    assert rows.tolist() == [specified.step(token)[0] for token in tokens]
