"""Step types: how one element of one tensor follows from elements of earlier tensors.

A step names the few integers that an element depends on (`fixed`), and where it is a sum or a
maximum over many, its terms, a bounded chunk at a time. Its arithmetic is that of
`numerics.scalar` and nothing else. Sums and maxima need no stored partial results: whoever
asserts one splits it into at most 16 parts when asked, again and again, until a part is one
chunk.

`STEPS` holds every step type by name; a step cannot be defined without being there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from unisono.numerics.scalar.fixed import clamp, round_shift

MAX_MACS = 640
"""No step needs more multiply-accumulates than this; ours need at most `CHUNK`."""
CHUNK = 128
"""Terms of a dot product that one step sums: what one leaf of 16-bit integers holds."""
FEW = 32
"""Terms of other sums and maxima of one step: what one leaf of 64-bit integers holds."""
SPLIT = 16
"""Parts into which a sum or a maximum is split at once."""


class Cell(NamedTuple):
    """A place in a hop's grid: stage 0 is the entry, then a stage per layer, then the exit."""

    stage: int
    position: int


class Ref(NamedTuple):
    """Elements `start:stop` of a tensor; `cell` None is the cell of the step itself, another
    names a kept tensor of an earlier cell."""

    cell: Cell | None
    tensor: str
    start: int
    stop: int


class WeightRef(NamedTuple):
    """Columns `start:stop` of a row of a weight tensor; vectors have one row. Of a matrix come
    first the values, then the multipliers of the groups that they touch."""

    tensor: str
    row: int
    start: int
    stop: int


class TokenRef(NamedTuple):
    """Tokens `start:stop` of prompt and answer: public, nothing has to be opened."""

    start: int
    stop: int


class RootRef(NamedTuple):
    """The root over all elements of a tensor; 8 integers of 32 bits, the first ones highest."""

    cell: Cell | None
    """As of a `Ref`."""
    tensor: str


class RowRef(NamedTuple):
    """The hash of the row at a position, as the hop signed it: like a root."""

    side: str
    """`in` or `out`."""
    position: int


class InputRef(NamedTuple):
    """The token at a position, as a hop that begins the model signed it."""

    position: int


Source = Ref | RootRef | WeightRef | TokenRef | RowRef | InputRef
Values = Sequence[Sequence[int]]
"""The integers of some sources, in their order."""
Total = tuple[int, ...]


class Exponent(NamedTuple):
    """An exponent: a constant plus scalars of the own cell, (tensor, whether one per group)."""

    constant: int
    parts: tuple[tuple[str, bool], ...] = ()

    def refs(self, group: int) -> tuple[Ref, ...]:
        """Where the scalars are."""
        return tuple(own(name, group if each else 0) for name, each in self.parts)

    def value(self, scalars: Sequence[int]) -> int:
        """The exponent, from the scalars of `refs`."""
        return self.constant + sum(scalars)

    def plus(self, constant: int, *parts: tuple[str, bool]) -> Exponent:
        """A larger exponent."""
        return Exponent(self.constant + constant, self.parts + parts)


class Rows(NamedTuple):
    """Rows with exponents: a tensor cut into `groups` rows of `width`."""

    tensor: str
    groups: int
    width: int
    exponent: Exponent
    cell: Cell | None = None

    def ref(self, start: int, stop: int | None = None) -> Ref:
        """Elements of the tensor."""
        return Ref(self.cell, self.tensor, start, start + 1 if stop is None else stop)


def own(tensor: str, start: int, stop: int | None = None) -> Ref:
    """Elements of a tensor of the step's own cell."""
    return Ref(None, tensor, start, start + 1 if stop is None else stop)


class Wrong(Exception):
    """The asserted value cannot be: a relation that defines it does not hold."""


STEPS: dict[str, type[Step]] = {}


@dataclass(frozen=True, slots=True)
class Step:
    """How each element of one tensor is computed. Subclasses with many terms override the
    second half."""

    kind: ClassVar[str] = ""
    chunk: ClassVar[int] = 1
    maximum: ClassVar[bool] = False
    """Whether parts combine by maximum instead of by sum."""

    def __init_subclass__(cls, **more: object) -> None:
        # slots=True makes each class twice; the later one is the one in use
        if "kind" in cls.__dict__:
            STEPS[cls.kind] = cls

    def fixed(self, i: int) -> tuple[Source, ...]:
        """What element i needs whatever its terms are."""
        return ()

    def length(self, i: int) -> int:
        """How many terms element i has; 0: it follows from `fixed` alone."""
        return 0

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        """What terms `start:stop` of element i need beside `fixed`."""
        return ()

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        """The part of the sum or maximum that terms `start:stop` make; `value` is what the
        element is asserted to be."""
        raise NotImplementedError

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        """Element i. Raises Wrong where `value` breaks a relation that defines it."""
        raise NotImplementedError

    def combine(self, parts: Sequence[Total]) -> Total:
        """The whole of some parts, in their order."""
        join = max if self.maximum else sum
        return tuple(join(column) for column in zip(*parts, strict=True))


def reduced(x: int, shift: int, bits: int) -> int:
    """One element of `reduce_row`, its row's shift given."""
    return clamp(round_shift(x, shift), (1 << bits) - 1)


def overflow_shift(largest: int, bits: int) -> int:
    """The shift of a row whose largest magnitude this is."""
    return max(0, largest.bit_length() - bits)
