"""Step types of what acts on whole rows: requantisation, norm, product, gates, residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unisono.numerics.scalar.fixed import align, clamp, in_range, round_shift, square_root
from unisono.numerics.scalar.layers import (
    GROUP,
    RESIDUAL_LIMIT,
    gelu_argument,
    sigmoid,
)
from unisono.verification.fraud.steps import (
    CHUNK,
    FEW,
    Exponent,
    InputRef,
    RootRef,
    RowRef,
    Rows,
    Source,
    Step,
    Total,
    Values,
    WeightRef,
    Wrong,
    overflow_shift,
    own,
    reduced,
)


@dataclass(frozen=True, slots=True)
class Shift(Step):
    """The shift that brings a row to some bits: from its largest magnitude. With `after`, of the
    row as that shift to `after_bits` left it."""

    kind: ClassVar[str] = "shift"
    chunk: ClassVar[int] = FEW
    maximum: ClassVar[bool] = True
    rows: Rows
    bits: int
    after: str = ""
    after_bits: int = 0

    def fixed(self, i: int) -> tuple[Source, ...]:
        return (own(self.after, i),) if self.after else ()

    def length(self, i: int) -> int:
        return self.rows.width

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        first = i * self.rows.width
        return (self.rows.ref(first + start, first + stop),)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        row = terms[0]
        if self.after:
            row = [reduced(x, fixed[0][0], self.after_bits) for x in row]
        return (max(abs(in_range(x, 62)) for x in row),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return overflow_shift(total[0], self.bits)


@dataclass(frozen=True, slots=True)
class Requantise(Step):
    """An element of a row brought to some bits."""

    kind: ClassVar[str] = "requantise"
    rows: Rows
    shift: str
    bits: int

    def fixed(self, i: int) -> tuple[Source, ...]:
        return self.rows.ref(i), own(self.shift, i // self.rows.width)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return reduced(fixed[0][0], fixed[1][0], self.bits)


@dataclass(frozen=True, slots=True)
class ExponentSum(Step):
    """The exponent of a row: with a bias, at least the bias's less 36."""

    kind: ClassVar[str] = "exponent"
    exponent: Exponent
    least: int | None = None

    def fixed(self, i: int) -> tuple[Source, ...]:
        return self.exponent.refs(i)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        exponent = self.exponent.value([x[0] for x in fixed])
        return exponent if self.least is None else max(exponent, self.least)


@dataclass(frozen=True, slots=True)
class NormInverse(Step):
    """The inverse root mean square of a row: `2**46 // root`."""

    kind: ClassVar[str] = "norm_inverse"
    chunk: ClassVar[int] = FEW
    rows: Rows
    shift: str
    copy: str
    epsilon: tuple[int, int]

    def fixed(self, i: int) -> tuple[Source, ...]:
        return own(self.shift, i), own(self.copy, i), *self.rows.exponent.refs(i)

    def length(self, i: int) -> int:
        return self.rows.width

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        first = i * self.rows.width
        return (self.rows.ref(first + start, first + stop),)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        wide = [reduced(x, fixed[0][0], 30) for x in terms[0]]
        return (sum(reduced(x, fixed[1][0], 15) ** 2 for x in wide),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        exponent = self.rows.exponent.value([x[0] for x in fixed[2:]])
        exponent += fixed[0][0] + fixed[1][0]
        mean = in_range(total[0] << 16) // self.rows.width
        mantissa, epsilon_exponent = self.epsilon
        added = align(in_range(mantissa, 24), 2 * exponent - 16 - epsilon_exponent, 50)
        return (1 << 46) // max(1, square_root(mean + added))


@dataclass(frozen=True, slots=True)
class NormElement(Step):
    """An element divided by the root mean square, times its weight."""

    kind: ClassVar[str] = "norm"
    rows: Rows
    shift: str
    copy: str
    inverse: str
    weight: str

    def fixed(self, i: int) -> tuple[Source, ...]:
        group, column = divmod(i, self.rows.width)
        scalars = [own(name, group) for name in (self.shift, self.copy, self.inverse)]
        return self.rows.ref(i), *scalars, WeightRef(self.weight, 0, column, column + 1)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        x, shift, copy, inverse, weight = (v[0] for v in fixed)
        wide = reduced(x, shift, 30)
        normal = in_range(round_shift(wide * inverse, copy + 14), 33)
        return in_range(normal * in_range(weight, 20), 53)


def multiply(row: list[int], start: int, weights: list[int]) -> int:
    """The part of a dot product that columns from `start` make; weights are the values, then
    the multipliers of the groups that they touch."""
    values, multipliers = weights[: len(row)], weights[len(row) :]
    first = start // GROUP
    return in_range(
        sum(
            in_range(x, 15) * w * multipliers[(start + k) // GROUP - first]
            for k, (x, w) in enumerate(zip(row, values, strict=True))
        ),
        53,
    )


@dataclass(frozen=True, slots=True)
class Product(Step):
    """An output of a linear layer: a dot product of a 15-bit row with a row of weights."""

    kind: ClassVar[str] = "product"
    chunk: ClassVar[int] = CHUNK
    rows: Rows
    matrix: str

    def length(self, i: int) -> int:
        return self.rows.width

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        return self.rows.ref(start, stop), WeightRef(self.matrix, i, start, stop)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        return (multiply(list(terms[0]), start, list(terms[1])),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return total[0]


@dataclass(frozen=True, slots=True)
class Logit(Product):
    """A score: an output of the output matrix with 16 fraction bits."""

    kind: ClassVar[str] = "logit"
    exponent: Exponent

    def fixed(self, i: int) -> tuple[Source, ...]:
        return self.exponent.refs(0)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return align(total[0], -(self.exponent.value([x[0] for x in fixed]) + 16), 40)


@dataclass(frozen=True, slots=True)
class Bias(Step):
    """An output of a linear layer with its bias, both at exponent `common`."""

    kind: ClassVar[str] = "bias"
    product: str
    common: str
    exponent: Exponent
    bias: str
    bias_exponent: int

    def fixed(self, i: int) -> tuple[Source, ...]:
        return (
            own(self.product, i),
            own(self.common, 0),
            WeightRef(self.bias, 0, i, i + 1),
            *self.exponent.refs(0),
        )

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        x, common, bias = (v[0] for v in fixed[:3])
        exponent = self.exponent.value([v[0] for v in fixed[3:]])
        added = align(in_range(bias, 24), common - self.bias_exponent, 60)
        return in_range(round_shift(x, min(common - exponent, 62)) + added, 61)


@dataclass(frozen=True, slots=True)
class Gate(Step):
    """An element of the gate, reduced to 24 bits, times its sigmoid."""

    kind: ClassVar[str] = "gate"
    rows: Rows
    shift: str
    activation: str

    def fixed(self, i: int) -> tuple[Source, ...]:
        return self.rows.ref(i), own(self.shift, 0), *self.rows.exponent.refs(0)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        exponent = self.rows.exponent.value([x[0] for x in fixed[2:]])
        argument = align(fixed[0][0], -(exponent + 20), 25)
        if self.activation == "gelu_tanh":
            argument = gelu_argument(argument)
        return in_range(reduced(fixed[0][0], fixed[1][0], 24) * sigmoid(argument), 62)


@dataclass(frozen=True, slots=True)
class Gated(Step):
    """The product of two elements, each reduced to 31 bits."""

    kind: ClassVar[str] = "gated"
    left: Rows
    left_shift: str
    right: Rows
    right_shift: str

    def fixed(self, i: int) -> tuple[Source, ...]:
        shifts = own(self.left_shift, 0), own(self.right_shift, 0)
        return self.left.ref(i), self.right.ref(i), *shifts

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        left, right, left_shift, right_shift = (x[0] for x in fixed)
        return in_range(reduced(left, left_shift, 31) * reduced(right, right_shift, 31), 62)


@dataclass(frozen=True, slots=True)
class Add(Step):
    """An element of the residual stream plus one of a row with an exponent."""

    kind: ClassVar[str] = "add"
    residual: Rows
    rows: Rows

    def fixed(self, i: int) -> tuple[Source, ...]:
        return self.residual.ref(i), self.rows.ref(i), *self.rows.exponent.refs(0)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        exponent = self.rows.exponent.value([x[0] for x in fixed[2:]])
        added = align(fixed[1][0], -(exponent + 20), 43)
        return clamp(in_range(fixed[0][0], 43) + added, RESIDUAL_LIMIT)


@dataclass(frozen=True, slots=True)
class Token(Step):
    """The token at the cell's position, as the hop signed it."""

    kind: ClassVar[str] = "token"
    position: int

    def fixed(self, i: int) -> tuple[Source, ...]:
        return (InputRef(self.position),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return fixed[0][0]


@dataclass(frozen=True, slots=True)
class Embed(Step):
    """An element of the embedding of the token in `token`."""

    kind: ClassVar[str] = "embed"
    token: str
    exponent: int
    scale: tuple[int, int]

    def fixed(self, i: int) -> tuple[Source, ...]:
        return (own(self.token, 0),)

    def length(self, i: int) -> int:
        return 1

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        return (WeightRef("embedding", fixed[0][0], i, i + 1),)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        mantissa, exponent = self.scale
        weight, multiplier = terms[0]
        product = weight * multiplier * in_range(mantissa, 18)
        return (align(product, -(self.exponent + exponent + 20), 43),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return total[0]


@dataclass(frozen=True, slots=True)
class Boundary(Step):
    """Whether a row of the grid is the one that the hop signed at its entry or exit: 1.

    What is signed of a row is the root over its elements (`models.rows`), so that two hashes are
    compared, however wide the row is."""

    kind: ClassVar[str] = "boundary"
    row: RootRef
    side: str
    position: int

    def fixed(self, i: int) -> tuple[Source, ...]:
        return self.row, RowRef(self.side, self.position)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        if list(fixed[0]) != list(fixed[1]):
            raise Wrong(f"the row {self.side} at position {self.position} is not what was signed")
        return 1
