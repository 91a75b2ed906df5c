"""The engine: one compute thread that runs the block for many sessions at once.

The event loop hands over steps; the thread takes whatever waits and runs it as passes: decode
steps of all sessions together, and beside them a bounded piece of the prompts, so that no token
waits behind a long prompt. It alone touches the pages of keys and values. When they run out,
the youngest session's are moved out until there is room again; the oldest always goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from unisono.errors import UnisonoError
from unisono.execution.pace import PassCost
from unisono.models.cache import OutOfPages, Prefix, SessionCache
from unisono.models.decoder import GREEDY, Choice, Decoder, Draw, Rows, Segment
from unisono.models.rows import row_hashes
from unisono.types import Distribution, SampledToken
from unisono.wire.rows import encode_rows

log = logging.getLogger(__name__)

MAX_ROWS = 256
"""Rows of one pass."""
PROMPT_ROWS = 64
"""Rows of prompts in a pass while sessions decode: bounds how long a token waits."""
DECODES_REMEMBERED = 3
DECODE_ROWS = 8
"""A step of at most this many rows is decoding."""
IDLE_SECONDS = 2.0
"""A session whose rows do not come for so long may be moved out for a younger one."""
WARM_UP_STEPS = (1, 1, 4, 1, 4, 1)
"""Rows of the decode passes with which a node measures itself."""
BUSY_WINDOW = 0.5
"""Seconds over which the busy share of the thread is averaged."""

_T = TypeVar("_T")
Source = Rows | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced."""

    widths: bytes
    encoded: tuple[bytes, ...]
    """Each row out in its canonical encoding (`wire.rows`)."""
    hashes: tuple[bytes, ...]
    tokens: tuple[SampledToken, ...]
    """What was drawn, after the last rows."""
    distributions: tuple[Distribution, ...] = ()
    """What was told instead, where the draws say so."""


@dataclass(slots=True, eq=False)
class _Step:
    cache: SessionCache
    start: int
    source: Source
    """Rows from the hop before, or token ids on the first hop."""
    draws: tuple[Draw, ...]
    """How to choose a token after each of the last rows."""
    future: asyncio.Future[StepResult]
    loop: asyncio.AbstractEventLoop = field(repr=False)
    parts: list[Rows] = field(default_factory=lambda: [])
    """Rows out, of what ran already."""
    tokens: list[SampledToken] = field(default_factory=lambda: [])
    distributions: list[Distribution] = field(default_factory=lambda: [])
    done: int = 0

    @property
    def left(self) -> int:
        return len(self.source) - self.done


@dataclass(frozen=True, slots=True)
class _Part:
    """What one pass does of a step."""

    step: _Step
    count: int

    @property
    def draws(self) -> list[tuple[int, Draw]]:
        """What is drawn after rows of this part, as (row of the part, how)."""
        first = len(self.step.source) - len(self.step.draws) - self.step.done
        rows = range(max(0, first), self.count)
        return [(row, self.step.draws[row - first]) for row in rows]


class Engine:
    """Runs steps of sessions on a decoder, in the order they came, in a thread of its own."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._waiting: deque[_Step] = deque()
        self._posted: dict[asyncio.AbstractEventLoop, list[_Step]] = {}
        """Steps of a loop's present turn. They wait together from its end on: taken one by one,
        they would be passes of their own."""
        self._errands: deque[Callable[[], None]] = deque()
        self._resident: dict[SessionCache, int] = {}
        """Sessions that have begun, with the number of their first step: their age."""
        self._begun = 0
        self._used: dict[SessionCache, float] = {}
        """When they were last part of a pass."""
        self.cost = PassCost()
        self.decoding = 0
        """Sessions in the last pass that decoded."""
        self._busy = 0.0
        self._measured = time.monotonic()
        self._row_seconds = 0.0
        self._decoded = 0
        """Passes for which some session still counts as decoding."""
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return sum(step.left for step in tuple(self._waiting))

    @property
    def idle(self) -> float:
        """The share of recent time in which nothing was computed, 0 to 1."""
        quiet = time.monotonic() - self._measured
        return 1.0 - self._busy * max(0.0, 1.0 - quiet / BUSY_WINDOW)

    @property
    def row_seconds(self) -> float:
        """Time per row of a prompt; 0 until one was seen."""
        return self._row_seconds

    async def step(
        self, cache: SessionCache, start: int, source: Source, draws: Sequence[Draw] = ()
    ) -> StepResult:
        """Run rows (int64 [n, hidden]) or token ids of one session from position `start`, and
        draw a token after each of the last `len(draws)` rows.

        Raises:
            UnisonoError: what the decoder raises, or the engine was closed.
        """
        loop = asyncio.get_running_loop()
        step = _Step(cache, start, source, tuple(draws), loop.create_future(), loop)
        if self._closed:
            raise UnisonoError("the engine is closed")
        turn = self._posted.get(loop)
        if turn is None:
            turn = self._posted[loop] = []
            loop.call_soon(self._hand_over, loop)
        turn.append(step)
        return await step.future

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        steps = self._posted.pop(loop, None)
        if steps:
            with self._wake:
                self._waiting += steps
                self._wake.notify()

    def _hand_over_all(self) -> None:
        for loop in tuple(self._posted):
            self._hand_over(loop)

    async def warm_up(self) -> None:
        """Run some passes over made-up rows: weights and code are in place for the first answer,
        and the node knows its speed."""
        hidden = self.decoder.config.hidden_size
        rows = np.random.default_rng(0).integers(-(1 << 20), 1 << 20, (PROMPT_ROWS, hidden))
        cache = self.decoder.new_cache(PROMPT_ROWS + sum(WARM_UP_STEPS))
        try:
            await self.step(cache, 0, rows)
            position = PROMPT_ROWS
            for count in WARM_UP_STEPS:
                draws = ()
                if self.decoder.ends[1]:  # what a token costs includes the output matrix
                    draws = (GREEDY,) * count
                await self.step(cache, position, rows[:count], draws)
                position += count
        finally:
            self.release(cache)

    async def adopt(self, cache: SessionCache, keys: Sequence[bytes]) -> list[Prefix]:
        """Let a session hold the pages that earlier ones left under these keys; `begin` follows."""

        def find() -> list[Prefix]:
            found = self.decoder.store.find(keys)
            if found:
                cache.adopt(found)
                self._enter(cache)
            return found

        return await self._errand(find)

    def begin(self, cache: SessionCache, pages: int) -> None:
        """Let a session begin behind so many of the pages that it adopted."""
        self._send(lambda: cache.begin(pages))

    def keep(
        self,
        cache: SessionCache,
        keys: Sequence[bytes],
        hashes: tuple[Sequence[bytes], ...],
        rows: Sequence[memoryview] = (),
    ) -> None:
        """Let a session's complete page outlive it, with the hashes of its rows in and out and the
        rows in themselves, if they are given. It is the last of the pages that `keys` name."""
        incoming, outgoing = (tuple(h) for h in hashes)

        def hold() -> None:
            pages = cache.page(len(keys) - 1)
            if pages is not None:
                prefix = Prefix(pages, (incoming, outgoing), tuple(rows))
                self.decoder.store.keep(keys, prefix)

        self._send(hold)

    def release(self, cache: SessionCache) -> None:
        """Free a session's pages, as soon as no pass uses them."""

        def free() -> None:
            for step in [s for s in self._waiting if s.cache is cache]:
                self._waiting.remove(step)
                _deliver([(step, UnisonoError("the session was closed"))])
            self._resident.pop(cache, None)
            self._used.pop(cache, None)
            cache.close()

        self._hand_over_all()  # a step that was posted before must not come after
        self._send(free)

    async def close(self) -> None:
        """Let the running pass end, and drop what waits."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        self._hand_over_all()
        while self._waiting:
            _deliver([(self._waiting.popleft(), UnisonoError("the engine is closed"))])
        while self._errands:
            self._errands.popleft()()
        self.decoder.close()

    def _send(self, errand: Callable[[], None]) -> None:
        with self._wake:
            self._errands.append(errand)
            self._wake.notify()

    async def _errand(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def run() -> None:
            result = work()
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(result))

        self._send(run)
        return await future

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._errands or self._closed):
                    self._wake.wait()
                if self._closed:
                    return
                errands = list(self._errands)
                self._errands.clear()
                for errand in errands:  # under the lock: they may alter what waits
                    errand()
                batch = self._take()
                if not batch and self._waiting and not self._errands:
                    self._wake.wait()  # for room: until a session goes, or an older one comes
            if batch:
                begun = time.monotonic()
                outcomes = self._outcomes(batch)
                self._observe(batch, begun, time.monotonic())
                self._settle(batch, outcomes)

    def _observe(self, batch: list[_Part], begun: float, ended: float) -> None:
        """Keep what a pass cost."""
        seconds, rows = ended - begun, sum(part.count for part in batch)
        if all(part.step.left <= DECODE_ROWS for part in batch):
            self.cost.observe(rows, seconds)
            self.decoding = len(batch)
        elif rows >= PROMPT_ROWS:
            known = self._row_seconds or seconds / rows
            self._row_seconds = 0.8 * known + 0.2 * seconds / rows
        elapsed = ended - self._measured
        weight = min(1.0, elapsed / BUSY_WINDOW)
        self._busy += weight * (seconds / max(elapsed, 1e-9) - self._busy)
        self._measured = ended
        for part in batch:
            self._used[part.step.cache] = ended

    def _take(self) -> list[_Part]:
        """What the next pass does: at most one step of each session, decode steps first."""
        waiting = [s for s in self._waiting if not s.future.cancelled()]
        self._waiting = deque(waiting)
        first: dict[int, _Step] = {}
        for step in waiting:
            first.setdefault(id(step.cache), step)
        ready = sorted(first.values(), key=lambda s: s.left > DECODE_ROWS)
        # a session that decodes sends its next row while the next pass begins already
        decoding = bool(ready) and ready[0].left <= DECODE_ROWS
        self._decoded = DECODES_REMEMBERED if decoding else max(0, self._decoded - 1)
        room, prompts = MAX_ROWS, PROMPT_ROWS if self._decoded else MAX_ROWS
        batch: list[_Part] = []
        for step in ready:
            count = min(step.left, room)
            if step.left > DECODE_ROWS:
                count = min(count, prompts)
            if count < 1:
                continue
            count = self._make_room(step, count, batch)
            if not count:
                continue
            room -= count
            if step.left > DECODE_ROWS:
                prompts -= count
            batch.append(_Part(step, count))
        return batch

    def _enter(self, cache: SessionCache) -> int:
        if cache not in self._resident:
            self._begun += 1
            self._resident[cache] = self._begun
        return self._resident[cache]

    def _make_room(self, step: _Step, count: int, batch: list[_Part]) -> int:
        """Bring in what the step needs, moving out other sessions if it must; returns how many of
        its rows can go, 0 if it has to wait.

        Errors other than a lack of room are left to the pass, which reports them.
        """
        self._enter(step.cache)
        while True:
            try:
                if step.cache.moved_out:
                    step.cache.move_in()
                begin = step.start + step.done
                step.cache.reserve(begin, begin + count)
            except OutOfPages:
                victim = self._victim(step.cache, batch)
                if victim is not None:
                    log.info("out of pages: a session of %d positions is moved out", victim.length)
                    victim.move_out()
                elif count > DECODE_ROWS:
                    count //= 2  # fewer rows may need fewer pages at once
                else:
                    # alone with all of the memory: it will never fit, and the pass says so
                    others = (c.held for c in self._resident if c is not step.cache)
                    return 0 if any(others) else count
            except UnisonoError:
                return count
            else:
                return count

    def _victim(self, cache: SessionCache, batch: list[_Part]) -> SessionCache | None:
        """Who has to go for a session: the youngest that came after it, or else one whose rows
        have not come for long."""
        age, now = self._resident[cache], time.monotonic()
        busy = {id(p.step.cache) for p in batch} | {id(cache)}
        others = [(a, c) for c, a in self._resident.items() if c.held and id(c) not in busy]
        younger = [(a, c) for a, c in others if a > age]
        if younger:
            return max(younger, key=lambda found: found[0])[1]
        waiting = {id(s.cache) for s in self._waiting}
        idle = [
            (self._used.get(c, now), c)
            for _, c in others
            if id(c) not in waiting and now - self._used.get(c, now) > IDLE_SECONDS
        ]
        return min(idle, key=lambda found: found[0])[1] if idle else None

    def _outcomes(self, batch: list[_Part]) -> Sequence[Any]:
        """What each step gives: one session's failure must not become another's."""
        if not batch:
            return []
        try:
            return self._compute(batch)
        except Exception as error:  # noqa: BLE001 - handed to the waiter, which raises it
            if len(batch) == 1:
                return [error]
        return [outcome for part in batch for outcome in self._outcomes([part])]

    def _compute(self, batch: list[_Part]) -> list[tuple[Rows, list[tuple[int, Choice]]]]:
        rows = np.concatenate([self._rows(part) for part in batch])
        segments = [Segment(p.step.cache, p.step.start + p.step.done, p.count) for p in batch]
        out = self.decoder.forward(rows, segments)
        drawing: list[tuple[int, int, Draw]] = []
        first = 0
        for part in batch:
            position = part.step.start + part.step.done + 1
            drawing += [(first + row, position + row, draw) for row, draw in part.draws]
            first += part.count
        choices = iter(self.decoder.choose(out, drawing) if drawing else ())
        results: list[tuple[Rows, list[tuple[int, Choice]]]] = []
        first = 0
        for part in batch:
            position = part.step.start + part.step.done + 1
            chosen = [(position + row, next(choices)) for row, _ in part.draws]
            results.append((out[first : first + part.count], chosen))
            first += part.count
        return results

    def _rows(self, part: _Part) -> Rows:
        step = part.step
        source = step.source[step.done : step.done + part.count]
        return self.decoder.embed(source) if isinstance(source, tuple) else source

    def _settle(self, batch: list[_Part], outcomes: Sequence[Any]) -> None:
        """Deliver the steps that are done, or failed."""
        ready: list[tuple[_Step, StepResult | Exception]] = []
        done: list[_Step] = []
        for part, outcome in zip(batch, outcomes, strict=True):
            step = part.step
            if isinstance(outcome, Exception):
                ready.append((step, outcome))
                continue
            rows, chosen = outcome
            step.parts.append(rows)
            for at, choice in chosen:
                if choice.distribution is not None:
                    step.distributions.append(choice.distribution)
                else:
                    step.tokens.append(SampledToken(at, choice.token, choice.logprob, choice.top))
            step.done += part.count
            if step.left == 0:
                done.append(step)
        ready += zip(done, _results(done), strict=True)
        with self._wake:
            for step, _ in ready:
                if step in self._waiting:
                    self._waiting.remove(step)
        _deliver(ready)


def _results(steps: Sequence[_Step]) -> list[StepResult]:
    """What steps produced; their rows are encoded in one go."""
    if not steps:
        return []
    parts = [part for step in steps for part in step.parts]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    widths, encoded = encode_rows(joined)
    hashes = row_hashes(joined)
    results: list[StepResult] = []
    first = 0
    for step in steps:
        stop = first + len(step.source)
        results.append(
            StepResult(
                widths[first:stop],
                tuple(bytes(row) for row in encoded[first:stop]),
                tuple(hashes[first:stop]),
                tuple(step.tokens),
                tuple(step.distributions),
            )
        )
        first = stop
    return results


def _deliver(ready: Sequence[tuple[_Step, StepResult | Exception]]) -> None:
    """Hand outcomes over, those of one loop together: what they send then leaves together."""

    def set_outcomes(outcomes: list[tuple[_Step, StepResult | Exception]]) -> None:
        for step, outcome in outcomes:
            if step.future.done():
                continue
            if isinstance(outcome, Exception):
                step.future.set_exception(outcome)
            else:
                step.future.set_result(outcome)

    for loop in {step.loop for step, _ in ready}:
        loop.call_soon_threadsafe(set_outcomes, [r for r in ready if r[0].loop is loop])
