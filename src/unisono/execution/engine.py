"""The engine: one compute thread that runs the block for many sessions at once.

The event loop hands over steps; the thread takes whatever waits, at most one step of each
session and `MAX_ROWS` rows together, runs them as one pass, and gives each its rows, their
hashes and, on the last hop, its token. Nothing heavy ever runs on the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from unisono.errors import UnisonoError
from unisono.models.cache import SessionCache
from unisono.models.decoder import Decoder, Segment
from unisono.numerics.sampling import choose, likeliest, log_probabilities
from unisono.types import SampledToken, Sampling
from unisono.wire.claims import row_hash
from unisono.wire.rows import encode_rows

MAX_ROWS = 512
"""Rows of one pass: bounds how long a decode step waits behind prompts."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Sample the token that follows the step's last row."""

    sampling: Sampling
    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    top_logprobs: int
    """-1: no log probabilities."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced."""

    widths: bytes
    encoded: tuple[bytes, ...]
    """Each row out in its canonical encoding (`wire.rows`)."""
    hashes: tuple[bytes, ...]
    token: SampledToken | None


@dataclass(slots=True)
class _Step:
    cache: SessionCache
    start: int
    source: NDArray[np.int64] | tuple[int, ...]
    """Rows from the hop before, or token ids on the first hop."""
    draw: Draw | None
    future: asyncio.Future[StepResult]
    loop: asyncio.AbstractEventLoop = field(repr=False)


class Engine:
    """Runs steps of sessions on a decoder, in the order they came, in a thread of its own."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._waiting: deque[_Step] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Steps that wait."""
        return len(self._waiting)

    async def step(
        self,
        cache: SessionCache,
        start: int,
        source: NDArray[np.int64] | tuple[int, ...],
        draw: Draw | None = None,
    ) -> StepResult:
        """Run rows (int64 [n, hidden]) or token ids of one session from position `start`.

        Raises:
            UnisonoError: what the decoder raises, or the engine was closed.
        """
        loop = asyncio.get_running_loop()
        step = _Step(cache, start, source, draw, loop.create_future(), loop)
        with self._wake:
            if self._closed:
                raise UnisonoError("the engine is closed")
            self._waiting.append(step)
            self._wake.notify()
        return await step.future

    async def close(self) -> None:
        """Let the running pass end, and drop what waits."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        while self._waiting:
            _deliver(self._waiting.popleft(), UnisonoError("the engine is closed"))

    def _take(self) -> list[_Step]:
        """Steps for one pass; the first one always fits."""
        with self._wake:
            while not self._waiting and not self._closed:
                self._wake.wait()
            if self._closed:
                return []
            batch: list[_Step] = []
            later: deque[_Step] = deque()
            rows, caches = 0, set[int]()
            while self._waiting:
                step = self._waiting.popleft()
                if step.future.cancelled():
                    continue
                fits = not batch or rows + len(step.source) <= MAX_ROWS
                if fits and id(step.cache) not in caches:
                    batch.append(step)
                    rows += len(step.source)
                else:
                    later.append(step)
                caches.add(id(step.cache))
            self._waiting = later
            return batch

    def _run(self) -> None:
        torch.set_grad_enabled(False)
        while not self._closed:
            batch = self._take()
            for step, outcome in zip(batch, self._outcomes(batch), strict=True):
                _deliver(step, outcome)

    def _outcomes(self, batch: list[_Step]) -> Sequence[StepResult | Exception]:
        """What each step gives: one session's failure must not become another's."""
        if not batch:
            return []
        try:
            return self._compute(batch)
        except Exception as error:  # noqa: BLE001 - handed to the waiter, which raises it
            if len(batch) == 1:
                return [error]
        return [outcome for step in batch for outcome in self._outcomes([step])]

    def _compute(self, batch: list[_Step]) -> list[StepResult]:
        rows = torch.cat([self._rows(step) for step in batch])
        segments = [Segment(s.cache, s.start, len(s.source)) for s in batch]
        out = self.decoder.forward(rows, segments)
        array = cast("NDArray[np.int64]", cast(Any, out.cpu()).numpy())
        stops = np.cumsum([len(s.source) for s in batch])
        drawing = [int(stop) - 1 for s, stop in zip(batch, stops, strict=True) if s.draw]
        logits = iter(self.decoder.logits(out[drawing]) if drawing else ())
        results: list[StepResult] = []
        for step, stop in zip(batch, stops, strict=True):
            widths, encoded = encode_rows(array[int(stop) - len(step.source) : int(stop)])
            token = None
            if step.draw is not None:
                token = _draw(next(logits), step.draw, step.start + len(step.source))
            results.append(
                StepResult(
                    widths,
                    tuple(bytes(row) for row in encoded),
                    tuple(row_hash(row) for row in encoded),
                    token,
                )
            )
        return results

    def _rows(self, step: _Step) -> torch.Tensor:
        if isinstance(step.source, tuple):
            return self.decoder.embed(step.source)
        return torch.as_tensor(step.source).to(self.decoder.device)


def _draw(logits: torch.Tensor, draw: Draw, position: int) -> SampledToken:
    token = choose(logits, draw.sampling, draw.prompt, draw.generated, position)
    if draw.top_logprobs < 0:
        return SampledToken(position, token)
    best = _integers(likeliest(logits, draw.top_logprobs)) if draw.top_logprobs else []
    ids = [token, *best]
    chosen = torch.tensor(ids, device=logits.device)
    values = _integers(log_probabilities(logits, chosen))
    top = tuple(zip(best, values[1:], strict=True))
    return SampledToken(position, token, values[0], top)


def _integers(x: torch.Tensor) -> list[int]:
    return cast("list[int]", cast(Any, x).tolist())


def _deliver(step: _Step, outcome: StepResult | Exception) -> None:
    def set_outcome() -> None:
        if step.future.done():
            return
        if isinstance(outcome, Exception):
            step.future.set_exception(outcome)
        else:
            step.future.set_result(outcome)

    step.loop.call_soon_threadsafe(set_outcome)
