"""The referee of steps on rows agrees with the step types, about honest numbers and others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.settlement.conftest import Compiled
from tests.settlement.evm import Contract, Evm, account
from tests.settlement.referees import Judged, Place, deploy_table, little_endian, said
from tests.tiny_weights import FAMILIES
from tests.verification.fraud.dispute import Answer, answer_of, elements
from unisono.verification.fraud import layer_steps
from unisono.verification.fraud.operators import step_types
from unisono.verification.fraud.parameters import Names
from unisono.verification.fraud.program import Tensor
from unisono.verification.fraud.referee import Layout
from unisono.verification.fraud.steps import Cell, Source, Step, Values

KINDS = sorted(
    kind
    for kind, step in step_types().items()
    if step.__module__ == layer_steps.__name__ and kind != "boundary"
)
FEW = ("llama", (0, 2)), ("gemma", (1, 2))
"""Hops whose programs have every step type here, with every switch of it."""
CELLS = Cell(0, 3), Cell(1, 4), Cell(2, 8), Cell(3, 7)
"""The first two of a hop's stages, and later ones: rows before are an entry's or a layer's."""


@pytest.fixture(scope="module")
def referee(compiled: Compiled) -> Contract:
    evm = Evm()
    return evm.deploy(compiled("steps_rows"), account(1), deploy_table(evm, "exponentials"))


@dataclass(frozen=True, repr=False)
class Sample:
    """A tensor of some cell of some model."""

    answer: Answer
    layout: Layout
    cell: Cell
    tensor: Tensor
    names: Names

    @property
    def step(self) -> Step:
        assert self.tensor.step is not None
        return self.tensor.step

    def judged(self, contract: Contract) -> Judged:
        hop = self.answer.hop
        place = Place(*self.cell, hop.prompt, hop.positions, 0, hop.sampling)
        return Judged(contract, self.step, self.names, place)

    def honest(self, sources: tuple[Source, ...]) -> list[list[int]]:
        values = self.answer.honest.values(self.layout, self.cell, sources)
        return [list(x) for x in values]


def samples(family: str, layers: tuple[int, int]) -> Iterator[Sample]:
    answer = answer_of(family, layers=layers)
    layout = answer.game().layout
    for cell in CELLS:
        if cell.stage >= answer.hop.stages:
            continue
        program = answer.hop.program(cell)
        names = Names(program.index, 0, frozenset())
        for tensor in program.tensors:
            if tensor.step is not None and tensor.step.kind in KINDS:
                yield Sample(answer, layout, cell, tensor, names)


@pytest.fixture(scope="module")
def by_kind() -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
    for family, layers in FEW:
        for sample in samples(family, layers):
            found[sample.step.kind].append(sample)
    assert all(found.values())
    return found


def opened(step: Step, terms: Values) -> bytes:
    """The terms as their leaves have them."""
    if isinstance(step, layer_steps.Product | layer_steps.Embed):
        *rows, weights = terms
        count = 1 if isinstance(step, layer_steps.Embed) else len(rows[0])
        out = b"".join(little_endian(row, 2) for row in rows)
        out += little_endian(weights[:count], 1)
        return out + b"".join(x.to_bytes(2, "little") for x in weights[count:])
    return little_endian(terms[0], 8)


def agrees_about_partial(
    judged: Judged, i: int, value: int, span: tuple[int, int], fixed: Values, terms: Values
) -> None:
    expected = said(judged.step.partial, i, value, *span, fixed, terms)
    assert judged.partial(i, value, *span, fixed, opened(judged.step, terms)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_honest_elements_are_what_the_referee_computes(referee: Contract, family: str) -> None:
    for number, sample in enumerate((*samples(family, (0, 2)), *samples(family, (1, 2)))):
        step, judged = sample.step, sample.judged(referee)
        values = sample.answer.honest.trace(sample.cell).values[sample.tensor.name]
        for i in elements(sample.tensor.size, 3, number)[-2:]:
            value = int(values[i])
            judged.reads_agree(i)
            fixed = sample.honest(step.fixed(i))
            length, total = step.length(i), ()
            if length:
                parts = []
                for start in range(0, length, step.chunk):
                    span = start, min(length, start + step.chunk)
                    judged.terms_agree(i, *span, fixed)
                    terms = sample.honest(step.terms(i, *span, fixed))
                    agrees_about_partial(judged, i, value, span, fixed, terms)
                    parts.append(step.partial(i, value, *span, fixed, terms))
                total = step.combine(parts)
            assert judged.finish(i, value, total, fixed) == value


LIMIT = 1 << 63
edges = st.builds(
    lambda power, near, sign: max(-LIMIT, min(LIMIT - 1, sign * ((1 << power) + near))),
    st.integers(0, 63),
    st.integers(-2, 2),
    st.sampled_from((1, -1)),
)
anything = edges | st.integers(-LIMIT, LIMIT - 1) | st.integers(-3, 70)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_numbers_are_judged_alike(
    referee: Contract, by_kind: dict[str, list[Sample]], kind: str, data: st.DataObject
) -> None:
    sample = data.draw(st.sampled_from(by_kind[kind]))
    step, judged = sample.step, sample.judged(referee)
    i = data.draw(st.integers(0, sample.tensor.size - 1))
    judged.reads_agree(i)
    honest = sample.honest(step.fixed(i))
    fixed = [[data.draw(st.sampled_from((x, x, x + 1)) | anything)] for (x,) in honest]
    if kind == "norm":
        fixed[4] = [max(-(1 << 31), min((1 << 31) - 1, fixed[4][0]))]
    judged.finish_agrees(i, 0, (data.draw(anything | edges.map(lambda x: x << 40)),), fixed)
    length = step.length(i)
    if not length:
        return
    start = data.draw(st.integers(0, (length - 1) // step.chunk)) * step.chunk
    span = start, min(length, start + step.chunk)
    judged.terms_agree(i, *span, honest)
    terms = sample.honest(step.terms(i, *span, honest))
    agrees_about_partial(judged, i, 0, span, fixed, terms)
    changed(terms, step, Random(data.draw(st.integers(0, 1 << 32))))
    agrees_about_partial(judged, i, 0, span, fixed, terms)


def changed(terms: list[list[int]], step: Step, random: Random) -> None:
    """Put numbers of any size that fits in the places of some, mostly."""
    if not isinstance(step, layer_steps.Product | layer_steps.Embed):
        limit = 1 << random.choice((20, 45, 61, 62, 63))
        extremes = -limit, limit - 1, 0
        for k, x in enumerate(terms[0]):
            other = random.choice((-x, random.randrange(-limit, limit), *extremes))
            terms[0][k] = max(-(1 << 63), min((1 << 63) - 1, random.choice((x, other))))
        return
    *rows, weights = terms
    for row in rows:
        row[:] = [random.choice((x, -x, 32767, -32767)) for x in row]
        if random.random() < 0.3:
            row[random.randrange(len(row))] = -32768
    count = len(rows[0]) if rows else 1
    weights[:count] = [random.choice((x, -128, 127, -1)) for x in weights[:count]]
    weights[count:] = [random.choice((x, 0, 65535)) for x in weights[count:]]


POWERS = 40, 43, 47, 52, 53, 60, 61, 62
"""Magnitudes at which something saturates or a proof ends."""


@pytest.mark.parametrize("kind", KINDS)
def test_operands_at_the_edge_are_judged_alike(
    referee: Contract, by_kind: dict[str, list[Sample]], kind: str
) -> None:
    sample = by_kind[kind][-1]
    step, judged = sample.step, sample.judged(referee)
    fixed = sample.honest(step.fixed(0))
    if kind == "bias":
        fixed[1] = [sum(x[0] for x in fixed[3:]) + step.exponent.constant]  # type: ignore[attr-defined]
    for power in POWERS:
        for edge in ((1 << power) - 1, 1 << power, 1 - (1 << power), -1 << power):
            operands = [[edge], *fixed[1:]] if fixed else fixed
            judged.finish_agrees(0, 0, (edge,), operands)
            if kind == "norm_inverse":
                judged.finish_agrees(0, 0, (edge,), fixed)


def test_a_token_below_zero_names_no_embedding(
    referee: Contract, by_kind: dict[str, list[Sample]]
) -> None:
    judged = by_kind["embed"][0].judged(referee)
    assert said(judged.call, "terms", 3, 0, 1, [-1]) == "wrong"
