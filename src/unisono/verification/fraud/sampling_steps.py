"""Step types of choosing a token.

Filters become bounds. Tokens are ordered by a key, unique and ascending from the best:
`min(below, 2**42) << 20 | id`. Top-k keeps the tokens up to `top_k.bound`, the k-th key, and
top-p those up to `nucleus.bound`, the last key of the nucleus. Neither bound can be computed from
few inputs, but each is the only number that satisfies a relation of sums over all tokens, and
sums can be split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unisono.numerics.scalar.attention import MAX_DISTANCE, exp2_negative
from unisono.numerics.scalar.fixed import clamp, in_range, round_shift
from unisono.numerics.scalar.layers import LOG2_E
from unisono.numerics.scalar.sampling import SCORE_LIMIT, log2_fixed, philox
from unisono.types import Q16, Sampling
from unisono.verification.fraud.steps import (
    FEW,
    Source,
    Step,
    TokenRef,
    Total,
    Values,
    Wrong,
    own,
)

ID_BITS = 20
IDS = (1 << ID_BITS) - 1
NEVER = -(1 << 40)
"""Of a token that no filter left: below every other value of `noisy`."""
TOKENS = 64
"""Tokens of one chunk: what one leaf of 32-bit integers holds."""


@dataclass(frozen=True, slots=True)
class Count(Step):
    """How often each token occurs among positions `start:stop` of the sequence."""

    kind: ClassVar[str] = "count"
    chunk: ClassVar[int] = TOKENS
    start: int
    stop: int

    def length(self, i: int) -> int:
        return self.stop - self.start

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        return (TokenRef(self.start + start, self.start + stop),)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        return (sum(token == i for token in terms[0]),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return total[0] if total else 0


@dataclass(frozen=True, slots=True)
class Adjust(Step):
    """A score after penalties and bias, within 2**42."""

    kind: ClassVar[str] = "adjust"
    sampling: Sampling
    counted: bool

    def fixed(self, i: int) -> tuple[Source, ...]:
        counts = (own("seen", i), own("repeats", i)) if self.counted else ()
        return own("logits", i), *counts

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        s = self.sampling
        x = in_range(fixed[0][0], 40)
        if self.counted:
            seen, repeats = fixed[1][0], fixed[2][0]
            if s.repetition_penalty != Q16 and seen:
                if x > 0:
                    x = in_range(x << 16) // s.repetition_penalty
                else:
                    x = in_range(x * s.repetition_penalty) >> 16
            if repeats:
                x -= s.presence_penalty + s.frequency_penalty * repeats
        x += dict(s.logit_bias).get(i, 0)
        return clamp(in_range(x), SCORE_LIMIT)


@dataclass(frozen=True, slots=True)
class Distance(Step):
    """How far a score is below the largest, over the temperature."""

    kind: ClassVar[str] = "distance"
    temperature: int

    def fixed(self, i: int) -> tuple[Source, ...]:
        return own("adjusted", i), own("best", 0)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return in_range((fixed[1][0] - fixed[0][0]) << 16) // self.temperature


def base2(below: int) -> int:
    """A natural-log distance in base 2, 16 fraction bits, at most 40."""
    return min(round_shift(min(below, MAX_DISTANCE) * LOG2_E, 16), MAX_DISTANCE)


@dataclass(frozen=True, slots=True)
class Likelihood(Step):
    """A token's probability relative to the likeliest, 28 fraction bits."""

    kind: ClassVar[str] = "likelihood"

    def fixed(self, i: int) -> tuple[Source, ...]:
        return (own("below", i),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return exp2_negative(base2(fixed[0][0]), 28)


@dataclass(frozen=True, slots=True)
class RankKey(Step):
    """A token's place in the order of filters: ascending from the best, unique."""

    kind: ClassVar[str] = "rank"

    def fixed(self, i: int) -> tuple[Source, ...]:
        return (own("below", i),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return min(in_range(fixed[0][0], 62), SCORE_LIMIT) << ID_BITS | i


@dataclass(frozen=True, slots=True)
class TopK(Step):
    """The k-th smallest key: k - 1 keys are smaller, and one is equal."""

    kind: ClassVar[str] = "top_k"
    chunk: ClassVar[int] = FEW
    vocabulary: int
    k: int

    def length(self, i: int) -> int:
        return self.vocabulary

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        return (own("keys", start, stop),)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        return sum(key < value for key in terms[0]), sum(key == value for key in terms[0])

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        if total != (self.k - 1, 1):
            raise Wrong(f"{total[0]} keys are below the bound of the first {self.k}")
        return value


@dataclass(frozen=True, slots=True)
class Mass(Step):
    """The sum of the probabilities that top-k left, times top-p."""

    kind: ClassVar[str] = "mass"
    chunk: ClassVar[int] = FEW
    vocabulary: int
    bounded: bool
    top_p: int

    def fixed(self, i: int) -> tuple[Source, ...]:
        return (own("top_k.bound", 0),) if self.bounded else ()

    def length(self, i: int) -> int:
        return self.vocabulary

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        return own("likelihoods", start, stop), own("keys", start, stop)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        pairs = zip(terms[0], terms[1], strict=True)
        return (sum(p for p, key in pairs if not self.bounded or key <= fixed[0][0]),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return in_range(total[0] * self.top_p, 64) >> 16


@dataclass(frozen=True, slots=True)
class Nucleus(Step):
    """The last key of the nucleus: those before it sum to less than the mass or there are none,
    and with it they reach the mass or no kept token follows."""

    kind: ClassVar[str] = "nucleus"
    chunk: ClassVar[int] = FEW
    vocabulary: int
    bounded: bool

    def fixed(self, i: int) -> tuple[Source, ...]:
        return own("nucleus.mass", 0), *((own("top_k.bound", 0),) if self.bounded else ())

    def length(self, i: int) -> int:
        return self.vocabulary

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        return own("likelihoods", start, stop), own("keys", start, stop)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        pairs = list(zip(terms[0], terms[1], strict=True))
        if self.bounded:
            pairs = [(p, key) for p, key in pairs if key <= fixed[1][0]]
        return (
            sum(p for p, key in pairs if key < value),
            sum(p for p, key in pairs if key == value),
            sum(key < value for _, key in pairs),
            sum(key == value for _, key in pairs),
            sum(key > value for _, key in pairs),
        )

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        before, at, fewer, equal, more = total
        mass = fixed[0][0]
        if equal != 1 or (fewer and before >= mass) or (more and before + at < mass):
            raise Wrong("the bound is not the last key of the nucleus")
        return value


@dataclass(frozen=True, slots=True)
class Noisy(Step):
    """Gumbel noise less the distance, of tokens that every filter left."""

    kind: ClassVar[str] = "noisy"
    position: int
    seed: int
    min_p: int
    bounds: tuple[str, ...]

    def fixed(self, i: int) -> tuple[Source, ...]:
        bounds = [own(name, 0) for name in self.bounds]
        return own("below", i), own("likelihoods", i), own("keys", i), *bounds

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        below, p, key, *bounds = (x[0] for x in fixed)
        if p <= 0 or p < self.min_p << 12 or any(key > bound for bound in bounds):
            return NEVER
        uniform = 2 * philox(i, self.position, self.seed) + 1
        exponential = max(1, (33 << 38) - log2_fixed(uniform))
        return round_shift((38 << 38) - log2_fixed(exponential), 22) - base2(below)


@dataclass(frozen=True, slots=True)
class Winner(Step):
    """The largest of a tensor, and of equals the first: `value << 20 | 2**20 - 1 - id`."""

    kind: ClassVar[str] = "winner"
    chunk: ClassVar[int] = FEW
    maximum: ClassVar[bool] = True
    tensor: str
    vocabulary: int

    def length(self, i: int) -> int:
        return self.vocabulary

    def terms(self, i: int, start: int, stop: int, fixed: Values) -> tuple[Source, ...]:
        return (own(self.tensor, start, stop),)

    def partial(
        self, i: int, value: int, start: int, stop: int, fixed: Values, terms: Values
    ) -> Total:
        numbered = enumerate(terms[0], start)
        return (max(in_range(x, 43) << ID_BITS | IDS - token for token, x in numbered),)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        return total[0]


@dataclass(frozen=True, slots=True)
class Chosen(Step):
    """Whether the token that won is the one that the hop signed: 1."""

    kind: ClassVar[str] = "chosen"
    position: int

    def fixed(self, i: int) -> tuple[Source, ...]:
        return own("winner", 0), TokenRef(self.position, self.position + 1)

    def finish(self, i: int, value: int, total: Total, fixed: Values) -> int:
        chosen = IDS - (fixed[0][0] & IDS)
        if chosen != fixed[1][0]:
            raise Wrong(f"token {chosen} wins at position {self.position}, not {fixed[1][0]}")
        return 1
