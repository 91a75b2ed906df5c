"""Guesses of the tokens that come next, from what was said before.

An n-gram predictor with back-off: the longest context that was seen before says what followed
it. It looks in the session itself (prompt and answer: prompt lookup, Saxena 2023; suffix
matching as in REST, He et al. 2024) and in past answers of the same node. A guess costs some
dictionary look-ups and can only cost time: the chain checks every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

ORDERS = (12, 8, 5, 3, 2, 1)
"""Context lengths of the session's own index, longest first."""
PAST_ORDERS = (6, 4, 3, 2, 1)
PAST_ENTRIES = 200_000
"""Contexts kept of past answers, in each of two generations."""
DECAY = 0.96
"""How fast a source's record of right and wrong guesses fades, per guess."""
PRIOR = {12: 0.9, 8: 0.85, 6: 0.6, 5: 0.7, 4: 0.45, 3: 0.45, 2: 0.25, 1: 0.12}
"""Chance of a guess by context length before anything is known of a session; measured on prose
and code of the default model."""
PRIOR_WEIGHT = 4.0


_ALL_ORDERS = tuple(sorted({*ORDERS, *PAST_ORDERS}, reverse=True))


class PastAnswers:
    """What followed which context in past answers; forgets the oldest half when it is full."""

    def __init__(self, entries: int = PAST_ENTRIES) -> None:
        self._limit = entries
        self._young: dict[tuple[int, ...], int] = {}
        self._old: dict[tuple[int, ...], int] = {}

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """Take in the tokens from `start` on, which followed those before."""
        for position in range(max(1, start), len(tokens)):
            for order in PAST_ORDERS:
                if position >= order:
                    self._young[tuple(tokens[position - order : position])] = tokens[position]
        if len(self._young) > self._limit:
            self._old, self._young = self._young, {}

    def next(self, context: tuple[int, ...]) -> int | None:
        """What followed this context most recently."""
        found = self._young.get(context)
        return self._old.get(context) if found is None else found


@dataclass(frozen=True, slots=True)
class Guess:
    """A guessed token."""

    token: int
    source: tuple[bool, int]
    """Whether past answers gave it, and the length of the context."""
    chance: float
    """Estimated, given that all guesses before it are right."""


@dataclass(slots=True)
class _Record:
    right: float
    trials: float


@dataclass(slots=True)
class Drafter:
    """Guesses for one session. `learn` every token; `guess` what follows them and some guesses."""

    past: PastAnswers
    _tokens: list[int] = field(default_factory=lambda: [])
    _index: dict[tuple[int, ...], int] = field(default_factory=lambda: {})
    _records: dict[tuple[bool, int], _Record] = field(default_factory=lambda: {})

    def learn(self, tokens: Sequence[int]) -> None:
        """Tokens that follow those known."""
        known = self._tokens
        for token in tokens:
            position = len(known)
            known.append(token)
            for order in ORDERS:
                if position >= order:
                    self._index[tuple(known[position - order : position])] = token

    def guess(self, guesses: Sequence[int]) -> Guess | None:
        """The token after the known ones and `guesses`, if there is any ground for one."""
        tail = [*self._tokens[-ORDERS[0] :], *guesses][-ORDERS[0] :]
        for order in _ALL_ORDERS:
            if order > len(tail):
                continue
            context = tuple(tail[-order:])
            token = self._index.get(context) if order in ORDERS else None
            if token is not None:
                return Guess(token, (False, order), self._chance((False, order)))
            if order in PAST_ORDERS:
                token = self.past.next(context)
                if token is not None:
                    return Guess(token, (True, order), self._chance((True, order)))
        return None

    def judge(self, guess: Guess, right: bool) -> None:
        """Whether a guess, all before it being right, was right."""
        record = self._record(guess.source)
        record.right = DECAY * record.right + right
        record.trials = DECAY * record.trials + 1

    def _chance(self, source: tuple[bool, int]) -> float:
        record = self._record(source)
        return min(0.99, record.right / record.trials)

    def _record(self, source: tuple[bool, int]) -> _Record:
        record = self._records.get(source)
        if record is None:
            record = _Record(PRIOR_WEIGHT * PRIOR[source[1]], PRIOR_WEIGHT)
            self._records[source] = record
        return record
