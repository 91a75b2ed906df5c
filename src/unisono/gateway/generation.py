"""All choices of one request, side by side."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from unisono.errors import AnswerInterrupted
from unisono.gateway.admission import Admission, Permit
from unisono.gateway.completion import Completion, Ended, Engine, Event, Opened, Piece
from unisono.gateway.requests import Ask


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing has happened for a while."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A choice failed, and with it the request."""

    error: BaseException


class Generation:
    """Starts the choices of a request, merges their events, and cleans up behind them.

    Events wait in memory without bound, which the request's `max_tokens` bounds: a client
    that reads slowly does not keep nodes reserved.
    """

    def __init__(self, ask: Ask, engine: Engine, admission: Admission) -> None:
        self.ask = ask
        self.receipt_ids = tuple(secrets.token_hex(16) for _ in ask.requests)
        """One per choice, good once the choice has ended and every hop has signed."""
        self._engine = engine
        self._admission = admission
        self._permit: Permit | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._unfinished = len(ask.requests)
        self._early: deque[Event] = deque()
        self._queue: asyncio.Queue[Event | Failed | Silence] = asyncio.Queue()
        self._happened = 0

    async def start(self) -> None:
        """Wait for a place and have every choice's nodes reserved. Call `close` in any case.

        Raises:
            Busy: too many answers are being computed.
            CoverageMissing, CapacityMissing: the network cannot serve a choice.
        """
        ask = self.ask
        self._permit = await self._admission.enter(len(ask.requests))
        self._engine.metrics.tokens_in.labels(ask.model.name).inc(ask.prompt_tokens)
        for index, request in enumerate(ask.requests):
            completion = Completion(
                self._engine,
                ask.model,
                request,
                index=index,
                receipt_id=self.receipt_ids[index],
                top_logprobs=ask.top_logprobs,
                emit=self._put,
            )
            task = asyncio.create_task(completion.run())
            task.add_done_callback(self._done)
            self._tasks.append(task)
        waiting = len(ask.requests)
        while waiting:
            event = await self._queue.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Opened):
                waiting -= 1
            elif not isinstance(event, Silence):
                self._early.append(event)

    async def events(
        self, silence_seconds: float | None = None
    ) -> AsyncIterator[Piece | Ended | Silence]:
        """What happens, until every choice has ended.

        With `silence_seconds`, a `Silence` whenever that long passes without an event (it
        may come up to twice as late).

        Raises:
            AnswerInterrupted: a hop of some choice was lost and none replaces it.
        """
        remaining = len(self.ask.requests)
        ticking = (
            None if silence_seconds is None else asyncio.create_task(self._tick(silence_seconds))
        )
        try:
            while remaining:
                event = self._early.popleft() if self._early else await self._queue.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Opened):
                    continue
                if isinstance(event, Ended):
                    remaining -= 1
                yield event
        finally:
            if ticking is not None:
                ticking.cancel()

    async def close(self) -> None:
        """Cancel what still runs, and free the nodes and the place; idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._release()

    def _put(self, event: Event | Failed) -> None:
        self._happened += 1
        self._queue.put_nowait(event)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._unfinished -= 1
        if self._unfinished == 0:
            self._release()
        if task.cancelled():
            # By `close`, when nobody listens any more, or by something inside the network.
            self._put(Failed(AnswerInterrupted("the answer was cancelled: try again")))
        elif (error := task.exception()) is not None:
            self._put(Failed(error))

    def _release(self) -> None:
        if self._permit is not None:
            self._permit.release()

    async def _tick(self, seconds: float) -> None:
        while True:
            before = self._happened
            await self._engine.clock.sleep(seconds)
            if self._happened == before:
                self._queue.put_nowait(Silence())
