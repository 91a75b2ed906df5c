"""A step's constants as a list of integers: the form in which a contract knows a program.

First come the parts of constant width, in the order of the step's fields, with the tensors that a
step names by itself behind them; then the parts of any length: lists, and the exponents that the
step reads, as (constant, count, then tensor and whether one per group, each). Tensors are their
places among the cell's; -1 is none. What follows from the place of a cell or from the request
(position, prompt, sampling) is no constant and is left out.

A row of the stage before is that stage's last kept tensor, under the place that it has where the
stage is a layer. A width that may grow with what is seen is a pair (a, b) for a + b · seen. A step
reads at most one weight tensor: where a parameter names one, there is a 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from unisono.verification.fraud import attention_steps as attention
from unisono.verification.fraud import layer_steps as layer
from unisono.verification.fraud import sampling_steps as choice
from unisono.verification.fraud.operators import step_types
from unisono.verification.fraud.steps import Exponent, Rows, Step

MAX_PARAMETERS = 320
"""Of one step: the largest has a frequency per two elements of a head."""
MAX_INPUTS = 16
"""Tensors that one step reads."""
ROW_BEFORE = 4
"""The place of the row among the tensors that a layer keeps."""
NONE = -1

KINDS: Mapping[str, int] = {name: 1 + i for i, name in enumerate(sorted(step_types()))}
"""Name of a step type → its number; 0 is a tensor without a step."""

_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
_SIDES = {"in": 0, "out": 1}


@dataclass(frozen=True, slots=True)
class Names:
    """What the integers refer to, and what is known of the cell's layer."""

    tensors: Mapping[str, int]
    """Place of each tensor of the cell."""
    window: int
    """Positions that the layer sees at most; 0 is all."""
    grow: frozenset[str]
    """Tensors of the cell whose rows have an element per position that is seen."""


class Parameters(NamedTuple):
    """What a descriptor says of a step."""

    values: tuple[int, ...]
    inputs: frozenset[str]
    """Tensors of the own cell that an element may depend on."""
    weight: str
    """The weight tensor that it may depend on; empty if none."""


@dataclass(slots=True)
class _Writer:
    names: Names
    head: list[int] = field(default_factory=list[int])
    tail: list[int] = field(default_factory=list[int])
    inputs: set[str] = field(default_factory=set[str])
    used: str = ""

    def numbers(self, *values: int) -> None:
        self.head += values

    def place(self, name: str) -> int:
        self.inputs.add(name)
        return self.names.tensors[name]

    def tensors(self, *names: str) -> None:
        self.head += [self.place(name) if name else NONE for name in names]

    def weight(self, name: str) -> None:
        self.used = name
        self.head.append(0)

    def rows(self, rows: Rows) -> None:
        if rows.cell is None:
            place = self.place(rows.tensor)
        elif rows.tensor == "row":
            place = ROW_BEFORE
        else:
            raise ValueError(f"a step reads '{rows.tensor}' of an earlier stage: only 'row' can be")
        self.head += [place, rows.groups, rows.width, int(rows.cell is not None)]

    def exponent(self, exponent: Exponent) -> None:
        self.tail += [exponent.constant, len(exponent.parts)]
        for name, each in exponent.parts:
            self.tail += [self.place(name), int(each)]

    def list(self, values: tuple[int, ...]) -> None:
        self.tail += [len(values), *values]

    def seen(self, seen: attention.Seen) -> None:
        self.head += [self.names.window, seen.heads, seen.kv_heads, seen.size]


def parameters(step: Step, names: Names) -> Parameters:
    """The constants of a step, and what it reads.

    Raises:
        ValueError: the step has no such form.
        KeyError: it names what does not exist.
    """
    writer = _Writer(names)
    if not (_layer(writer, step) or _attention(writer, step) or _choice(writer, step)):
        raise ValueError(f"steps '{step.kind}' have no form for a contract")
    values = (*writer.head, *writer.tail)
    if len(values) > MAX_PARAMETERS or len(writer.inputs) > MAX_INPUTS:
        raise ValueError(
            f"a step '{step.kind}' has {len(values)} constants and {len(writer.inputs)} inputs: "
            f"at most {MAX_PARAMETERS} and {MAX_INPUTS} are expected"
        )
    return Parameters(values, frozenset(writer.inputs), writer.used)


def _layer(w: _Writer, step: Step) -> bool:
    """Write a step that acts on whole rows. False: it is another."""
    match step:
        case layer.Shift(rows, bits, after, after_bits):
            w.rows(rows)
            w.numbers(bits)
            w.tensors(after)
            w.numbers(after_bits)
        case layer.Requantise(rows, shift, bits):
            w.rows(rows)
            w.tensors(shift)
            w.numbers(bits)
        case layer.ExponentSum(exponent, least):
            w.numbers(int(least is not None), least or 0)
            w.exponent(exponent)
        case layer.NormInverse(rows, shift, copy, epsilon):
            w.rows(rows)
            w.tensors(shift, copy)
            w.numbers(*epsilon)
            w.exponent(rows.exponent)
        case layer.NormElement(rows, shift, copy, inverse, weight):
            w.rows(rows)
            w.tensors(shift, copy, inverse)
            w.weight(weight)
        case layer.Logit(rows, matrix, exponent):
            w.rows(rows)
            w.weight(matrix)
            w.exponent(exponent)
        case layer.Product(rows, matrix):
            w.rows(rows)
            w.weight(matrix)
        case layer.Bias(product, common, exponent, bias, bias_exponent):
            w.tensors(product, common)
            w.weight(bias)
            w.numbers(bias_exponent)
            w.exponent(exponent)
        case layer.Gate(rows, shift, activation):
            w.rows(rows)
            w.tensors(shift)
            w.numbers(_ACTIVATIONS[activation])
            w.exponent(rows.exponent)
        case layer.Gated(left, left_shift, right, right_shift):
            w.rows(left)
            w.tensors(left_shift)
            w.rows(right)
            w.tensors(right_shift)
        case layer.Add(residual, rows):
            w.rows(residual)
            w.rows(rows)
            w.exponent(rows.exponent)
        case layer.Token():
            pass
        case layer.Embed(token, exponent, scale):
            w.tensors(token)
            w.numbers(exponent, *scale)
            w.weight("embedding")
        case layer.Boundary(row, side):
            here = row.cell is None
            w.numbers(w.place(row.tensor) if here else ROW_BEFORE)
            w.numbers(int(not here), _SIDES[side])
        case _:
            return False
    return True


def _attention(w: _Writer, step: Step) -> bool:
    """Write a step of rotary embedding or attention. False: it is another."""
    match step:
        case attention.Rotation(_, frequencies, factor):
            w.numbers(factor)
            w.list(frequencies)
        case attention.Turn(rows, shift, rotation):
            w.rows(rows)
            w.tensors(shift, rotation)
        case attention.Score(seen, scale):
            w.seen(seen)
            w.numbers(*scale)
            w.tensors("queries", "queries.exponent", "keys", "keys.exponent")
        case attention.Largest(tensor, width):
            w.tensors(tensor)
            w.numbers(*((0, 1) if tensor in w.names.grow else (width, 0)))
        case attention.LargestValueExponent(seen):
            w.seen(seen)
            w.tensors("values.exponent")
        case attention.Probability(seen):
            w.seen(seen)
            w.tensors("scores", "top")
        case attention.Weight(seen):
            w.seen(seen)
            w.tensors("probabilities", "highest", "values.exponent")
        case attention.Divisor(seen):
            w.seen(seen)
            w.tensors("probabilities")
        case attention.Mixed(seen):
            w.seen(seen)
            w.tensors("divisor", "weights", "values")
        case attention.Attended(size):
            w.numbers(size)
            w.tensors("mixed", "common", "highest")
        case _:
            return False
    return True


def _choice(w: _Writer, step: Step) -> bool:
    """Write a step of choosing a token. False: it is another."""
    match step:
        case choice.Count(start):
            w.numbers(int(start > 0))
        case choice.Adjust(_, counted):
            w.numbers(int(counted))
            w.tensors("logits", *(("seen", "repeats") if counted else ("", "")))
        case choice.Distance():
            w.tensors("adjusted", "best")
        case choice.Likelihood() | choice.RankKey():
            w.tensors("below")
        case choice.TopK(vocabulary):
            w.numbers(vocabulary)
            w.tensors("keys")
        case choice.Mass(vocabulary, bounded):
            w.numbers(vocabulary, int(bounded))
            w.tensors("top_k.bound" if bounded else "", "likelihoods", "keys")
        case choice.Nucleus(vocabulary, bounded):
            w.numbers(vocabulary, int(bounded))
            w.tensors("nucleus.mass", "top_k.bound" if bounded else "", "likelihoods", "keys")
        case choice.Noisy(_, _, _, bounds):
            w.tensors("below", "likelihoods", "keys")
            w.list(tuple(w.place(name) for name in bounds))
        case choice.Winner(tensor, vocabulary):
            w.tensors(tensor)
            w.numbers(vocabulary)
        case choice.Chosen():
            w.tensors("winner")
        case _:
            return False
    return True
