from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.numerics.drawn import long_rows, many, rules, some
from tests.tiny_weights import tiny_config, tiny_weights
from unisono.errors import UnisonoError
from unisono.models.decoder import Choice, Draw
from unisono.models.native_decoder import NativeDecoder, choice_of, native_draw
from unisono.models.torch_decoder import TorchDecoder
from unisono.native import operators
from unisono.numerics import sampling, scalar
from unisono.types import Q16, LayerRange, Sampling

VOCABULARIES = st.sampled_from([50, 51, 64, 333, 1000, 3000])
TOPS = st.sampled_from([-1, -1, 0, 1, 5, 32])


def _draw(rule: Sampling, known: list[int], prompt: int, top: int = -1) -> Draw:
    return Draw(rule, np.array(known, dtype=np.int32), prompt, top)


def _chosen(logits: NDArray[np.int64], draw: Draw, position: int) -> Choice:
    kept: list[Any] = []
    native = native_draw(draw, 0, position, kept)
    operators.choose(logits, native)
    return choice_of(native)


def _specified(logits: list[int], draw: Draw, position: int) -> Choice:
    known = draw.tokens.tolist()
    prompt, answer = known[: draw.prompt], known[draw.prompt :]
    token = scalar.choose(logits, draw.sampling, prompt, answer, position)
    if draw.top_logprobs < 0:
        return Choice(token)
    best = scalar.likeliest(logits, draw.top_logprobs)
    logprob, *others = scalar.log_probabilities(logits, [token, *best])
    return Choice(token, logprob, tuple(zip(best, others, strict=True)))


def _by_torch(logits: NDArray[np.int64], draw: Draw, position: int) -> Choice:
    known, scores = draw.tokens.tolist(), torch.from_numpy(logits)
    prompt, answer = known[: draw.prompt], known[draw.prompt :]
    token = sampling.choose(scores, draw.sampling, prompt, answer, position)
    if draw.top_logprobs < 0:
        return Choice(token)
    best = sampling.likeliest(scores, draw.top_logprobs).tolist() if draw.top_logprobs else []
    ids = torch.tensor([token, *best])
    logprob, *others = sampling.log_probabilities(scores, ids).tolist()
    return Choice(token, logprob, tuple(zip(best, others, strict=True)))


@st.composite
def draws(draw: st.DrawFn, vocabulary: int) -> Draw:
    """A rule and the tokens before it, some of them many times."""
    token = st.integers(0, vocabulary - 1)
    prompt = draw(st.lists(token, max_size=6)) * draw(st.sampled_from([1, 1, 40]))
    answer = draw(st.lists(token, max_size=6)) * draw(st.sampled_from([1, 1, 40]))
    return _draw(draw(rules(vocabulary)), prompt + answer, len(prompt), draw(TOPS))


@many
@given(st.data(), VOCABULARIES, st.sampled_from([2, 16, 18, 20, 22, 40]))
def test_choosing_equals_the_specification_and_the_torch_form(
    data: st.DataObject, vocabulary: int, bits: int
) -> None:
    logits = data.draw(long_rows(bits, vocabulary))
    draw, position = data.draw(draws(vocabulary)), data.draw(st.integers(0, (1 << 18) - 1))
    got = _chosen(np.array(logits), draw, position)
    assert got == _specified(logits, draw, position)
    assert got == _by_torch(np.array(logits), draw, position)


@pytest.mark.parametrize("top_p", [Q16 // 2, Q16 - Q16 // 50, Q16 - 1])
@pytest.mark.parametrize("spread", [0, Q16 // 8, 2 * Q16])
def test_nuclei_of_many_tokens_equal_the_specification(top_p: int, spread: int) -> None:
    generator = np.random.default_rng(top_p + spread)
    logits = generator.integers(-spread, spread + 1, 3000)
    for seed in range(4):
        rule = Sampling(temperature=Q16, top_p=top_p, top_k=(0, 1500)[seed % 2], seed=seed)
        draw = _draw(rule, [], 0)
        assert _chosen(logits, draw, 3) == _specified(logits.tolist(), draw, 3)


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_a_nucleus_ends_where_it_reaches_p_exactly(kept: int) -> None:
    logits = np.full(60, -40 * Q16)
    logits[[7, 20, 33, 59]] = 0
    rule = Sampling(temperature=Q16, top_p=kept * Q16 // 4, seed=3)
    drawn = {_chosen(logits, _draw(rule, [], 0), position).token for position in range(100)}
    assert drawn == set([7, 20, 33, 59][:kept])


LARGE_RULES = [
    Sampling(),
    Sampling(temperature=Q16, seed=1),
    Sampling(temperature=Q16 // 4, seed=2),
    Sampling(temperature=(1 << 31) - 1, seed=3),
    Sampling(temperature=Q16, top_k=40, top_p=Q16 - Q16 // 20, min_p=Q16 // 50, seed=4),
    Sampling(temperature=2 * Q16, top_k=100_000, seed=5),
    Sampling(temperature=2 * Q16, top_p=Q16 - Q16 // 50, seed=6),
    Sampling(temperature=Q16, min_p=Q16 // 100, seed=7),
    Sampling(temperature=Q16, repetition_penalty=Q16 * 13 // 10, presence_penalty=Q16, seed=8),
    Sampling(frequency_penalty=5 * Q16, logit_bias=((7, 90 * Q16), (262143, 91 * Q16))),
]


@pytest.mark.parametrize("rule", LARGE_RULES, ids=range(len(LARGE_RULES)))
def test_choosing_from_the_largest_vocabulary_equals_the_torch_form(rule: Sampling) -> None:
    generator = np.random.default_rng(rule.seed)
    logits = (generator.normal(size=262144) * 3 * Q16).astype(np.int64)
    known = [*generator.integers(0, 262144, 500).tolist(), *logits.argsort()[-200:].tolist()]
    draw = _draw(rule, known, 300, 20)
    assert _chosen(logits, draw, 4000) == _by_torch(logits, draw, 4000)


def test_choosing_from_the_largest_vocabulary_equals_the_specification() -> None:
    generator = np.random.default_rng(9)
    logits = (generator.normal(size=262144) * 5 * Q16).astype(np.int64)
    rule = Sampling(temperature=Q16, top_k=200, top_p=Q16 - Q16 // 10, seed=10)
    draw = _draw(rule, [5, 5, 262143], 1, 5)
    assert _chosen(logits, draw, 77) == _specified(logits.tolist(), draw, 77)


def _gumbel(token: int, position: int, seed: int) -> int:
    uniform = 2 * scalar.philox(token, position, seed) + 1
    exponential = max(1, (33 << 38) - scalar.log2_fixed(uniform))
    return scalar.round_shift((38 << 38) - scalar.log2_fixed(exponential), 22)


def test_the_lower_id_wins_where_noise_makes_two_tokens_equal() -> None:
    """Also where a filter has put the higher one first."""
    distances = {(below * 94548 + (1 << 15)) >> 16: below for below in range(5 * Q16)}
    tied = 0
    for seed in range(30):
        noise = [_gumbel(token, 9, seed) for token in range(50)]
        order = sorted(range(50), key=lambda token: noise[token])
        best, others = order[-1], [i for i in order[:-1] if i > order[-1]]
        for other in others[-3:]:
            below = distances.get(noise[best] - noise[other])
            if below is None:  # not every distance is one of base 2
                continue
            logits = np.full(50, -6 * Q16)
            logits[best], logits[other] = -below, 0
            rule = Sampling(temperature=Q16, top_p=Q16 - 1, seed=seed)
            assert _chosen(logits, _draw(rule, [], 0), 9) == Choice(best)
            assert _specified(logits.tolist(), _draw(rule, [], 0), 9) == Choice(best)
            tied += 1
    assert tied > 10


def test_choosing_leaves_the_logits_of_the_caller_alone() -> None:
    logits = np.arange(100) << 16
    kept = logits.copy()
    _chosen(logits, _draw(Sampling(repetition_penalty=2 * Q16, presence_penalty=Q16), [99], 0), 0)
    assert np.array_equal(logits, kept)


def _vocabulary_decoders(size: int, threads: int) -> tuple[NativeDecoder, TorchDecoder]:
    """Decoders whose output rows come several times, so that the best logits are equal."""
    config = tiny_config("qwen3", vocabulary_size=size, layer_count=1, windows=(0,))
    weights = tiny_weights(config, seed=size)
    head = weights.head
    assert head is not None
    for part in (head.values, head.multipliers):
        part[size // 3 : 2 * (size // 3)] = part[: size // 3]
    native = NativeDecoder(config, weights, threads=threads, kv_bytes=1 << 20)
    return native, TorchDecoder(config, weights, kv_bytes=1 << 20)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("rows", [1, 12])
def test_the_lowest_of_equal_ids_is_chosen_whichever_thread_saw_it_first(rows: int) -> None:
    config = tiny_config("qwen3", vocabulary_size=4000, layer_count=1, windows=(0,))
    weights = tiny_weights(config, seed=1)
    assert weights.head is not None
    for part in (weights.head.values, weights.head.multipliers):
        part[:500] = 0  # the first thread begins with these
        part[500:] = np.resize(part[500:600], part[500:].shape)
    decoder = NativeDecoder(config, weights, threads=3, kv_bytes=1 << 20)
    given = np.random.default_rng(2).integers(-(1 << 30), 1 << 30, (rows, config.hidden_size))
    expected = [Choice(int(i)) for i in decoder.logits(given).argmax(-1)]
    assert all(500 <= choice.token < 600 for choice in expected)
    asked = [(r, 5, _draw(Sampling(), [], 0)) for r in range(rows)]
    for _ in range(100):
        assert decoder.choose(given, asked) == expected


@pytest.mark.usefixtures("form")
def test_no_token_beyond_the_vocabulary_is_chosen_where_all_logits_are_negative() -> None:
    config = tiny_config("qwen3", vocabulary_size=51, layer_count=1, windows=(0,))
    weights = tiny_weights(config, seed=1)
    assert weights.head is not None
    np.minimum(weights.head.values, -1, out=weights.head.values)
    decoder = NativeDecoder(config, weights, threads=2, kv_bytes=1 << 20)
    given = np.random.default_rng(3).integers(1 << 20, 1 << 30, (12, config.hidden_size))
    logits = decoder.logits(given)
    assert logits.max() < 0
    asked = [(r, 5, _draw(Sampling(), [], 0)) for r in range(12)]
    assert decoder.choose(given, asked) == [Choice(int(i)) for i in logits.argmax(-1)]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("size", "threads"), [(50, 1), (63, 3), (1000, 2), (3001, 3)])
def test_a_decoder_chooses_for_many_rows_at_once_as_for_each_alone(size: int, threads: int) -> None:
    """Greedy choices without log probabilities take the largest logit on their way past."""
    native, plain = _vocabulary_decoders(size, threads)
    generator = np.random.default_rng(size)
    rows = generator.integers(-(1 << 30), 1 << 30, (40, native.config.hidden_size))
    rows[3], rows[4] = rows[2], 0
    logits = native.logits(rows)
    assert np.array_equal(logits, plain.logits(rows))
    greedy = [_draw(Sampling(), [1, 2], 1)]
    others = [
        _draw(Sampling(temperature=Q16, seed=3), [1, 2], 1),
        _draw(Sampling(), [1, 2], 1, 5),
        _draw(Sampling(repetition_penalty=2 * Q16), logits.argmax(-1).tolist(), 0),
        _draw(Sampling(repetition_penalty=2 * Q16), logits.argmax(-1).tolist(), 40),
        _draw(Sampling(presence_penalty=2 * Q16), logits.argmax(-1).tolist(), 3),
        _draw(Sampling(frequency_penalty=2 * Q16), logits.argmax(-1).tolist(), 40),
        _draw(Sampling(logit_bias=((size - 1, 1 << 30),)), [], 0),
        _draw(Sampling(repetition_penalty=2 * Q16, presence_penalty=Q16), [], 0),
    ]
    for count, rules_of in ((1, greedy), (8, others), (9, greedy), (33, greedy + others)):
        which = generator.integers(0, 40, count).tolist()
        asked = [(r, 100 + i, rules_of[i % len(rules_of)]) for i, r in enumerate(which)]
        expected = [_specified(logits[r].tolist(), draw, at) for r, at, draw in asked]
        assert native.choose(rows, asked) == expected
        assert plain.choose(rows, asked) == expected
    asked = [(r, 5, greedy[0]) for r in range(40)]  # more than are scored at once
    expected = [Choice(row.index(max(row))) for row in logits.tolist()]
    assert native.choose(rows, asked) == expected
    assert plain.choose(rows, asked) == expected


def test_a_block_without_the_output_matrix_chooses_no_token() -> None:
    config = tiny_config("llama")
    weights = tiny_weights(config, layers=LayerRange(0, 1))
    decoder = NativeDecoder(config, weights, threads=1, kv_bytes=1 << 20)
    rows = np.zeros((1, 32), dtype=np.int64)
    with pytest.raises(UnisonoError, match="layers 0:1 do not hold the output matrix"):
        decoder.choose(rows, [(0, 0, _draw(Sampling(), [], 0))])


@some
@given(st.sampled_from([-1, 50, 1 << 31, -(1 << 40)]), st.integers(0, 3))
def test_ids_outside_the_vocabulary_are_not_embedded(wrong: int, at: int) -> None:
    config = tiny_config("llama")
    decoder = NativeDecoder(config, tiny_weights(config), threads=1, kv_bytes=1 << 20)
    ids = [1, 2, 49]
    ids.insert(at, wrong)
    with pytest.raises(UnisonoError, match="leave the vocabulary"):
        decoder.embed(ids)
