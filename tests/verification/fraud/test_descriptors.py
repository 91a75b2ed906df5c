"""A descriptor says all that a contract must know of a step, and says it one way."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_weights import FAMILIES, tiny_config, tiny_weights
from tests.verification.fraud.dispute import EVERYTHING, elements, manifest_of
from tests.verification.fraud.reading import READ, plain, read, words
from unisono.merkle import leaf_hash, node_hash
from unisono.models.manifest import Manifest
from unisono.types import Q16, LayerRange, Sampling
from unisono.verification.fraud import attention_steps as attention
from unisono.verification.fraud import layer_steps as layer
from unisono.verification.fraud.descriptors import (
    CHOICE,
    Descriptors,
    descriptors,
    variant_of,
)
from unisono.verification.fraud.parameters import KINDS, Names, parameters
from unisono.verification.fraud.program import HopProgram, Program, Tensor
from unisono.verification.fraud.steps import Cell, Exponent, Ref, Rows, Step, WeightRef

SAMPLINGS = (
    Sampling(),
    EVERYTHING,
    Sampling(temperature=40000, seed=3),
    Sampling(temperature=Q16, top_k=7),
    Sampling(temperature=Q16, top_k=50),  # as many as there are tokens: filters nothing
    Sampling(temperature=Q16, top_p=30000, frequency_penalty=-5),
    Sampling(top_k=7, top_p=30000),  # greedy: filters are not asked
    Sampling(repetition_penalty=40000, logit_bias=((3, 500),)),
)


@cache
def manifest(family: str, **changes: Any) -> Manifest:
    config = tiny_config(family, **changes)
    return manifest_of(config, tiny_weights(config))


@cache
def compiled(family: str) -> Descriptors:
    return descriptors(manifest(family))


@st.composite
def places(draw: st.DrawFn) -> tuple[str, HopProgram, Cell]:
    family = draw(st.sampled_from(sorted(FAMILIES)))
    layers = draw(st.sampled_from(((0, 2), (0, 1), (1, 2))))
    prompt = draw(st.integers(1, 12))
    positions = prompt + draw(st.integers(0, 5))
    sampling = draw(st.sampled_from(SAMPLINGS))
    hop = HopProgram(manifest(family), LayerRange(*layers), prompt, positions, sampling)
    stage = draw(st.integers(0, hop.stages - 1))
    position = draw(st.integers(0, positions - 1) | st.just(positions - 1))
    return family, hop, Cell(stage, position)


@settings(max_examples=120, deadline=None)
@given(places())
def test_a_cell_is_what_its_descriptors_say(where: tuple[str, HopProgram, Cell]) -> None:
    family, hop, cell = where
    made, program, variant = compiled(family), hop.program(cell), variant_of(hop, cell)
    layered = 0 < cell.stage < hop.stages - 1
    window = hop.config.windows[hop.layer_of(cell.stage)] if layered else 0
    kept = [program.index[name] for name in program.kept]
    assert words(made.header(variant)) == [0, variant, window, len(program.tensors), *kept]
    for place, tensor in enumerate(program.tensors):
        found, inputs = read(hop, cell, place, made.tensor(variant, place))
        expected = tensor if tensor.step is None else replace(tensor, step=plain(tensor.step))
        assert found == expected
        assert_inputs_cover(hop, program, tensor, inputs)


def test_every_step_type_can_be_read_back() -> None:
    assert set(READ) == set(KINDS)
    assert sorted(KINDS.values()) == list(range(1, 1 + len(KINDS)))


def assert_inputs_cover(
    hop: HopProgram, program: Program, tensor: Tensor, inputs: list[int]
) -> None:
    """Every tensor of the own cell that an element reads is among the inputs, with its shape."""
    known: dict[int, tuple[int, int]] = {}
    for packed in inputs:
        place, width, a, b = (packed >> at & 0xFFFFFFFF for at in (0, 16, 32, 64))
        size = a + (b * hop.seen(program.cell).count if b else 0)
        known[place & 0xFFFF] = width & 0xFFFF, size
    assert list(known) == sorted(known)
    assert len(known) == len(inputs) <= 16
    for place, shape in known.items():
        assert shape == (int(program.tensors[place].format[1]), program.tensors[place].size)
    step = tensor.step
    if step is None:
        return
    for i in elements(tensor.size, 3, 0):
        sources = step.fixed(i)
        if step.length(i):
            fixed = [[0]] * len(sources)
            sources += step.terms(i, 0, min(step.chunk, step.length(i)), fixed)
        read = {x.tensor for x in sources if isinstance(x, Ref) and x.cell is None}
        assert {program.index[name] for name in read} <= set(known)
        assert len({x.tensor for x in sources if isinstance(x, WeightRef)}) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_leaf_is_under_the_root(family: str) -> None:
    made = compiled(family)
    assert sorted(made.places.values()) == list(range(len(made.payloads)))
    assert len(set(made.payloads)) == len(made.payloads)
    for key, place in made.places.items():
        leaf = made._leaf(*key)
        node, at = leaf_hash(leaf.payload), leaf.place
        assert leaf.place == place
        assert tuple(words(leaf)[: len(key)]) == key
        for sibling in leaf.path:
            node = node_hash(sibling, node) if at & 1 else node_hash(node, sibling)
            at >>= 1
        assert (node, at) == (made.root, 0)


def test_the_model_leaf_has_what_places_variants() -> None:
    c = manifest("llama").config
    expected = [3, c.layer_count, c.hidden_size, c.kv_head_count, c.head_size, c.vocabulary_size]
    assert words(compiled("llama").model()) == expected


def test_everyone_makes_the_same_program() -> None:
    sent = msgspec.json.decode(msgspec.json.encode(manifest("gemma")), type=Manifest)
    assert descriptors(sent).root == compiled("gemma").root
    roots = {compiled(family).root for family in FAMILIES}
    assert len(roots) == len(FAMILIES)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_epsilon": "0.00001"},
        {"windows": (3, 4)},
        {"activation": "silu"},
        {"query_scalar": 32},
        {"scale_embedding": False},
        {"vocabulary_size": 51},
    ],
)
def test_another_configuration_is_another_program(changes: dict[str, Any]) -> None:
    assert descriptors(manifest("gemma", **changes)).root != compiled("gemma").root


def test_other_weights_are_another_program() -> None:
    config = tiny_config("gemma")
    other = manifest_of(config, tiny_weights(config, seed=1))
    assert descriptors(other).root != compiled("gemma").root


def test_a_model_of_one_layer_and_one_token_compiles() -> None:
    made = descriptors(manifest("llama", layer_count=1, windows=(0,), vocabulary_size=1))
    assert words(made.header(CHOICE | 2 | 8))[:2] == [0, CHOICE | 2 | 8]
    with pytest.raises(KeyError):
        made.header(CHOICE | 2 | 4)
    with pytest.raises(KeyError):
        made.header(1)


def test_what_no_contract_could_judge_is_refused() -> None:
    names = Names({"row": 0, "keys": 1, "x": 2}, 0, frozenset())
    earlier = Rows("keys", 1, 32, Exponent(0), Cell(1, 0))
    with pytest.raises(ValueError, match="only 'row'"):
        parameters(layer.Requantise(earlier, "x", 15), names)
    with pytest.raises(KeyError):
        parameters(layer.Requantise(Rows("gone", 1, 32, Exponent(0)), "x", 15), names)
    with pytest.raises(ValueError, match="320"):
        parameters(attention.Rotation(0, (1,) * 400, 1), names)
    with pytest.raises(ValueError, match="no form"):
        parameters(Step(), names)
