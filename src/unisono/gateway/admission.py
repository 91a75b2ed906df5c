"""Who may come in, and when."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import deque
from collections.abc import Sequence

from unisono.clock import Clock
from unisono.gateway.errors import Busy, KeyRefused
from unisono.gateway.race import Overtaken, unless
from unisono.gateway.settings import GatewaySettings


class KeyRing:
    """The API keys that a gateway accepts, kept as hashes of equal length."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def check(self, authorization: str | None) -> None:
        """Admit the bearer of an `Authorization` header.

        Raises:
            KeyRefused: keys are required and this is none of them.
        """
        if not self._hashes:
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise KeyRefused(
                "You didn't provide an API key: send it in the header "
                "'Authorization: Bearer YOUR_KEY'"
            )
        asked = hashlib.sha256(key.strip().encode()).digest()
        # Every key is compared, so that the time says nothing about which one was close.
        known = [hmac.compare_digest(asked, each) for each in self._hashes]
        if not any(known):
            raise KeyRefused("Incorrect API key provided: ask the gateway's operator for one")


class Permit:
    """The right to compute some answers at the same time, until it is released."""

    def __init__(self, admission: Admission, answers: int) -> None:
        self._admission = admission
        self._answers = answers

    def release(self) -> None:
        """Give the places back; idempotent."""
        answers, self._answers = self._answers, 0
        self._admission.leave(answers)


class Admission:
    """A limited number of places for answers, and a limited queue in front of it.

    First come, first served: a request with many choices is not overtaken by small ones.
    """

    def __init__(self, settings: GatewaySettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._running = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def running(self) -> int:
        """Answers being computed."""
        return self._running

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    async def enter(self, answers: int) -> Permit:
        """Wait for `answers` places.

        Raises:
            Busy: the queue is full, or the wait was longer than `queue_seconds`.
        """
        if self._queue or not self._fits(answers):
            await self._wait(answers)
        else:
            self._running += answers
        return Permit(self, answers)

    def leave(self, answers: int) -> None:
        """Free `answers` places and let in who is next."""
        self._running -= answers
        while self._queue and self._fits(self._queue[0][0]):
            count, turn = self._queue.popleft()
            if not turn.done():
                self._running += count
                turn.set_result(None)

    def _fits(self, answers: int) -> bool:
        return self._running + answers <= self._settings.max_running_answers

    async def _wait(self, answers: int) -> None:
        settings = self._settings
        if len(self._queue) >= settings.max_queued_requests:
            raise Busy(
                f"This gateway computes {settings.max_running_answers} answers at a time and "
                f"{len(self._queue)} requests wait already: try again later",
                settings.retry_after_seconds,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (answers, turn)
        self._queue.append(entry)
        try:
            await unless(self._clock.sleep(settings.queue_seconds), _come(turn))
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # The turn came at the very moment of giving up: pass it on.
                self.leave(answers)
            else:
                self._queue.remove(entry)
                # Whoever stood behind may be small enough for what is free.
                self.leave(0)
            if isinstance(error, Overtaken):
                raise Busy(
                    f"No place became free within {settings.queue_seconds:g} seconds: "
                    "try again later",
                    settings.retry_after_seconds,
                ) from None
            raise


async def _come(turn: asyncio.Future[None]) -> None:
    # Shielded, because cancelling the wait must not look like a turn that was taken.
    await asyncio.shield(turn)
