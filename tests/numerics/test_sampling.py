import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.numerics.drawn import integers, many, rows, rules, some, tensor
from unisono.numerics import sampling, scalar
from unisono.types import Q16, Sampling


def logits_of(*values: float) -> torch.Tensor:
    return tensor([round(v * Q16) for v in values])


@many
@given(integers(49).map(lambda x: abs(x) + 1))
def test_the_logarithm_equals_the_specification(x: int) -> None:
    assert sampling.log2_fixed(tensor([x])).tolist() == [scalar.log2_fixed(x)]


def test_the_logarithm_never_falls_and_its_error_is_below_2_to_the_minus_26() -> None:
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(1, 50, (3000,), generator=generator)
    x = (torch.rand(3000, generator=generator, dtype=torch.float64) * 2.0**bits).long() + 1
    x = torch.cat([torch.arange(1, 2000), x]).sort().values
    got = sampling.log2_fixed(x)
    assert bool((got.diff() >= 0).all())
    with mpmath.workprec(100):
        worst = max(
            abs(mpmath.mpf(a) / 2**38 - mpmath.log(b, 2))
            for a, b in zip(got.tolist(), x.tolist(), strict=True)
        )
    assert worst < 2**-26


@many
@given(st.data(), st.integers(1, 12))
def test_choosing_equals_the_specification(data: st.DataObject, vocabulary: int) -> None:
    bits = data.draw(st.sampled_from([2, 18, 22, 40]))
    logits = data.draw(rows(bits, vocabulary, vocabulary))
    rule = data.draw(rules(vocabulary))
    token = st.integers(0, vocabulary - 1)
    prompt, generated = (
        data.draw(st.lists(token, max_size=4)),
        data.draw(st.lists(token, max_size=4)),
    )
    position = data.draw(st.integers(0, (1 << 18) - 1))
    adjusted = sampling.adjust(tensor(logits), rule, prompt, generated)
    assert adjusted.tolist() == scalar.adjust(logits, rule, prompt, generated)
    chosen = sampling.choose(tensor(logits), rule, prompt, generated, position)
    assert chosen == scalar.choose(logits, rule, prompt, generated, position)


@pytest.mark.parametrize("top_p", [Q16 // 2, Q16 - Q16 // 50, Q16 - 1])
@pytest.mark.parametrize("spread", [0, Q16 // 8, 2 * Q16])
def test_choosing_from_a_large_vocabulary_equals_the_specification(top_p: int, spread: int) -> None:
    generator = torch.Generator().manual_seed(top_p + spread)
    logits = torch.randint(-spread, spread + 1, (3000,), generator=generator)
    for seed in range(4):
        rule = Sampling(temperature=Q16, top_p=top_p, top_k=(0, 1500)[seed % 2], seed=seed)
        expected = scalar.choose(logits.tolist(), rule, [], [], 3)
        assert sampling.choose(logits, rule, [], [], 3) == expected


@some
@given(rows(40, 1, 30))
def test_log_probabilities_and_rankings_equal_the_specification(logits: list[int]) -> None:
    ids = list(range(len(logits)))
    got = sampling.log_probabilities(tensor(logits), tensor(ids)).tolist()
    assert got == scalar.log_probabilities(logits, ids)
    for count in (1, len(logits)):
        assert sampling.likeliest(tensor(logits), count).tolist() == scalar.likeliest(logits, count)


def test_log_probabilities_are_close_to_real_ones() -> None:
    generator = torch.Generator().manual_seed(4)
    real = torch.randn(5000, generator=generator, dtype=torch.float64) * 3
    logits = (real * Q16).round().long()
    got = sampling.log_probabilities(logits, torch.arange(5000)).double() / Q16
    want = (logits.double() / Q16).log_softmax(-1)
    # log2(e) and ln 2 with 16 fraction bits are off by 7.1e-6 and 1.5e-6 per unit, the distance
    # and the result are rounded to 16 fraction bits, each probability to 28
    far = float((logits.max() - logits).max()) / Q16
    bound = far * 7.1e-6 + float(want.abs().max()) * 3e-6 + 2.0**-15 + 5000 * 2.0**-29
    assert float((got - want).abs().max()) < bound
    assert bound < 5e-4


def test_greedy_choice_takes_the_lowest_id_among_equals() -> None:
    logits = logits_of(1, 5, 3, 5, 5)
    assert sampling.choose(logits, Sampling(), [], [], 0) == 1


def test_rankings_break_ties_by_id() -> None:
    assert sampling.likeliest(logits_of(2, 7, 2, 7, 0), 4).tolist() == [1, 3, 0, 2]


def _drawn_set(logits: torch.Tensor, **fields: int) -> set[int]:
    rule = Sampling(**{"temperature": Q16, "seed": 11, **fields})
    return {sampling.choose(logits, rule, [], [], position) for position in range(80)}


def test_top_k_keeps_the_k_best_with_ties_to_lower_ids() -> None:
    logits = logits_of(0, 0.1, 0.1, 0.1, 0, 0.2)
    assert _drawn_set(logits, top_k=1) == {5}
    assert _drawn_set(logits, top_k=3) == {1, 2, 5}
    assert _drawn_set(logits, top_k=6) == {0, 1, 2, 3, 4, 5}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = logits_of(math.log(0.1), math.log(0.5), math.log(0.25), math.log(0.15))
    assert _drawn_set(logits, top_p=round(0.45 * Q16)) == {1}
    assert _drawn_set(logits, top_p=round(0.55 * Q16)) == {1, 2}
    assert _drawn_set(logits, top_p=round(0.85 * Q16)) == {1, 2, 3}
    assert _drawn_set(logits, top_p=round(0.95 * Q16)) == {0, 1, 2, 3}
    assert _drawn_set(logits, top_p=0) == {1}


def test_top_p_counts_only_what_top_k_left() -> None:
    logits = logits_of(math.log(0.4), math.log(0.3), math.log(0.2), math.log(0.1))
    assert _drawn_set(logits, top_p=round(0.55 * Q16)) == {0, 1}
    assert _drawn_set(logits, top_k=2, top_p=round(0.55 * Q16)) == {0}


def test_min_p_is_relative_to_the_likeliest_token() -> None:
    logits = logits_of(math.log(0.5), math.log(0.3), math.log(0.12), math.log(0.08))
    assert _drawn_set(logits, min_p=Q16) == {0}
    assert _drawn_set(logits, min_p=Q16 // 2) == {0, 1}
    assert _drawn_set(logits, min_p=Q16 // 5) == {0, 1, 2}


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    logits = logits_of(1, 0)
    assert _drawn_set(logits, temperature=Q16 // 50) == {0}
    rule = Sampling(temperature=100 * Q16, seed=3)
    ones = sum(scalar.choose(logits.tolist(), rule, [], [], i) for i in range(400))
    assert 140 < ones < 260


def test_a_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    rule = Sampling(repetition_penalty=2 * Q16)
    out = sampling.adjust(logits_of(4, -3, 4, -3, 0), rule, [0], [1, 1])
    assert out.tolist() == logits_of(2, -6, 4, -3, 0).tolist()


def test_presence_counts_once_and_frequency_every_time_in_the_answer_only() -> None:
    rule = Sampling(presence_penalty=Q16, frequency_penalty=Q16 // 2)
    out = sampling.adjust(logits_of(9, 9, 9, 9), rule, [3, 3], [1, 2, 2, 2])
    assert out.tolist() == logits_of(9, 7.5, 6.5, 9).tolist()


def test_a_bias_is_added_to_its_token() -> None:
    rule = Sampling(logit_bias=((1, 5 * Q16), (2, -Q16)))
    logits = logits_of(3, 0, 4)
    assert sampling.adjust(logits, rule, [], []).tolist() == logits_of(3, 5, 3).tolist()
    assert sampling.choose(logits, rule, [], [], 0) == 1


def test_adjusting_leaves_the_logits_of_the_caller_alone() -> None:
    logits = logits_of(3, 0, 4)
    rule = Sampling(repetition_penalty=2 * Q16, presence_penalty=Q16, logit_bias=((0, Q16),))
    sampling.adjust(logits, rule, [0], [2])
    assert logits.tolist() == logits_of(3, 0, 4).tolist()


@pytest.mark.parametrize(
    ("fields", "odds"),
    [
        ({}, (0.35, 0.05, 0.2, 0.1, 0.02, 0.08, 0.17, 0.03)),
        ({"temperature": 2 * Q16}, (0.35, 0.05, 0.2, 0.1, 0.02, 0.08, 0.17, 0.03)),
        ({"top_k": 3}, (0.35, 0, 0.2, 0, 0, 0, 0.17, 0)),
    ],
    ids=["plain", "temperature 2", "top 3"],
)
def test_tokens_come_as_often_as_softmax_says(
    fields: dict[str, int], odds: tuple[float, ...]
) -> None:
    logits = logits_of(*(math.log(p or 0.01) for p in odds)).tolist()
    rule = Sampling(**{"temperature": Q16, "seed": 2026, **fields})
    power = Q16 / rule.temperature
    weights = [p**power if p else 0.0 for p in odds]
    draws = 3000
    counts = [0] * len(odds)
    for position in range(draws):
        counts[scalar.choose(logits, rule, [], [], position)] += 1
    expected = [draws * w / sum(weights) for w in weights]
    assert all(c == 0 for c, e in zip(counts, expected, strict=True) if e == 0)
    square = sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True) if e)
    assert square < 24.3  # chi-square, 7 degrees of freedom: once in a thousand seeds


def test_seeds_and_positions_draw_independently() -> None:
    logits = logits_of(0, 0).tolist()
    draws = [
        [scalar.choose(logits, Sampling(temperature=Q16, seed=s), [], [], i) for i in range(400)]
        for s in (1, 2)
    ]
    both = sum(a == b for a, b in zip(*draws, strict=True))
    assert 150 < both < 250
    assert 150 < sum(draws[0]) < 250


def test_the_same_seed_and_position_choose_the_same_token() -> None:
    logits = torch.randint(0, Q16, (50,), generator=torch.Generator().manual_seed(0))
    rule = Sampling(temperature=Q16, seed=(1 << 63) - 1)
    chosen = {sampling.choose(logits, rule, [], [], 41) for _ in range(5)}
    assert len(chosen) == 1
