"""A lie at any step, however it is defended, ends in the conviction of the liar."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny_weights import FAMILIES, tiny_weights
from tests.verification.fraud.dispute import (
    CHALLENGER,
    HOP,
    PROMPT,
    Answer,
    Splitter,
    answer_of,
    caught,
    changed,
    lying_holdings,
    one_element,
    play,
)
from unisono.models.weights import BlockWeights
from unisono.types import LayerRange
from unisono.verification.fraud.holdings import Holdings, Signed
from unisono.verification.fraud.parties import Challenger, Defender
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.trace import CellTrace, Grid, Material
from unisono.verification.fraud.tree import empty_root

MOST_MOVES = 40


def cells(answer: Answer) -> list[Cell]:
    last = answer.hop.stages - 1
    return [Cell(0, 5), Cell(1, 6), Cell(last, PROMPT + 2)]


def lies_are_caught(answer: Answer, cell: Cell, defender: type[Defender]) -> set[str]:
    found: set[str] = set()
    for number, tensor in enumerate(answer.hop.program(cell).tensors):
        if tensor.step is None:
            continue
        i = (7 * number + 3) % tensor.size
        lie = one_element(tensor.name, i, -1 if tensor.name == "top_k.bound" else 1)
        outcome = caught(answer, cell, lie, (cell, tensor.name), defender)
        assert outcome.conviction.node == HOP.node_id
        assert outcome.conviction.reason == "false_step"
        assert (outcome.conviction.cell, outcome.conviction.tensor) == (cell, tensor.name)
        assert outcome.conviction.element in (i, None)
        assert outcome.moves <= MOST_MOVES
        assert outcome.largest < 1024
        found.add(outcome.conviction.step)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lie_at_any_step_convicts_the_hop(family: str) -> None:
    answer = answer_of(family)
    for cell in cells(answer):
        assert lies_are_caught(answer, cell, Defender)


def test_a_lie_in_any_sum_is_caught_however_the_sum_is_split() -> None:
    answer = answer_of("gemma", hidden_size=320, mlp_size=544, vocabulary_size=700, positions=40)
    found: set[str] = set()
    for cell in (Cell(1, 38), Cell(3, 37)):
        found |= lies_are_caught(answer, cell, Splitter)
    summed = {"shift", "norm_inverse", "product", "score", "largest", "divisor", "mixed", "logit"}
    assert summed | {"count", "top_k", "mass", "nucleus", "winner", "value_exponent"} <= found


@pytest.mark.parametrize("layers", [(0, 1), (1, 2)])
def test_a_lie_in_a_part_of_the_model_is_caught(layers: tuple[int, int]) -> None:
    answer = answer_of("qwen2", layers=layers)
    for tensor in ("keys", "row"):
        outcome = caught(answer, Cell(1, 4), one_element(tensor, 1), None)
        assert outcome.conviction.node == HOP.node_id
        assert outcome.conviction.tensor == tensor


def test_other_rows_than_the_signed_ones_at_the_entry_are_caught() -> None:
    answer = answer_of("qwen3", layers=(1, 2))
    lie = one_element("row", 3)
    outcome = caught(answer, Cell(0, 6), lie, None)
    assert (outcome.conviction.node, outcome.conviction.step) == (HOP.node_id, "boundary")


def test_right_rows_in_a_trace_do_not_hide_wrong_ones_in_the_grid() -> None:
    answer = answer_of("qwen3", layers=(1, 2))
    for cell, name in ((Cell(0, 6), "row"), (Cell(1, 6), "row"), (Cell(1, 2), "values")):
        liar = lying_holdings(answer, cell, one_element(name, 3))
        liar._traces[cell] = answer.honest.trace(cell)
        challenger = Challenger(CHALLENGER, answer.honest)
        outcome = play(answer.game(), Defender(HOP, liar), challenger)
        assert outcome.conviction.node == HOP.node_id
        assert outcome.conviction.reason == "contradiction"


def test_a_signed_row_that_was_not_computed_is_caught() -> None:
    answer = answer_of("llama")
    honest = answer.honest.signed
    signed = Signed(honest.rows_in, changed(honest.rows_out, 4))
    liar = Holdings(answer.material, answer.honest.trees, signed, answer.honest.grid)
    challenger = Challenger(CHALLENGER, answer.honest, (Cell(3, 4), "sent"))
    outcome = play(answer.game(answer.subject(signed)), Defender(HOP, liar), challenger)
    assert (outcome.conviction.node, outcome.conviction.step) == (HOP.node_id, "boundary")


def test_a_token_that_did_not_win_is_caught() -> None:
    answer = answer_of("llama")
    other = (answer.tokens[0] + 1) % 50
    wrong = Answer(answer.material, answer.honest, answer.request, (other, *answer.tokens[1:]))
    cell = Cell(3, PROMPT - 1)
    # the liar's trace says that the token is right, and everything before it is
    challenger = Challenger(CHALLENGER, answer.honest, (cell, "chosen"))
    outcome = play(wrong.game(), Defender(HOP, answer.honest), challenger)
    assert (outcome.conviction.node, outcome.conviction.step) == (HOP.node_id, "chosen")


def other_weights(answer: Answer) -> Holdings:
    """A hop that computes with other weights throughout, and shows the model's when asked."""
    hop = answer.hop
    weights = tiny_weights(hop.config, seed=1)
    true = answer.material.weights
    mixed = BlockWeights(
        LayerRange(0, 2),
        {0: true.layer[0], 1: weights.layer[1]},
        true.embedding,
        true.final_norm,
        true.head,
    )
    material = Material(hop, mixed, answer.material.tokens)
    return Holdings(material, answer.honest.trees)


def test_other_weights_in_a_layer_are_caught_at_the_first_product() -> None:
    answer = answer_of("gemma")
    liar = other_weights(answer)
    challenger = Challenger(CHALLENGER, answer.honest)
    outcome = play(answer.game(answer.subject(liar.signed)), Defender(HOP, liar), challenger)
    assert outcome.conviction.node == HOP.node_id
    assert outcome.conviction.cell == Cell(2, 0)
    assert outcome.conviction.tensor in ("attention_norm", "query")


def test_another_prompt_is_caught_at_the_token() -> None:
    answer = answer_of("llama")
    tokens = answer.material.tokens
    material = Material(answer.hop, answer.material.weights, (1, *tokens[1:]))
    computed = Holdings(material, answer.honest.trees)
    signed = Signed(answer.honest.signed.rows_in, computed.signed.rows_out)
    liar = Holdings(material, answer.honest.trees, signed, computed.grid)
    challenger = Challenger(CHALLENGER, answer.honest)
    outcome = play(answer.game(answer.subject(signed)), Defender(HOP, liar), challenger)
    assert (outcome.conviction.node, outcome.conviction.cell) == (HOP.node_id, Cell(0, 0))


def test_a_cheaper_draft_in_place_of_the_last_layers_is_caught() -> None:
    answer = answer_of("llama")
    kept = dict(answer.honest.grid.kept)
    kept[2, "row"] = kept[1, "row"]
    liar = Holdings(answer.material, answer.honest.trees, None, Grid(answer.hop, kept))
    challenger = Challenger(CHALLENGER, answer.honest)
    outcome = play(answer.game(answer.subject(liar.signed)), Defender(HOP, liar), challenger)
    assert (outcome.conviction.node, outcome.conviction.cell) == (HOP.node_id, Cell(2, 0))


def test_hashes_where_a_tree_has_no_leaves_lead_nobody_astray() -> None:
    answer = answer_of("llama")
    grid = Grid(answer.hop, answer.honest.grid.kept)
    tree = grid._stages[0]
    spare = answer.hop.positions
    level = tree._levels[-1]
    level += [b"\1" * 32] * (spare + 1 - len(level))
    level[spare] = b"\1" * 32
    rebuilt = type(tree)(level)
    grid._stages[0] = rebuilt
    grid._top = type(tree)([t.root for t in grid._stages], empty_root(4))
    signed = Signed(answer.honest.signed.rows_in, changed(answer.honest.signed.rows_out, 4))
    liar = Holdings(answer.material, answer.honest.trees, signed, grid)
    challenger = Challenger(CHALLENGER, answer.honest, (Cell(3, 4), "sent"))
    outcome = play(answer.game(answer.subject(signed)), Defender(HOP, liar), challenger)
    assert (outcome.conviction.node, outcome.conviction.reason) == (HOP.node_id, "malformed")


def test_numbers_outside_the_proven_ranges_convict_whoever_shows_them() -> None:
    answer = answer_of("gemma")
    for tensor, delta in (("keys.turned", 1 << 62), ("divisor", -(1 << 40)), ("scores", 1 << 61)):
        for defender in (Defender, Splitter):
            cell = Cell(1, 6)
            value = answer.honest.trace(cell).values[tensor]
            if tensor == "divisor":
                delta = -int(value[0])
            given = {tensor: value + np.int64(0)}
            given[tensor][0] += delta
            liar = lying_holdings_with(answer, cell, given)
            challenger = Challenger(CHALLENGER, answer.honest, (cell, tensor))
            outcome = play(answer.game(), defender(HOP, liar), challenger)
            assert outcome.conviction.node == HOP.node_id


def lying_holdings_with(answer: Answer, cell: Cell, given: dict[str, np.ndarray]) -> Holdings:
    """A liar whose trace has these tensors and otherwise the true ones, and a grid that differs."""
    honest = answer.honest.trace(cell)
    row = honest.values["row"].copy()
    row[0] += 1
    values = {**honest.values, **given, "row": row}
    liar = lying_holdings(answer, cell, lambda _: {"row": row})
    liar._traces[cell] = CellTrace(honest.program, values)
    return liar
