"""A liar for every kind of step."""

from __future__ import annotations

import pytest

from tests.verification.fraud.dispute import CHALLENGER, HOP, answer_of, play
from unisono.errors import ConfigurationError
from unisono.verification.adversaries.lying import ALIASES, kinds_of, lie_at, lying_holdings
from unisono.verification.fraud.operators import OPERATORS, step_types
from unisono.verification.fraud.parties import Challenger, Defender


def test_operators_steps_and_words_name_steps() -> None:
    assert kinds_of("softmax") == ("probability",)
    assert kinds_of("attend") == OPERATORS["attend"]
    assert kinds_of("winner") == ("winner",)
    assert set(kinds_of("all")) == set(step_types())
    assert all(set(kinds_of(name)) <= set(step_types()) for name in (*OPERATORS, *ALIASES))
    with pytest.raises(ConfigurationError, match="choose one of"):
        kinds_of("nonsense")


@pytest.mark.parametrize("kind", ["probability", "mass", "embed"])
def test_a_lie_at_a_step_is_judged_there(kind: str) -> None:
    answer = answer_of("llama")
    lie = lie_at(answer.hop, kind)
    assert lie is not None
    liar = lying_holdings(answer.honest, lie.cell, lie.altered)
    honest = Challenger(CHALLENGER, answer.honest, (lie.cell, lie.tensor))
    outcome = play(answer.game(), Defender(HOP, liar), honest)
    assert (outcome.conviction.party, outcome.conviction.step) == ("defender", kind)


def test_a_model_without_a_step_has_no_lie_there() -> None:
    assert lie_at(answer_of("gemma").hop, "bias") is None
