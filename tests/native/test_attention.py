"""Attention over sessions of many pages: the compiled form against torch, through whole decoders
(`tests/models/test_decoder.py` holds torch against the specification)."""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.tiny_weights import tiny_config, tiny_weights
from unisono.models.cache import PAGE, Prefix, SessionCache
from unisono.models.config import DecoderConfig, RopeConfig
from unisono.models.decoder import Decoder, Rows, Segment
from unisono.models.native_decoder import NativeDecoder
from unisono.models.torch_decoder import TorchDecoder
from unisono.models.weights import BlockWeights

pytestmark = pytest.mark.usefixtures("form")

KV_BYTES = 64 << 20
WINDOWS = (0, 3, 63, 64, 65, 130)
KINDS = ["usual", "sharp", "flat", "uneven", "absurd"]

few = settings(max_examples=10, deadline=None)


def _config(
    size: int, kv_heads: int, group: int, windows: tuple[int, ...], kind: str = "usual"
) -> DecoderConfig:
    return tiny_config(
        "llama",
        head_size=size,
        query_scalar=size,
        kv_head_count=kv_heads,
        head_count=kv_heads * group,
        mlp_size=32,
        layer_count=len(windows),
        windows=windows,
        context_length=1 << 18,
        local_rope=RopeConfig(theta="700"),
        post_norms=kind == "absurd",  # or nothing of attention would be left to see
    )


def _weights(config: DecoderConfig, kind: str, seed: int) -> BlockWeights:
    """Weights whose attention is `sharp` (few positions count), `flat` (all count alike),
    `uneven` (keys and values of very different sizes) or `absurd` (any exponents)."""
    weights, draw = tiny_weights(config, seed), random.Random(seed)
    embedding = weights.embedding
    assert embedding is not None
    if kind in ("uneven", "absurd"):
        largest = np.array([0, 1, 40, 65535], dtype=np.uint16)
        sizes = np.random.default_rng(seed).choice(largest, (config.vocabulary_size, 1))
        embedding.multipliers[:] = np.minimum(embedding.multipliers, sizes)
    layers: dict[int, Any] = {}
    for i, layer in weights.layer.items():
        if kind == "sharp":
            layer = replace(layer, query=replace(layer.query, exponent=-21))
        elif kind == "flat":
            layer.query.multipliers[:] = 0
        elif kind == "uneven":
            layer = replace(layer, query=replace(layer.query, exponent=-23 + i))
        elif kind == "absurd":
            for name in ("query", "key", "value", "output"):
                moved = replace(getattr(layer, name), exponent=draw.randint(-60, 10))
                layer = replace(layer, **{name: moved})
        layers[i] = layer
    return replace(weights, layer=layers)


def _run(decoder: Decoder, tokens: list[int], sizes: list[int]) -> Rows:
    """Rows out of a session that arrives in chunks of these sizes."""
    cache, out, start = decoder.new_cache(len(tokens)), [], 0
    for size in sizes:
        rows = decoder.embed(tokens[start : start + size])
        out.append(decoder.forward(rows, [Segment(cache, start, size)]))
        start += size
    cache.close()
    assert start == len(tokens)
    return np.concatenate(out)


def _tokens(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(50), k=count)


def _sizes(count: int, cuts: int, seed: int) -> list[int]:
    places = [0, *sorted(random.Random(seed).sample(range(1, count), cuts)), count]
    return [b - a for a, b in pairwise(places)]


def _native(config: DecoderConfig, weights: BlockWeights, threads: int = 2) -> NativeDecoder:
    return NativeDecoder(config, weights, threads=threads, kv_bytes=KV_BYTES)


def _torch(config: DecoderConfig, weights: BlockWeights) -> TorchDecoder:
    return TorchDecoder(config, weights, threads=1, kv_bytes=KV_BYTES)


@functools.cache
def _by_torch(size: int, kv_heads: int, group: int, kind: str) -> Rows:
    config = _config(size, kv_heads, group, WINDOWS, kind)
    return _run(_torch(config, _weights(config, kind, size + group)), _tokens(300, group), [300])


SHAPES = [
    (32, 1, 1, "uneven"),
    (64, 2, 3, "usual"),
    (96, 4, 1, "sharp"),
    (256, 1, 3, "uneven"),
    (32, 2, 20, "absurd"),
    (96, 1, 20, "flat"),
    (64, 4, 3, "sharp"),
    (256, 2, 1, "flat"),
]


@pytest.mark.parametrize(("size", "kv_heads", "group", "kind"), SHAPES)
def test_sessions_of_several_pages_and_every_window_give_the_bytes_of_torch(
    size: int, kv_heads: int, group: int, kind: str
) -> None:
    config = _config(size, kv_heads, group, WINDOWS, kind)
    weights, tokens = _weights(config, kind, size + group), _tokens(300, group)
    expected = _by_torch(size, kv_heads, group, kind)
    native = _native(config, weights, threads=1 + group % 3)
    for cuts in (0, 5, 60):
        got = _run(native, tokens, _sizes(300, cuts, cuts))
        assert np.array_equal(got, expected), cuts


@few
@given(
    st.sampled_from([32, 64, 96, 256]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 3, 20]),
    st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=2),
    st.sampled_from(KINDS),
    st.integers(65, 200),
    st.integers(0, 20),
    st.integers(1, 3),
    st.integers(0, 1 << 32),
)
def test_random_sessions_in_random_chunks_give_the_bytes_of_torch(
    size: int,
    kv_heads: int,
    group: int,
    windows: list[int],
    kind: str,
    count: int,
    cuts: int,
    threads: int,
    seed: int,
) -> None:
    config = _config(size, kv_heads, group, tuple(windows), kind)
    weights, tokens = _weights(config, kind, seed), _tokens(count, seed)
    expected = _run(_torch(config, weights), tokens, _sizes(count, 3, seed))
    got = _run(_native(config, weights, threads), tokens, _sizes(count, cuts, seed + 1))
    assert np.array_equal(got, expected)


def test_single_tokens_of_long_sessions_give_the_bytes_of_one_pass() -> None:
    config = _config(64, 2, 3, (0, 65, 3))
    native = _native(config, _weights(config, "sharp", 3))
    tokens = _tokens(300, 3)
    assert np.array_equal(_run(native, tokens, [1] * 300), _run(native, tokens, [300]))


def test_long_sessions_in_one_batch_give_the_bytes_that_each_gives_alone() -> None:
    config = _config(64, 2, 3, (0, 64, 130))
    weights = _weights(config, "uneven", 4)
    native, plain = _native(config, weights, threads=3), _torch(config, weights)
    lengths, order = (290, 129, 64, 7, 200), random.Random(4)
    sessions = [_tokens(n, n) for n in lengths]
    alone = [_run(plain, tokens, [len(tokens)]) for tokens in sessions]
    caches = [native.new_cache(n) for n in lengths]
    done = [0] * len(lengths)
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        batch = [i for i, n in enumerate(lengths) if done[i] < n]
        order.shuffle(batch)
        counts = {i: min(order.choice([1, 2, 40, 90]), lengths[i] - done[i]) for i in batch}
        tokens = [t for i in batch for t in sessions[i][done[i] : done[i] + counts[i]]]
        segments = [Segment(caches[i], done[i], counts[i]) for i in batch]
        out = native.forward(native.embed(tokens), segments)
        for i, rows in zip(
            batch, np.split(out, np.cumsum(list(counts.values()))[:-1]), strict=True
        ):
            assert np.array_equal(rows, alone[i][done[i] : done[i] + counts[i]]), i
            done[i] += counts[i]


PAGES = 5


def _long(decoder: Decoder, tokens: list[int], order: list[int]) -> SessionCache:
    """A session whose pages repeat a few in some order: far longer than one could compute."""
    first = decoder.new_cache(PAGES * PAGE)
    decoder.forward(decoder.embed(tokens), [Segment(first, 0, PAGES * PAGE)])
    found = [first.page(i) for i in range(PAGES)]
    prefixes = [Prefix(pages, ((), ())) for pages in found if pages is not None]
    cache = decoder.new_cache((len(order) + 1) * PAGE)
    cache.adopt([prefixes[i] for i in order])
    first.close()
    return cache


@pytest.mark.parametrize(
    ("kind", "pages"),
    [("flat", 255), ("usual", 256), ("usual", 300), ("flat", 600), ("usual", 4095), ("flat", 4095)],
)
def test_contexts_beyond_what_int32_sums_hold_give_the_bytes_of_torch(
    kind: str, pages: int
) -> None:
    """Up to the longest context there is; `flat` makes every probability the largest."""
    config = _config(32, 1, 2, (0,))
    weights, tokens = _weights(config, kind, 6), _tokens(PAGES * PAGE, 6)
    order = random.Random(pages).choices(range(PAGES), k=pages)
    rows: list[Rows] = []
    for decoder in (_native(config, weights), _torch(config, weights)):
        cache = _long(decoder, tokens, order)
        start = pages * PAGE
        some = decoder.embed(tokens[:9])
        rows.append(decoder.forward(some, [Segment(cache, start, 9)]))
        last = decoder.forward(some[:1], [Segment(cache, start + 9, 1)])
        rows.append(last)
    assert np.array_equal(rows[0], rows[2])
    assert np.array_equal(rows[1], rows[3])


def test_sums_of_the_largest_digits_give_the_bytes_of_torch() -> None:
    """Every value is 32,767, and all weights but one are just below the largest: 0x0FFFxxxx."""
    config = structs.replace(
        _config(32, 1, 2, (0,)),
        qkv_bias=True,
        output_bias=False,
        rope=RopeConfig(theta="1e200"),  # all but the first pair never turn
    )
    weights = tiny_weights(config, seed=8)
    layer, embedding = weights.layer[0], weights.embedding
    assert layer.query_bias is not None
    assert layer.key_bias is not None
    assert layer.value_bias is not None
    assert embedding is not None
    for matrix in (layer.query, layer.value):
        matrix.multipliers[:] = 0
    layer.value_bias.values[:] = 32767
    for bias in (layer.query_bias, layer.key_bias):
        bias.values[:] = 1 << 20
        bias.values[::16] = 0
    # token 0 is zero, and token 1 makes every key a little longer
    embedding.values[:2], embedding.multipliers[:2] = 1, [[0], [30000]]
    layer.key.values[:], layer.key.multipliers[:] = 1, 1
    small = replace(layer.key, exponent=-18)
    weights = replace(weights, layer={0: replace(layer, key=small)})
    tokens, order = [1] + [0] * (PAGES * PAGE - 1), [0] + [1] * 599
    rows: list[Rows] = []
    for decoder in (_native(config, weights), _torch(config, weights)):
        cache = _long(decoder, tokens, order)
        rows.append(decoder.forward(decoder.embed([0] * 9), [Segment(cache, 600 * PAGE, 9)]))
    assert np.array_equal(*rows)
