"""All sessions that decode, advanced together: how long a token's loop takes under the load.

A model of `execution.engine`, not the engine: sessions wait at a hop for the pass that runs, then
go in one pass with the others that wait. Solved as a fixed point between the rate of each session
and the size of the batches, one step of it per tick.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PROMPT_ROWS = 64
"""Rows of a prompt that one pass takes beside decode steps, as `execution.engine` bounds them."""
GAP_EDGES_MS = np.geomspace(1.0, 100_000.0, 501)
"""Edges of the histogram of times per token: 1 ms to 100 s, 2.3 % apart."""


class Decoding:
    """The table of sessions, in columns; a row is free when its session ended."""

    def __init__(self, nodes: int, longest: int) -> None:
        """`nodes`: how many there are; `longest`: hops that a chain may have."""
        self.nodes = nodes
        self._longest = longest
        rows = 1024
        self._hops = np.full((rows, longest), nodes, dtype=np.int32)
        self._links_us = np.zeros(rows)
        self._rate = np.zeros(rows)
        self._begun_us = np.zeros(rows)
        self._tokens = np.zeros(rows)
        self._target = np.zeros(rows)
        self._running = np.zeros(rows, dtype=bool)
        self._vacant = list(range(rows - 1, -1, -1))
        self.gaps = np.zeros(len(GAP_EDGES_MS) + 1)
        """Tokens per bin of `GAP_EDGES_MS`; below and above in the first and the last."""
        self.busy = np.zeros(nodes + 1)
        """Part of the last tick that each node decoded."""

    def start(
        self, hops: Sequence[int], links_us: int, tokens: int, target: int, now: int = 0
    ) -> int:
        """A session begins to decode over nodes `hops`; its row in the table. It has said
        `tokens` of `target` tokens; `links_us` is the network's part of one loop."""
        if not self._vacant:
            self._grow()
        row = self._vacant.pop()
        self._hops[row] = self.nodes
        self._hops[row, : len(hops)] = hops
        self._links_us[row] = links_us
        self._begun_us[row] = now
        self._tokens[row] = tokens
        self._target[row] = target
        self._rate[row] = 0.0
        self._running[row] = True
        return row

    def stop(self, row: int) -> int:
        """The session leaves the table; tokens that it has said."""
        self._running[row] = False
        self._hops[row] = self.nodes
        self._rate[row] = 0.0
        self._vacant.append(row)
        return int(self._tokens[row])

    @property
    def count(self) -> int:
        """Sessions that decode."""
        return len(self._running) - len(self._vacant)

    def tick(
        self,
        step_us: NDArray[np.float64],
        row_us: NDArray[np.float64],
        prefilling: NDArray[np.bool_],
        length_us: int,
        now: int,
    ) -> tuple[float, list[tuple[int, int]]]:
        """Advance every session by `length_us`, up to `now`; those that began since, by less.

        The first three are per node, one more at the end for "no hop", with times of 0. Returns
        the tokens said, and (row, microseconds before the end of the tick) of the sessions that
        ended; they stay in the table until `stop`.
        """
        rows = np.flatnonzero(self._running)
        self.busy[:] = 0.0
        if not len(rows):
            return 0.0, []
        hops = self._hops[rows]
        flat = hops.ravel()
        size = self.nodes + 1
        rates = np.repeat(self._rate[rows], self._longest)
        steps_per_us: NDArray[np.float64] = np.bincount(flat, rates, size).astype(np.float64)
        sessions = np.maximum(np.bincount(flat, minlength=size), 1)
        pass_us, busy = passes(step_us, row_us, prefilling, steps_per_us, sessions)
        waits = pass_us * (1 + busy / 2)
        waits[-1] = busy[-1] = 0.0
        self.busy = busy
        loop: NDArray[np.float64] = self._links_us[rows] + waits[hops].sum(axis=1)
        old: NDArray[np.float64] = self._rate[rows]
        rate = 1 / loop
        rate = np.where(old > 0, (old + rate) / 2, rate)
        self._rate[rows] = rate
        before = self._tokens[rows]
        spent = np.minimum(length_us, now - self._begun_us[rows])
        after = np.minimum(before + rate * spent, self._target[rows])
        self._tokens[rows] = after
        said = after - before
        bins = np.searchsorted(GAP_EDGES_MS, 1e-3 / rate)
        self.gaps += np.bincount(bins, said, len(self.gaps))
        ended = np.flatnonzero(after >= self._target[rows])
        spare = spent[ended] - said[ended] / rate[ended]
        return float(said.sum()), [
            (int(rows[i]), int(max(0.0, left))) for i, left in zip(ended, spare, strict=True)
        ]

    def _grow(self) -> None:
        rows = len(self._running)
        more = np.full((rows, self._longest), self.nodes, dtype=np.int32)
        self._hops = np.concatenate([self._hops, more])
        for name in (
            "_links_us",
            "_rate",
            "_begun_us",
            "_tokens",
            "_target",
            "_running",
        ):
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
        self._vacant = list(range(2 * rows - 1, rows - 1, -1))


def passes(
    step_us: NDArray[np.float64],
    row_us: NDArray[np.float64],
    prefilling: NDArray[np.bool_],
    steps_per_us: NDArray[np.float64],
    sessions: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Length of a pass and the part of the time that passes run, per node.

    A pass of b sessions takes step + (b − 1) · row, and a piece of a prompt where one waits. If
    steps arrive faster than one per pass, b grows until arrivals in one pass are b; it is never
    more than the sessions there are.
    """
    piece = np.where(prefilling, PROMPT_ROWS * row_us, 0.0)
    alone = step_us + piece
    room = np.maximum(1 - steps_per_us * row_us, 1e-9)
    batch = np.clip(steps_per_us * (alone - row_us) / room, 1.0, sessions)
    pass_us = alone + (batch - 1) * row_us
    busy = np.minimum(1.0, steps_per_us / batch * pass_us)
    return pass_us, busy
