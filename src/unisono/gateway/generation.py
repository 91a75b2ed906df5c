"""All choices of one request, side by side."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from unisono.clock import Clock
from unisono.errors import (
    AnswerInterrupted,
    NetworkError,
    OfferMissing,
    RequestError,
    WireError,
)
from unisono.gateway.admission import Admission, Permit
from unisono.gateway.completion import Ended, Event, Opened, Piece
from unisono.gateway.dispatch import Dispatch, Route, trouble_of
from unisono.gateway.metrics import GatewayMetrics
from unisono.gateway.requests import Ask
from unisono.gateway.sources import Origin, Source
from unisono.gateway.watch import Trouble

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing has happened for a while."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A choice failed, and with it the request."""

    error: BaseException


class Generation:
    """Finds a source for a request, starts its choices, merges their events, and cleans up.

    Events wait in memory without bound, which the request's `max_tokens` bounds: a client
    that reads slowly does not keep nodes reserved.
    """

    def __init__(
        self,
        ask: Ask,
        dispatch: Dispatch,
        admission: Admission,
        clock: Clock,
        metrics: GatewayMetrics,
        ended: Callable[[bool], None] | None = None,
    ) -> None:
        """`ended` is told of every choice how it ended, unless the client ended it or is at fault
        itself."""
        self.ask = ask
        """As the source that answers was asked; until `start` has ended, as the client asked."""
        self.receipt_ids = tuple(secrets.token_hex(16) for _ in ask.requests)
        """One per choice, good once the choice has ended and its receipt is stored."""
        self._dispatch = dispatch
        self._admission = admission
        self._clock = clock
        self._metrics = metrics
        self._ended = ended
        self._permit: Permit | None = None
        self._route: Route | None = None
        self._source: Source | None = None
        self._trouble: Trouble | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._unfinished = len(ask.requests)
        self._early: deque[Event] = deque()
        self._queue: asyncio.Queue[Event | Failed | Silence] = asyncio.Queue()
        self._happened = 0

    @property
    def origin(self) -> Origin:
        """Who answers. Only after `start`."""
        assert self._source is not None, "the generation has not been started"
        return self._source.origin(self.ask)

    def headers(self) -> dict[str, str]:
        """What the response says of the network, also after `start` failed."""
        if self._route is None:
            return {}
        return self._route.headers(self._trouble, self._source)

    async def start(self) -> None:
        """Wait for a place and for a source that begins every choice. Call `close` in any case.

        Raises:
            Busy: too many answers are being computed.
            CoverageMissing, CapacityMissing, NetworkUnreachable: the network cannot serve a
                choice, and no fallback does.
        """
        self._permit = await self._admission.enter(self.ask.answers)
        self._metrics.tokens_in.labels(self.ask.model.name).inc(self.ask.prompt_tokens)
        asked, route = self.ask, self._dispatch.route(self.ask)
        self._route = route
        failures: list[str] = []
        failed: NetworkError | None = None
        for source in route.sources:
            try:
                ask = await source.prepare(asked)
                await self._open(source, ask)
            except (NetworkError, WireError, RequestError) as error:
                await self._discard()
                if source.kind == "network":
                    failed = error if isinstance(error, NetworkError) else NetworkError(str(error))
                    failed = self._dispatch.explained(failed, ())
                    self._trouble = trouble_of(failed)
                    if not self._dispatch.goes_on_after(failed):
                        break
                    continue
                self._metrics.fallback_failures.labels(source.kind).inc()
                log.warning("the fallback %s does not answer: %s", source.label, error)
                failures.append(f"{source.label}: {error}")
                continue
            self.ask, self._source = ask, source
            for task in self._tasks:
                if task.done() and not task.cancelled():
                    self._count(task)
            if self._unfinished == 0:
                self._release()
            if source.kind != "network":
                reason = self._trouble or route.condition.trouble or Trouble.ERROR
                self._metrics.fallbacks.labels(source.kind, reason.value).inc()
            return
        assert failed is not None, "the network is always asked"
        if self._ended is not None and not isinstance(failed, OfferMissing):
            self._ended(False)
        raise self._dispatch.explained(failed, failures)

    async def _open(self, source: Source, ask: Ask) -> None:
        """Start every choice at `source` and return when all have opened."""
        self._unfinished = len(ask.requests)
        for index in range(len(ask.requests)):
            work = source.run(ask, index, self.receipt_ids[index], self._put)
            task = asyncio.create_task(work)
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

    async def _discard(self) -> None:
        """Cancel what a source began and forget what it said; the place is kept."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.remove_done_callback(self._done)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._early.clear()
        self._queue = asyncio.Queue()

    async def events(
        self, silence_seconds: float | None = None
    ) -> AsyncIterator[Piece | Ended | Silence]:
        """What happens, until every choice has ended.

        With `silence_seconds`, a `Silence` whenever that long passes without an event (it
        may come up to twice as late).

        Raises:
            AnswerInterrupted: a hop of some choice was lost and none replaces it, or no majority
                of its quorum agrees.
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

    @property
    def has_more(self) -> bool:
        """Whether `events` has something that it does not have to wait for."""
        return bool(self._early) or not self._queue.empty()

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
        # A source that failed gives its place to the next one.
        if self._unfinished == 0 and self._source is not None:
            self._release()
        if task.cancelled():
            # By `close`, when nobody listens any more, or by something inside the network.
            self._put(Failed(AnswerInterrupted("the answer was cancelled: try again")))
            return
        if self._source is not None:
            self._count(task)
        if (error := task.exception()) is not None:
            if isinstance(error, AnswerInterrupted):
                self._dispatch.interrupted()
            self._put(Failed(error))

    def _count(self, task: asyncio.Task[None]) -> None:
        error = task.exception()
        if self._ended is not None and not isinstance(error, RequestError):
            self._ended(error is None)

    def _release(self) -> None:
        if self._permit is not None:
            self._permit.release()

    async def _tick(self, seconds: float) -> None:
        while True:
            before = self._happened
            await self._clock.sleep(seconds)
            if self._happened == before:
                self._queue.put_nowait(Silence())
