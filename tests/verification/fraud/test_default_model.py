"""Disputes about the default model: at most 40 moves of less than 1 KB, whatever is in dispute."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verification.fraud.dispute import (
    EVERYTHING,
    HOP,
    Answer,
    Splitter,
    caught,
    one_element,
)
from unisono.models.catalog import DEFAULT_MODEL
from unisono.models.loading import load_block
from unisono.models.store import ModelStore
from unisono.models.tokenizer import Tokenizer
from unisono.types import GenerationRequest, LayerRange
from unisono.verification.fraud.holdings import Holdings, WeightTrees
from unisono.verification.fraud.moves import LEVELS, MAX_MOVE, room
from unisono.verification.fraud.operators import step_types
from unisono.verification.fraud.program import HopProgram, Program, Tensor
from unisono.verification.fraud.referee import Layout, parts_of
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.trace import Material
from unisono.verification.fraud.tree import depth_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROSE = (Path(__file__).parents[3] / "LICENSE").read_text()
PROMPT, POSITIONS = 610, 620
NOT_HERE = {"bias", "boundary", "chosen"}
"""The model has no biases; a lie at a boundary needs another claim (`test_lies`)."""
MOST_MOVES = 40


@pytest.fixture(scope="module")
def answer() -> Answer:
    model = ModelStore().ensure(DEFAULT_MODEL)
    tokens = Tokenizer.from_files(model.tokenizer_files()).encode(PROSE)[: POSITIONS + 1]
    weights = load_block(model, LayerRange(0, model.layer_count))
    hop = HopProgram(
        model.manifest, LayerRange(0, model.layer_count), PROMPT, POSITIONS, EVERYTHING
    )
    material = Material(hop, weights, tuple(tokens))
    answer = tuple(tokens[PROMPT:])
    request = GenerationRequest(
        model.manifest.model_id, tuple(tokens[:PROMPT]), len(answer), EVERYTHING
    )
    return Answer(material, Holdings(material, WeightTrees(weights)), request, answer)


def test_every_lie_is_caught_in_few_small_moves(answer: Answer) -> None:
    found: set[str] = set()
    # layer 5 sees every position, layer 6 a window
    for cell in (Cell(0, 600), Cell(6, 615), Cell(7, 615), Cell(19, 612)):
        for number, tensor in enumerate(answer.hop.program(cell).tensors):
            if tensor.step is None or tensor.name in ("sent", "chosen"):
                continue
            i = (7919 * number + 101) % tensor.size
            lie = one_element(tensor.name, i, -1 if tensor.name == "top_k.bound" else 1)
            outcome = caught(answer, cell, lie, (cell, tensor.name), Splitter)
            assert outcome.conviction.node == HOP.node_id
            assert outcome.conviction.tensor == tensor.name
            assert outcome.moves <= MOST_MOVES
            assert outcome.largest <= MAX_MOVE
            found.add(outcome.conviction.step)
    assert found == set(step_types()) - NOT_HERE


def test_no_game_has_more_than_forty_moves_however_long_the_context() -> None:
    model = ModelStore().ensure(DEFAULT_MODEL)
    config = model.manifest.config
    positions = config.context_length
    hop = HopProgram(model.manifest, LayerRange(0, config.layer_count), 1, positions, EVERYTHING)
    layout = Layout(hop, (0,) * (positions + 1))
    most = 0
    for stage in (0, 6, 7, 19):
        program = hop.program(Cell(stage, positions - 1))
        for tensor in program.tensors:
            if tensor.step is not None:
                most = max(most, moves_about(hop, layout, program, tensor))
    assert 30 <= most <= MOST_MOVES


def descent(depth: int) -> int:
    return 2 * -(-depth // LEVELS)


def moves_about(hop: HopProgram, layout: Layout, program: Program, tensor: Tensor) -> int:
    """At most so many moves until an element of a tensor is judged, no two leaves in one move."""
    step = tensor.step
    assert step is not None
    i = tensor.size - 1
    count = 1 + descent(hop.cell_depth) + 1 + descent(depth_of(len(program.tensors)))
    count += descent(depth_of(tensor.block_count)) + 1 + (tensor.size > 1)
    length, fixed = step.length(i), step.fixed(i)
    span = (0, length)
    while span[1] - span[0] > step.chunk:
        count += 2
        span = parts_of(*span, step.chunk)[0]
    sources = fixed + (step.terms(i, *span, ((0,),) * len(fixed)) if length else ())
    slots = {slot for source in sources for slot in layout.slots(program, source)}
    if step.kind == "boundary":  # the leaves of one row share their paths
        room_for_leaves = room() - 400
        return count + 2 + -(-sum(slot.size for slot in slots) // room_for_leaves)
    for slot in slots:
        count += 1 if slot.size + 32 * slot.depth + 32 <= room() else 2
    return count
