"""Step types compute what the vectorised operators do, and there is one for each operator."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scalar_decoder import ScalarDecoder
from tests.tiny_weights import FAMILIES, tiny_config, tiny_weights
from tests.verification.fraud.dispute import (
    EVERYTHING,
    GREEDY,
    PROMPT,
    answer_of,
    elements,
    evaluate,
)
from unisono.numerics import scalar
from unisono.types import Q16, Sampling
from unisono.verification.fraud.operators import (
    BINDING,
    NOT_SIGNED,
    OPERATORS,
    PARTS,
    step_types,
)
from unisono.verification.fraud.regeneration import FILL
from unisono.verification.fraud.steps import CHUNK, FEW, MAX_MACS, SPLIT, Cell

SAMPLINGS = {
    "everything": EVERYTHING,
    "greedy": GREEDY,
    "plain": Sampling(temperature=40000, seed=3),
    "top-k": Sampling(temperature=Q16, top_k=7, seed=1),
    "top-p": Sampling(temperature=Q16, top_p=30000, seed=2),
    "penalties": Sampling(repetition_penalty=40000, frequency_penalty=-500),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_what_its_steps_compute(family: str) -> None:
    answer = answer_of(family)
    game, hop = answer.game(), answer.hop
    for stage, position in ((0, 3), (1, 0), (1, 6), (2, 8), (3, 1), (3, PROMPT + 2)):
        cell = Cell(stage, position)
        trace = answer.honest.trace(cell)
        for number, tensor in enumerate(hop.program(cell).tensors):
            if tensor.step is None:
                continue
            for i in elements(tensor.size, 12, number):
                value = int(trace.values[tensor.name][i])
                assert evaluate(answer.honest, game, cell, tensor.name, i, value) == value


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_choice_of_a_token_is_what_its_steps_compute(name: str) -> None:
    answer = answer_of("llama", SAMPLINGS[name])
    game = answer.game()
    for position in (PROMPT - 1, PROMPT + 3):
        cell = Cell(3, position)
        trace = answer.honest.trace(cell)
        for tensor in answer.hop.program(cell).tensors:
            for i in range(min(tensor.size, 50)):
                value = int(trace.values[tensor.name][i])
                assert evaluate(answer.honest, game, cell, tensor.name, i, value) == value


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_agrees_with_the_specification_of_the_decoder(family: str) -> None:
    answer = answer_of(family)
    config = answer.hop.config
    decoder = ScalarDecoder(config, tiny_weights(config))
    tokens = answer.material.tokens
    for position in range(answer.hop.positions):
        row, logits = decoder.step(tokens[position])
        assert answer.honest.grid.kept[2, "row"][position].tolist() == row
        cell = Cell(3, position)
        if position >= PROMPT - 1:
            assert answer.honest.trace(cell).values["logits"].tolist() == logits
            before = tokens[PROMPT : position + 1]
            chosen = scalar.choose(logits, EVERYTHING, tokens[:PROMPT], before, position + 1)
            assert chosen == tokens[position + 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_grid_holds_what_traces_hold(family: str) -> None:
    answer = answer_of(family)
    grid = answer.honest.grid
    for stage in range(answer.hop.stages):
        for position in range(answer.hop.positions):
            trace = answer.honest.trace(Cell(stage, position))
            for name in trace.program.kept:
                kept = grid.tensor(Cell(stage, position), name)
                assert trace.values[name].tolist() == kept.tolist()


def test_every_operator_that_the_decoder_uses_has_step_types(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: set[str] = set()

    def watched(name: str) -> Any:
        function = getattr(scalar, name)

        def call(*arguments: Any) -> Any:
            used.add(name)
            return function(*arguments)

        return call

    functions = {n for n in scalar.__all__ if callable(getattr(scalar, n)) and n.islower()}
    for name in functions:
        monkeypatch.setattr(scalar, name, watched(name))
    for family in FAMILIES:
        config = tiny_config(family)
        decoder = ScalarDecoder(config, tiny_weights(config))
        _, logits = decoder.step(3)
        scalar.choose(logits, EVERYTHING, [3], [], 1)
    assert used <= set(OPERATORS)
    assert {"embed", "attend", "gated", "choose"} <= used
    assert functions == {*OPERATORS, *NOT_SIGNED, *PARTS}


def test_every_step_type_judges_some_operator_and_occurs_in_some_program() -> None:
    known = step_types()
    named = {kind for kinds in OPERATORS.values() for kind in kinds} | set(BINDING)
    assert named == set(known)
    occur: set[str] = set()
    for family in FAMILIES:
        for layers in ((0, 2), (1, 2)):
            hop = answer_of(family, layers=layers).hop
            for stage in range(hop.stages):
                tensors = hop.program(Cell(stage, hop.positions - 1)).tensors
                occur |= {type(t.step).kind for t in tensors if t.step is not None}
    assert occur == set(known)


def test_every_step_type_is_regenerated_and_small() -> None:
    assert set(FILL) == set(step_types().values())
    assert all(kind.chunk <= CHUNK <= MAX_MACS for kind in step_types().values())
    assert max(FEW, SPLIT) <= CHUNK
