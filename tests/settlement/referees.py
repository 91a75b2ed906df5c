"""Referees on an EVM beside the step types that they must agree with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.settlement.evm import Contract, Evm, Reverted, account
from tests.verification.fraud.dispute import Answer
from unisono.settlement.artifacts import Artifact
from unisono.settlement.tables import Contract as Table
from unisono.settlement.tables import table_deployment
from unisono.types import Sampling
from unisono.verification.fraud.attention_steps import Probability, Score, Weight
from unisono.verification.fraud.parameters import KINDS, Names, parameters
from unisono.verification.fraud.program import Program
from unisono.verification.fraud.referee import ARITHMETIC
from unisono.verification.fraud.steps import (
    Cell,
    InputRef,
    Ref,
    RowRef,
    Source,
    Step,
    TokenRef,
    Total,
    Values,
    WeightRef,
)

WRONG = "wrong"
TRACE, GRID, WEIGHTS, TOKENS, ROW_HASH, INPUT = range(6)
GREEDY = Sampling()
PAIRS = Score, Probability, Weight
"""Their tensors grow with what is seen."""
KEPT = ("keys", "keys.exponent", "values", "values.exponent", "row")


def edges(bits: int) -> st.SearchStrategy[int]:
    """Integers of every length up to `bits`, most of them near a power of two."""
    near = st.builds(
        lambda power, offset, sign: sign * ((1 << power) + offset),
        st.integers(0, bits - 1),
        st.integers(-2, 1),
        st.sampled_from((1, -1)),
    )
    return near | st.integers(0, bits).flatmap(lambda k: st.integers(-(1 << k), (1 << k) - 1))


int64 = edges(62) | st.sampled_from((-(1 << 63), (1 << 63) - 1, (1 << 62) + 1))
"""What a leaf may hold."""


def deploy_table(evm: Evm, table: Table) -> str:
    """A table's contract; its address."""
    creation = table_deployment(table).hex()
    return evm.deploy(Artifact(table, "", "", 0, [], creation), account(1)).address


def said(call: Callable[..., Any], *arguments: object) -> Any:
    """What a function gives, whether Python's or a contract's, or "wrong" where it refuses
    numbers that no honest trace has."""
    try:
        return call(*arguments)
    except ARITHMETIC:
        return WRONG
    except Reverted as error:
        if str(error) != WRONG:
            raise
        return WRONG


@dataclass(frozen=True)
class Place:
    """Where a step is, and in which request."""

    stage: int
    position: int
    prompt: int = 1
    positions: int = 1 << 20
    seen_start: int = 0
    sampling: Sampling = GREEDY

    def context(self, bias: int = 0) -> tuple[int, ...]:
        """The contract's struct; `bias` is that of the element's token."""
        s = self.sampling
        return (
            *(self.stage, self.position, self.prompt, self.positions, self.seen_start),
            *(s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty),
            *(s.presence_penalty, s.frequency_penalty, s.seed, bias),
        )


@dataclass(frozen=True)
class Judged:
    """One step, as its referee is told of it."""

    contract: Contract
    step: Step
    names: Names
    place: Place

    def call(self, function: str, i: int, *arguments: object) -> Any:
        """A function of the contract about element `i`."""
        head = KINDS[self.step.kind], parameters(self.step, self.names).values
        bias = dict(self.place.sampling.logit_bias).get(i, 0)
        return self.contract.view(function, *head, self.place.context(bias), i, *arguments)

    def source(self, source: Source) -> tuple[int, ...]:
        """A source in the contract's words: where, start and stop."""
        match source:
            case Ref(None, tensor, start, stop):
                return TRACE, self.names.tensors[tensor], 0, 0, 0, start, stop
            case Ref(cell, tensor, start, stop):
                assert cell is not None
                kept = 0 if cell.stage == 0 else KEPT.index(tensor)
                return GRID, kept, cell.stage, cell.position, 0, start, stop
            case WeightRef(_, row, start, stop):
                return WEIGHTS, 0, 0, 0, row, start, stop
            case TokenRef(start, stop):
                return TOKENS, 0, 0, 0, 0, start, stop
            case RowRef(side, position):
                return ROW_HASH, int(side == "out"), 0, position, 0, 0, 8
            case InputRef(position):
                return INPUT, 0, 0, position, 0, 0, 1

    def reads_agree(self, i: int) -> None:
        """Which integers element `i` follows from, and how its terms are cut."""
        step = self.step
        chunk, maximum = self.contract.view("describe", KINDS[step.kind])
        assert (chunk, maximum) == (step.chunk, step.maximum)
        assert self.call("length", i) == step.length(i)
        assert self._sources("fixed_sources", i) == [self.source(x) for x in step.fixed(i)]

    def terms_agree(self, i: int, start: int, stop: int, fixed: Values) -> None:
        """Which integers a chunk follows from."""
        expected = [self.source(x) for x in self.step.terms(i, start, stop, fixed)]
        assert self._sources("terms", i, start, stop, flat(fixed)) == expected

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, opened: bytes
    ) -> Any:
        """What the contract says of a chunk."""

        def call() -> Total:
            arguments = (i, value, start, stop, flat(fixed), opened)
            return tuple(self.call("partial", *arguments))

        return said(call)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> Any:
        """What the contract says of the element."""
        return said(self.call, "finish", i, value, total, flat(fixed))

    def finish_agrees(self, i: int, value: int, total: Total, fixed: Values) -> None:
        """The element that follows from a total and what `fixed` named."""
        expected = said(self.step.finish, i, value, total, fixed)
        assert self.finish(i, value, total, fixed) == expected

    def partial_agrees(
        self, i: int, value: int, start: int, fixed: Values, terms: Values, widths: Sequence[int]
    ) -> None:
        """The part that a chunk makes of terms with so many bytes per element."""
        stop = start + len(terms[0])
        expected = said(self.step.partial, i, value, start, stop, fixed, terms)
        opened = b"".join(map(little_endian, terms, widths))
        assert self.partial(i, value, start, stop, fixed, opened) == expected

    def _sources(self, function: str, i: int, *arguments: object) -> list[tuple[int, ...]]:
        return [tuple(source) for source in self.call(function, i, *arguments)]


def flat(values: Values) -> list[int]:
    """The integers of all sources, one after another."""
    return [x for source in values for x in source]


def little_endian(values: Sequence[int], width: int) -> bytes:
    """As leaves have them."""
    return b"".join(x.to_bytes(width, "little", signed=True) for x in values)


def judged(contract: Contract, answer: Answer, cell: Cell, tensor: str) -> Judged:
    """A step of a tensor of a real answer."""
    hop = answer.hop
    program = hop.program(cell)
    step = program.tensor(tensor).step
    assert step is not None
    window, start = 0, 0
    if 0 < cell.stage < hop.stages - 1:
        window, start = hop.config.windows[hop.layer_of(cell.stage)], hop.seen(cell).start
    grow = frozenset(t.name for t in program.tensors if isinstance(t.step, PAIRS))
    names = Names(program.index, window, grow)
    place = Place(cell.stage, cell.position, hop.prompt, hop.positions, start, hop.sampling)
    return Judged(contract, step, names, place)


def agrees_on(contract: Contract, answer: Answer, cell: Cell, tensor: str, elements: int) -> None:
    """A referee finds the elements that the answer's trace has, from the same integers."""
    game, holdings = answer.game(), answer.honest
    of, program = judged(contract, answer, cell, tensor), answer.hop.program(cell)
    for i in some(program.tensor(tensor).size, elements):
        value = int(holdings.trace(cell).values[tensor][i])
        of.reads_agree(i)
        fixed = holdings.values(game.layout, cell, of.step.fixed(i))
        length = of.step.length(i)
        total: Total = ()
        for start, stop in some_chunks(length, of.step.chunk):
            of.terms_agree(i, start, stop, fixed)
            sources = of.step.terms(i, start, stop, fixed)
            values = holdings.values(game.layout, cell, sources)
            widths = [width_of(source, answer, program) for source in sources]
            of.partial_agrees(i, value, start, fixed, values, widths)
        if length:
            total = holdings.total(game.layout, cell, of.step, i, value, (0, length))
        assert of.finish(i, value, total, fixed) == value


def width_of(source: Source, answer: Answer, program: Program) -> int:
    """Bytes of an element of a tensor or of a token."""
    if isinstance(source, TokenRef):
        return 4
    assert isinstance(source, Ref)
    if source.cell is None:
        return int(program.tensor(source.tensor).format[1])
    kept = answer.hop.kept(source.cell.stage)
    return next(int(t.format[1]) for t in kept if t.name == source.tensor)


def some(size: int, most: int) -> list[int]:
    """First, last and between."""
    return sorted({k * (size - 1) // max(1, most - 1) for k in range(most)})


def some_chunks(length: int, chunk: int) -> list[tuple[int, int]]:
    """The first and the last chunk of terms."""
    starts = sorted({0, (length - 1) // chunk * chunk}) if length else []
    return [(start, min(length, start + chunk)) for start in starts]
