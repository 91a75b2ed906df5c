"""Several models as one: the vectorised form equals the specification."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.numerics.drawn import many, rows, rules, some
from unisono.numerics import ensemble, scalar
from unisono.numerics.ensemble import choose_jointly, distribution
from unisono.numerics.scalar import ensemble as specified
from unisono.types import Q16, Distribution, Sampling


@many
@given(st.data(), st.integers(1, 12))
def test_a_distribution_equals_the_specification(data: st.DataObject, vocabulary: int) -> None:
    bits = data.draw(st.sampled_from([2, 18, 22, 40]))
    logits = data.draw(rows(bits, vocabulary, vocabulary))
    rule = data.draw(rules(vocabulary))
    token = st.integers(0, vocabulary - 1)
    prompt, answer = (data.draw(st.lists(token, max_size=4)) for _ in range(2))
    found = distribution(np.array(logits, dtype=np.int64), rule, prompt, answer)
    assert found == specified.distribution(logits, rule, prompt, answer)


@pytest.mark.parametrize("spread", [0, Q16 // 8, 6 * Q16, 400 * Q16])
def test_a_distribution_lists_the_likeliest_and_counts_the_rest(spread: int) -> None:
    logits = np.random.default_rng(spread).integers(-spread, spread + 1, 3000)
    found = distribution(logits, Sampling(), (), ())
    assert found == specified.distribution(logits.tolist(), Sampling(), (), ())
    assert len(found.ids) <= specified.LISTED
    assert found.likelihoods[0] == 1 << 28
    assert list(found.likelihoods) == sorted(found.likelihoods, reverse=True)
    assert found.ids[0] == int(np.argmax(logits))
    assert (found.rest > 0) == (spread < 400 * Q16)


@st.composite
def _drawn(draw: st.DrawFn) -> Distribution:
    ids = draw(st.lists(st.integers(0, 40), min_size=1, max_size=20, unique=True))
    likelihoods = draw(
        st.lists(st.integers(1, 1 << 28), min_size=len(ids) - 1, max_size=len(ids) - 1)
    )
    ordered = (1 << 28, *sorted(likelihoods, reverse=True))
    return Distribution(tuple(ids), ordered, draw(st.integers(0, 1 << 46)))


@many
@given(st.lists(_drawn(), min_size=1, max_size=8), rules(41), st.integers(0, (1 << 18) - 1))
def test_the_joint_choice_equals_the_specification(
    said: list[Distribution], rule: Sampling, position: int
) -> None:
    found = choose_jointly(said, rule, position)
    assert found == specified.choose_jointly(said, rule, position)
    assert found == choose_jointly(said[::-1], rule, position)


@some
@given(st.lists(st.integers(1, (1 << 50) - 1), min_size=1, max_size=50))
def test_the_logarithm_equals_the_specification(x: list[int]) -> None:
    found = ensemble._log2(np.array(x, dtype=np.int64))
    assert found.tolist() == [scalar.log2_fixed(each) for each in x]


def test_an_ensemble_takes_what_both_find_likely_before_what_one_finds_likeliest() -> None:
    one = Distribution((1, 2, 3), (1 << 28, (1 << 28) * 9 // 10, 1), 0)
    other = Distribution((3, 2, 1), (1 << 28, (1 << 28) * 9 // 10, 1), 0)
    assert choose_jointly([one, other], Sampling(), 0) == 2
    assert choose_jointly([one], Sampling(), 0) == 1
    assert choose_jointly([other], Sampling(), 0) == 3


def test_one_model_alone_is_drawn_from_as_it_draws_itself() -> None:
    logits = np.random.default_rng(3).integers(-4 * Q16, 4 * Q16, 200)
    same = 0
    for seed in range(100):
        rule = Sampling(temperature=Q16, seed=seed)
        joint = choose_jointly([distribution(logits, rule, (), ())], rule, 7)
        same += joint == scalar.choose(logits.tolist(), rule, (), (), 7)
    assert same >= 98  # the shares are rounded, and so are their logarithms


def test_filters_are_those_of_the_mean() -> None:
    one = Distribution((5, 6, 7), (1 << 28, 1 << 27, 1 << 26), 0)
    hot = 4 * Q16
    drawn = {
        name: {
            choose_jointly([one, one], Sampling(temperature=hot, seed=seed, **filters), 0)
            for seed in range(64)
        }
        for name, filters in {
            "none": {},
            "top_k": {"top_k": 1},
            "top_p": {"top_p": Q16 // 2},
            "min_p": {"min_p": Q16 // 2},
        }.items()
    }
    assert drawn == {"none": {5, 6, 7}, "top_k": {5}, "top_p": {5}, "min_p": {5, 6}}
