"""Whatever a node does otherwise than the model, some cell shows it, and the verdict names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny_weights import FAMILIES
from tests.verification.light.answered import Answered, answered, caught
from unisono.models.weights import BlockWeights
from unisono.numerics.tensors import Matrix, Vector
from unisono.types import LayerRange
from unisono.verification.light.draw import Budget
from unisono.verification.light.steps import PRODUCTS, KeysValues, Scaled, Steps
from unisono.verification.light.trace import Trace

PROMPT = tuple((7 * i + 3) % 50 for i in range(11))
make = lru_cache(maxsize=None)(answered)


def honest(family: str = "gemma") -> Answered:
    return make(family, PROMPT, 4)


def altered(weights: BlockWeights, layer: int, name: str, change: Callable[[Any], Any]) -> Any:
    parts = replace(weights.layer[layer], **{name: change(getattr(weights.layer[layer], name))})
    return replace(weights, layer={**weights.layer, layer: parts})


def one_weight(matrix: Matrix) -> Matrix:
    values = matrix.values.copy()
    values[5, 17] += 1 if values[5, 17] < 100 else -1
    return replace(matrix, values=values)


def one_multiplier(matrix: Matrix) -> Matrix:
    multipliers = matrix.multipliers.copy()
    multipliers[3, 0] ^= 1
    return replace(matrix, multipliers=multipliers)


def four_bits(matrix: Matrix) -> Matrix:
    values = (np.round(matrix.values / 16) * 16).clip(-112, 112).astype(np.int8)
    return replace(matrix, values=values)


def one_value(vector: Vector) -> Vector:
    values = vector.values.copy()
    values[3] += 64
    return replace(vector, values=values)


@pytest.mark.parametrize("change", [one_weight, one_multiplier, four_bits])
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("layer", [0, 1])
def test_another_weight_is_caught_in_its_matrix(
    name: str, layer: int, change: Callable[[Any], Any]
) -> None:
    answer = honest()
    weights = altered(answer.weights, layer, name, change)
    caught(answer.audit(answer.trace(weights=weights)), name, layer)


@pytest.mark.parametrize("family", ["gemma", "qwen3"])
@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("attention_norm", "attention_norm"),
        ("query_norm", "rotary"),
        ("key_norm", "stored_key"),
        ("post_attention_norm", "attention_sum"),
        ("mlp_norm", "mlp_norm"),
        ("post_mlp_norm", "mlp_sum"),
    ],
)
def test_another_norm_weight_is_caught(family: str, name: str, operator: str) -> None:
    answer = honest(family)
    if getattr(answer.weights.layer[1], name) is None:
        return
    weights = altered(answer.weights, 1, name, one_value)
    caught(answer.audit(answer.trace(weights=weights)), operator, 1)


@pytest.mark.parametrize(
    ("family", "name", "operator"),
    [
        ("qwen2", "query_bias", "rotary"),
        ("qwen2", "key_bias", "stored_key"),
        ("qwen2", "value_bias", "stored_value"),
        ("llama", "output_bias", "attention_sum"),
        ("llama", "gate_bias", "activation"),
        ("llama", "up_bias", "activation"),
        ("llama", "down_bias", "mlp_sum"),
    ],
)
def test_another_bias_is_caught(family: str, name: str, operator: str) -> None:
    answer = honest(family)
    weights = altered(answer.weights, 0, name, lambda v: replace(v, values=v.values + (1 << 18)))
    caught(answer.audit(answer.trace(weights=weights)), operator, 0)


def off_by_one(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[7] += torch.where(x.view(-1)[7] > 0, -1, 1)
    return x


class Lie(Steps):
    """Lies in layer 1 only."""

    @property
    def lying(self) -> bool:
        return self.index == 1


class WrongAttentionNorm(Lie):
    def attention_norm(self, rows: Tensor) -> Scaled:
        out, exponent = super().attention_norm(rows)
        return (off_by_one(out) if self.lying else out), exponent


class WrongExponent(Lie):
    def attention_norm(self, rows: Tensor) -> Scaled:
        out, exponent = super().attention_norm(rows)
        return out, exponent + self.lying


class WrongMlpNorm(Lie):
    def mlp_norm(self, rows: Tensor) -> Scaled:
        out, exponent = super().mlp_norm(rows)
        return (off_by_one(out) if self.lying else out), exponent


class WrongRotaryPosition(Lie):
    def rotary(self, name: str, x: Scaled, start: int) -> Scaled:
        return super().rotary(name, x, start + (self.lying and name == "query"))


class WrongKeyPosition(Lie):
    def rotary(self, name: str, x: Scaled, start: int) -> Scaled:
        return super().rotary(name, x, start + (self.lying and name == "key"))


class WrongValue(Lie):
    def stored_value(self, x: Scaled) -> Scaled:
        out, exponent = super().stored_value(x)
        return (off_by_one(out) if self.lying else out), exponent


class WrongAttention(Lie):
    def attention(self, queries: Scaled, held: KeysValues, start: int, first: int) -> Scaled:
        out, exponent = super().attention(queries, held, start, first)
        return (off_by_one(out) if self.lying else out), exponent


class TruncatedAttention(Lie):
    """Attends to the last two positions only."""

    def attention(self, queries: Scaled, held: KeysValues, start: int, first: int) -> Scaled:
        self.window = 2 if self.lying else self.window
        try:
            return super().attention(queries, held, start, first)
        finally:
            self.window = self.config.windows[self.index]


class WrongSum(Lie):
    def attention_sum(self, rows: Tensor, x: Scaled) -> Tensor:
        out = super().attention_sum(rows, x)
        return off_by_one(out) if self.lying else out


class WrongActivation(Lie):
    def activation(self, gate: Scaled, up: Scaled) -> Scaled:
        kind = {"silu": "gelu_tanh", "gelu_tanh": "silu"}[self.config.activation]
        kept = self.config
        if self.lying:
            self.config = msgspec.structs.replace(kept, activation=kind)
        try:
            return super().activation(gate, up)
        finally:
            self.config = kept


class WrongRowOut(Lie):
    def mlp_sum(self, rows: Tensor, x: Scaled) -> Tensor:
        out = super().mlp_sum(rows, x)
        return off_by_one(out) if self.lying else out


class NoMlp(Lie):
    def mlp_sum(self, rows: Tensor, x: Scaled) -> Tensor:
        return rows if self.lying else super().mlp_sum(rows, x)


LIES: dict[type[Lie], str] = {
    WrongAttentionNorm: "attention_norm",
    WrongExponent: "attention_norm",
    WrongMlpNorm: "mlp_norm",
    WrongRotaryPosition: "rotary",
    WrongKeyPosition: "stored_key",
    WrongValue: "stored_value",
    WrongAttention: "attention",
    TruncatedAttention: "attention",
    WrongSum: "attention_sum",
    WrongActivation: "activation",
    WrongRowOut: "mlp_sum",
    NoMlp: "mlp_sum",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_one_operator_is_caught_there(family: str, lie: type[Lie]) -> None:
    answer = honest(family)
    caught(answer.audit(answer.trace(steps=lie)), LIES[lie], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_column_of_a_hop_shows_a_lie_that_all_positions_share(family: str) -> None:
    answer = honest(family)
    trace = answer.trace(steps=WrongRowOut)
    for seed in range(5):
        budget = Budget(columns=1, samples=0, heads=0)
        verdict = answer.audit(trace, budget, seed=seed)
        if verdict.verdict == "VALID":  # the element that is off is of position 0 alone
            continue
        caught(verdict, "mlp_sum", 1)
    weights = altered(answer.weights, 1, "gate", four_bits)
    for seed in range(5):
        verdict = answer.audit(answer.trace(weights=weights), Budget(heads=0), seed=seed)
        caught(verdict, "gate", 1)


class Skipped(Steps):
    """Passes rows on: a layer that is left out."""

    def run(self, rows: Tensor, *rest: Any) -> Tensor:
        out = super().run(rows, *rest)
        return rows if self.index == 1 else out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_is_left_out_is_caught(family: str) -> None:
    answer = honest(family)
    verdict = answer.audit(answer.trace(steps=Skipped), Budget(heads=0))
    caught(verdict, "mlp_sum", 1)


def test_a_key_that_belongs_to_another_row_is_caught_by_a_sample() -> None:
    """The column that is checked is honest but for a key and value of one earlier position."""
    answer = honest("llama")

    class Forged(Steps):
        def _stored(self, *given: Any) -> KeysValues:
            held = super()._stored(*given)
            if self.index == 0 and len(held.keys) > 1:
                held.keys[4, 0, 3] += 1
            return held

    trace = answer.trace(steps=Forged)
    column = Budget(columns=1, samples=0, heads=0)
    named = {answer.audit(trace, column, seed=seed).verdict for seed in range(12)}
    assert "VALID" in named  # without samples most positions look right
    verdicts = [answer.audit(trace, Budget(1, 0, 13, 0), seed=seed) for seed in range(12)]
    for verdict in verdicts:
        if verdict.verdict == "VALID":  # the position drawn does not see position 4
            continue
        caught(verdict, "stored_key", 0)
        assert verdict.fault is not None
        assert verdict.fault.position == 4
    assert sum(v.verdict == "INVALID" for v in verdicts) >= 5


def test_rows_in_other_than_those_claimed_are_caught() -> None:
    answer = honest("llama")
    block = LayerRange(1, 2)
    before = Trace(answer.config, answer.block(0, 1), [*PROMPT, *answer.tokens[:-1]])
    other = before.out.copy()
    other[6, 3] += 1
    trace = Trace(answer.config, answer.block(1, 2), other)
    claimed = answer.receipt(trace, rows_in=before.rows_out)
    caught(answer.audit(trace, receipt=claimed), "row_in", 1)
    assert answer.audit(answer.trace(block)).verdict == "VALID"


def test_another_prompt_is_caught() -> None:
    answer = honest("qwen3")
    trace = Trace(answer.config, answer.weights, [*PROMPT[:-1], 0, *answer.tokens[:-1]])
    verdict = answer.audit(trace, receipt=answer.receipt(trace))
    assert verdict.verdict == "INVALID"
    assert verdict.operator in ("row_in", "embedding")
    assert verdict.fault is not None
    assert verdict.fault.position == len(PROMPT) - 1


def test_rows_out_other_than_those_computed_are_caught() -> None:
    answer = honest("yarn")
    trace = answer.trace()
    claimed = answer.receipt(trace, rows_out=answer.trace(LayerRange(0, 1)).rows_out)
    caught(answer.audit(trace, receipt=claimed), "row_out", 1)


def test_an_embedding_that_is_not_the_models_is_caught() -> None:
    answer = honest("gemma")
    assert answer.weights.embedding is not None
    values = answer.weights.embedding.values.copy()
    values[PROMPT[0], 2] ^= 1
    weights = replace(answer.weights, embedding=replace(answer.weights.embedding, values=values))
    caught(answer.audit(answer.trace(weights=weights)), "embedding", 0)


def test_another_output_matrix_norm_or_token_is_caught() -> None:
    answer = honest("qwen3")
    assert answer.weights.head is not None
    assert answer.weights.final_norm is not None
    heads = Budget(columns=0, samples=0, heads=9)
    head = replace(answer.weights, head=one_weight(answer.weights.head))
    caught(answer.audit(answer.trace(weights=head), heads), "head", 1)
    norm = replace(answer.weights, final_norm=one_value(answer.weights.final_norm))
    caught(answer.audit(answer.trace(weights=norm), heads), "final_norm", 1)
    last = (answer.tokens[-1] + 1) % 50
    other = replace(answer, tokens=(*answer.tokens[:-1], last))
    verdict = other.audit(other.trace(), heads)
    caught(verdict, "sampling", 1)
    assert verdict.fault is not None
    assert verdict.fault.kind == "sampling"
