"""A node that computes one number wrong: a single element of a single cell, whatever the step, and
goes on from there. It signs what follows, and stands by it in disputes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unisono.errors import ConfigurationError
from unisono.models.cache import SessionCache
from unisono.models.decoder import Choice, Decoder, Draw, Rows, Segment
from unisono.models.manifest import Manifest
from unisono.models.weights import BlockWeights
from unisono.types import Sampling
from unisono.verification.adversaries.computing import Dishonest
from unisono.verification.fraud.holdings import Holdings
from unisono.verification.fraud.moves import Subject
from unisono.verification.fraud.operators import OPERATORS, step_types
from unisono.verification.fraud.positions import holdings_of
from unisono.verification.fraud.program import HopProgram
from unisono.verification.fraud.regeneration import Array, Context, regenerate
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.trace import Grid, Kept, Material, cell_trace, compute_kept

DELTAS = (1, -1, *(sign << bits for bits in (4, 8, 12, 16, 20, 24, 28, 32, 40) for sign in (1, -1)))
"""Lies that are tried: the smallest may be lost in later roundings."""
Following = Callable[[dict[str, Array]], Mapping[str, Array]]
"""All tensors of a cell, some of which are given."""
Alteration = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Tensors of one cell that a liar puts in the place of true ones."""

ALIASES = {"softmax": "probability", "dot": "product", "rotary": "turn", "sampling": "winner"}
"""Names that people use → the step in which they are told apart from others."""


@dataclass(frozen=True, slots=True)
class Lie:
    """Where a defender lies: an element of a tensor of a cell."""

    cell: Cell
    tensor: str
    element: int

    delta: int = 1
    """What is added to the true number."""

    def altered(self, honest: Mapping[str, Array]) -> dict[str, Array]:
        """The tensor with the false number."""
        values = honest[self.tensor].copy()
        values[self.element] += self.delta
        return {self.tensor: values}

    def telling(
        self, width: int, honest: Mapping[str, Array], following: Following
    ) -> tuple[Lie, Mapping[str, Array]]:
        """The smallest of some lies here that shows in what the hop sends, and what follows from
        it in the cell; where none shows, the smallest of all. `width`: bytes of the element."""
        first: tuple[Lie, Mapping[str, Array]] | None = None
        limit = 1 << (8 * width - 1)
        for delta in DELTAS:
            lie = replace(self, delta=delta)
            if not -limit <= int(honest[self.tensor][self.element]) + delta < limit:
                continue
            try:
                made = following(lie.altered(honest))
            except (ArithmeticError, LookupError, ValueError, RuntimeError):
                continue  # no model reaches such a number
            if _sent(made) != _sent(honest):
                return lie, made
            first = first or (lie, made)
        if first is None:
            raise ConfigurationError(f"no false number fits '{self.tensor}'")
        return first


def _sent(values: Mapping[str, Array]) -> bytes:
    """What leaves a cell: its row, or its token."""
    if "winner" in values:
        return (values["winner"] & (WINNERS - 1)).tobytes()
    return values["row"].tobytes() if "row" in values else b""


def kinds_of(name: str) -> tuple[str, ...]:
    """The kinds of steps that a name means: a step, an operator of the specification, a word of
    `ALIASES`, or `all`.

    Raises:
        ConfigurationError: it is none of these.
    """
    known = step_types()
    if name == "all":
        return tuple(sorted(known))
    name = ALIASES.get(name, name)
    if name in OPERATORS:
        return OPERATORS[name]
    if name in known:
        return (name,)
    words = sorted({*known, *OPERATORS, *ALIASES, "all"})
    raise ConfigurationError(f"'{name}' is no operator: choose one of {', '.join(words)}")


AT = 18
"""The position at which it lies."""
WINNERS = 1 << 20
"""A winner's lowest bits are this less one less the token."""


def lie_at(hop: HopProgram, kind: str) -> Lie | None:
    """The first place of a hop, at its position `AT` if it has so many, where a step of this kind
    computes something: in its last layer, its exit or its entry. None: there is none."""
    at = min(AT, hop.positions - 2)
    for cell in (Cell(hop.stages - 2, at), Cell(hop.stages - 1, at), Cell(0, at)):
        for number, tensor in enumerate(hop.program(cell).tensors):
            if tensor.step is not None and type(tensor.step).kind == kind:
                return Lie(cell, tensor.name, (7 * number + 3) % tensor.size)
    return None


def lying_holdings(honest: Holdings, cell: Cell, alter: Alteration) -> Holdings:
    """What a party shows that computes one cell with a lie in it and goes on from there, within
    the cell."""
    given = alter(honest.trace(cell).values)
    trace = cell_trace(honest.material, honest.grid, cell, given)
    kept: Kept = {
        key: value.copy() if key[0] == cell.stage else value
        for key, value in honest.grid.kept.items()
    }
    for name in trace.program.kept:
        kept[cell.stage, name][cell.position] = trace.values[name]
    grid = honest.grid.with_cell(kept, cell)
    liar = Holdings(honest.material, honest.trees, honest.signed, grid)
    liar.stand_by(cell, trace)
    return liar


def lying(kind: str) -> Callable[..., Holdings]:
    """What stands in the place of `holdings_of`, and lies at a step of this kind as `LyingDecoder`
    did."""

    def make(
        subject: Subject, weights: BlockWeights, answer: tuple[int, ...], rows: Rows | None
    ) -> Holdings:
        honest = holdings_of(subject, weights, answer, rows)
        lie = lie_at(honest.hop, kind)
        if lie is None:
            return honest
        cell, material, grid = lie.cell, honest.material, honest.grid
        lie, _ = lie.telling(
            width_of(honest.hop, lie),
            honest.trace(cell).values,
            lambda given: cell_trace(material, grid, cell, given).values,
        )
        liar = lying_holdings(honest, cell, lie.altered)
        if lie.cell.stage == 0:  # later layers went on from the false row
            material = replace(honest.material, rows_in=liar.grid.kept[0, "row"])
            trace, liar = liar.trace(lie.cell), Holdings(material, honest.trees)
            liar.stand_by(lie.cell, trace)
            return liar
        trace, liar = liar.trace(lie.cell), Holdings(honest.material, honest.trees, None, liar.grid)
        liar.stand_by(lie.cell, trace)
        return liar

    return make


def width_of(hop: HopProgram, lie: Lie) -> int:
    """Bytes of the number that is false."""
    return int(hop.program(lie.cell).tensor(lie.tensor).format[1:])


class LyingDecoder(Dishonest):
    """Computes the whole model, and lies at a step of one kind. What the lie changes in a row or a
    token is sent and signed; some lies are lost in later roundings."""

    def __init__(
        self, inner: Decoder, manifest: Manifest, weights: BlockWeights, kind: str
    ) -> None:
        super().__init__(inner)
        self._manifest, self._weights, self._kind = manifest, weights, kind
        self._rows: dict[SessionCache, dict[int, Array]] = {}
        """Rows that came in of each session, by position."""

    def _forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
        hop = self._hop(1, Sampling())
        lie = lie_at(hop, self._kind)
        if lie is None or lie.cell.stage == hop.stages - 1:
            return super()._forward(rows, segments)
        rows = rows.copy()
        for cache in [c for c in self._rows if c.held == 0]:
            del self._rows[cache]
        places: dict[int, Segment] = {}
        first = 0
        for segment in segments:
            known = self._rows.setdefault(segment.cache, {})
            for k in range(segment.count):
                if segment.start + k == AT:
                    places[first + k] = segment
                    if lie.cell.stage == 0 and lie.tensor == "row":
                        rows[first + k, lie.element] += lie.delta
                known[segment.start + k] = rows[first + k].copy()
            first += segment.count
        out = super()._forward(rows, segments)
        for place, segment in places.items():
            if lie.cell.stage:
                out[place] = self._false_row(hop, lie, self._rows[segment.cache])
        return out

    def _false_row(self, hop: HopProgram, lie: Lie, known: dict[int, Array]) -> Array:
        came = np.stack([known[p] for p in range(AT + 1)])
        came = np.concatenate((came, came[-1:], came[-1:]))  # later rows change nothing before
        material = Material(hop, self._weights, (0,) * hop.positions, came)
        grid = Grid(hop, compute_kept(material))
        honest = cell_trace(material, grid, lie.cell).values
        _, made = lie.telling(
            width_of(hop, lie),
            honest,
            lambda given: cell_trace(material, grid, lie.cell, given).values,
        )
        return made["row"]

    def _choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        return [
            self._false_choice(rows[row], draw) or honest if position == AT + 1 else honest
            for honest, (row, position, draw) in zip(
                super()._choose(rows, draws), draws, strict=True
            )
        ]

    def _false_choice(self, row: Array, draw: Draw) -> Choice | None:
        hop = self._hop(draw.prompt, draw.sampling)
        lie = lie_at(hop, self._kind)
        if lie is None or lie.cell.stage != hop.stages - 1:
            return None
        tokens = tuple(int(t) for t in draw.tokens[: AT + 1].tolist())
        came = np.repeat(row[None], hop.positions, axis=0)
        program = hop.program(lie.cell)
        received = {t.name: row for t in program.tensors if t.step is None}

        def received_row(cell: Cell, name: str) -> Array:
            del cell, name
            return row

        def received_rows(stage: int, start: int, stop: int, name: str) -> Array:
            del stage, name
            return came[start:stop]

        def following(given: dict[str, Array]) -> Mapping[str, Array]:
            context = Context(self._weights, (*tokens, 0, 0), received_row, received_rows)
            return regenerate(program, context, {**received, **given})

        honest = following({})
        _, made = lie.telling(width_of(hop, lie), honest, following)
        return Choice(WINNERS - 1 - (int(made["winner"][0]) & (WINNERS - 1)))

    def _hop(self, prompt: int, sampling: Sampling) -> HopProgram:
        return HopProgram(self._manifest, self.layers, prompt, AT + 3, sampling)
