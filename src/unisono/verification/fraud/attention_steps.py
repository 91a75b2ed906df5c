"""Step types of rotary embedding and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unisono.numerics.scalar.attention import MAX_DISTANCE, exp2_negative, rotation
from unisono.numerics.scalar.fixed import align, in_range, round_shift
from unisono.verification.fraud.steps import (
    CHUNK,
    FEW,
    Cell,
    Ref,
    Rows,
    Source,
    Step,
    Total,
    Values,
    own,
    reduced,
)


@dataclass(frozen=True, slots=True)
class Rotation(Step):
    """Cosines, then sines, of a position's angles: no inputs but the configuration."""

    kind: ClassVar[str] = "rotation"
    position: int
    frequencies: tuple[int, ...]
    factor: int

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        half = len(self.frequencies)
        cosines, sines = rotation(self.position, [self.frequencies[i % half]], self.factor)
        return cosines[0] if i < half else sines[0]


@dataclass(frozen=True, slots=True)
class Turn(Step):
    """An element of a head, reduced to 24 bits and rotated against the other half."""

    kind: ClassVar[str] = "turn"
    rows: Rows
    shift: str
    rotation: str

    def fixed(self, i: int) -> tuple[Source, ...]:
        group, k = divmod(i, self.rows.width)
        half = self.rows.width // 2
        first = i if k < half else i - half
        return (
            self.rows.ref(first),
            self.rows.ref(first + half),
            own(self.shift, group),
            own(self.rotation, k % half),
            own(self.rotation, half + k % half),
        )

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        a, b, shift, cosine, sine = (x[0] for x in fixed)
        a, b = reduced(a, shift, 24), reduced(b, shift, 24)
        if i % self.rows.width < self.rows.width // 2:
            return a * cosine - b * sine
        return b * cosine + a * sine


@dataclass(frozen=True, slots=True)
class Seen:
    """Which keys and values a position sees, and how heads share them."""

    stage: int
    position: int
    start: int
    heads: int
    kv_heads: int
    size: int

    @property
    def count(self) -> int:
        """How many positions are seen."""
        return self.position + 1 - self.start

    def ref(self, tensor: str, j: int, start: int, stop: int | None = None) -> Ref:
        """Elements of a kept tensor of the j-th position that is seen."""
        position = self.start + j
        cell = None if position == self.position else Cell(self.stage, position)
        return Ref(cell, tensor, start, start + 1 if stop is None else stop)

    def kv_head(self, head: int) -> int:
        """The key/value head of a query head."""
        return head * self.kv_heads // self.heads


@dataclass(frozen=True, slots=True)
class Score(Step):
    """A query times a key, as a base-2 logarithm with 16 fraction bits."""

    kind: ClassVar[str] = "score"
    chunk: ClassVar[int] = CHUNK
    seen: Seen
    scale: tuple[int, int]

    def fixed(self, i: int) -> tuple[Source, ...]:
        head, j = divmod(i, self.seen.count)
        return (
            own("queries.exponent", head),
            self.seen.ref("keys.exponent", j, self.seen.kv_head(head)),
        )

    def length(self, i: int) -> int:
        return self.seen.size

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        head, j = divmod(i, self.seen.count)
        query, key = head * self.seen.size, self.seen.kv_head(head) * self.seen.size
        return (
            own("queries", query + start, query + stop),
            self.seen.ref("keys", j, key + start, key + stop),
        )

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        pairs = zip(terms[0], terms[1], strict=True)
        return (sum(in_range(q, 15) * in_range(k, 15) for q, k in pairs),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        mantissa, exponent = self.scale
        right = -(fixed[0][0] + fixed[1][0] + exponent + 16)
        return align(total[0] * mantissa, right, 40)


@dataclass(frozen=True, slots=True)
class Largest(Step):
    """The largest element of each group of a tensor."""

    kind: ClassVar[str] = "largest"
    chunk: ClassVar[int] = FEW
    maximum: ClassVar[bool] = True
    tensor: str
    width: int

    def length(self, i: int) -> int:
        return self.width

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        return (own(self.tensor, i * self.width + start, i * self.width + stop),)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        return (max(terms[0]),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return total[0]


@dataclass(frozen=True, slots=True)
class LargestValueExponent(Step):
    """Per query head, the largest exponent of the values that are seen."""

    kind: ClassVar[str] = "value_exponent"
    maximum: ClassVar[bool] = True
    seen: Seen

    def length(self, i: int) -> int:
        return self.seen.count

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        return (self.seen.ref("values.exponent", start, self.seen.kv_head(i)),)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        return (terms[0][0],)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return total[0]


@dataclass(frozen=True, slots=True)
class Probability(Step):
    """The power of two of a score's distance below the largest, 28 fraction bits."""

    kind: ClassVar[str] = "probability"
    seen: Seen

    def fixed(self, i: int) -> tuple[Source, ...]:
        return own("scores", i), own("top", i // self.seen.count)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return exp2_negative(min(fixed[1][0] - fixed[0][0], MAX_DISTANCE), 28)


@dataclass(frozen=True, slots=True)
class Weight(Step):
    """A probability at the exponent of the largest value."""

    kind: ClassVar[str] = "weight"
    seen: Seen

    def fixed(self, i: int) -> tuple[Source, ...]:
        head, j = divmod(i, self.seen.count)
        exponent = self.seen.ref("values.exponent", j, self.seen.kv_head(head))
        return own("probabilities", i), own("highest", head), exponent

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        probability, highest, exponent = (x[0] for x in fixed)
        return round_shift(probability, min(highest - exponent, 62))


@dataclass(frozen=True, slots=True)
class Divisor(Step):
    """Per head, the sum of the probabilities without its last 9 bits."""

    kind: ClassVar[str] = "divisor"
    chunk: ClassVar[int] = FEW
    seen: Seen

    def length(self, i: int) -> int:
        return self.seen.count

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        first = i * self.seen.count
        return (own("probabilities", first + start, first + stop),)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        return (sum(terms[0]),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return in_range(total[0]) >> 9


@dataclass(frozen=True, slots=True)
class Mixed(Step):
    """An element of the weighted sum of values, divided by the sum of weights."""

    kind: ClassVar[str] = "mixed"
    seen: Seen

    def fixed(self, i: int) -> tuple[Source, ...]:
        return (own("divisor", i // self.seen.size),)

    def length(self, i: int) -> int:
        return self.seen.count

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        head, k = divmod(i, self.seen.size)
        column = self.seen.kv_head(head) * self.seen.size + k
        return (
            own("weights", head * self.seen.count + start),
            self.seen.ref("values", start, column),
        )

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        return (in_range(terms[0][0], 29) * in_range(terms[1][0], 15),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return in_range(total[0]) // fixed[0][0]


@dataclass(frozen=True, slots=True)
class Attended(Step):
    """An element of a head's output at the exponent that all heads share."""

    kind: ClassVar[str] = "attended"
    size: int

    def fixed(self, i: int) -> tuple[Source, ...]:
        return own("mixed", i), own("common", 0), own("highest", i // self.size)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        x, common, highest = (v[0] for v in fixed)
        return round_shift(x << 24, min(common - highest, 62))
