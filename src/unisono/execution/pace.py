"""How far to guess ahead: what a guessed row costs against what it saves.

A row more in a pass costs `row` seconds. A token that needs no round of its own saves its share
of a pass, and, as far as the machine would have been idle, the time of a round through the
chain. So a guess is worth sending when

    chance × (pass / sessions + row + idle × round) > row.
"""

from __future__ import annotations

MAX_AHEAD = 48
"""Guesses on the way at once: as far as a session's windows of keys and values reach back."""
SMALLEST_CHANCE = 0.04


class PassCost:
    """Time of a decode pass as `fixed + row × rows`, fitted to recent passes by least squares
    with forgetting. One thread observes; others may read `fixed` and `row`."""

    FORGET = 0.98

    def __init__(self) -> None:
        self.fixed = 0.01
        """Seconds of a pass apart from its rows."""
        self.row = 0.0005
        """Seconds that a row more costs; a twentieth of a pass until passes of different sizes
        have been seen."""
        self.measured = False
        """Whether any pass was seen."""
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """One pass of `rows` decode rows."""
        f = self.FORGET
        self._n = f * self._n + 1
        self._x = f * self._x + rows
        self._y = f * self._y + seconds
        self._xx = f * self._xx + rows * rows
        self._xy = f * self._xy + rows * seconds
        mean = self._y / self._n
        spread = self._n * self._xx - self._x * self._x
        row = mean / 20
        if spread > 0.05 * self._n * self._n:
            slope = (self._n * self._xy - self._x * self._y) / spread
            row = min(max(slope, mean / 100), mean)
        self.row = row
        self.fixed = max(0.0, (self._y - row * self._x) / self._n)
        self.measured = True


class Pace:
    """One session's measure of a round through the chain."""

    def __init__(self) -> None:
        self._round: float | None = None

    def observe(self, seconds: float) -> None:
        """A token came back so long after its row had gone."""
        known = self._round
        # the shortest recent round: longer ones waited for other work
        self._round = seconds if known is None or seconds < known else 0.9 * known + 0.1 * seconds

    def smallest_chance(self, cost: PassCost, sessions: int, idle: float) -> float:
        """Below this chance a guess is not worth its row; `idle` is the idle share of time."""
        saved = cost.fixed / max(1, sessions) + cost.row + idle * (self._round or 0.0)
        return max(SMALLEST_CHANCE, cost.row / saved) if saved > 0 else 1.0
