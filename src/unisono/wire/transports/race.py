"""Several ways to open a stream, tried one after another until one works."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerGone, WireError
from unisono.wire.transports.base import Stream


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way, and how long the ones before it may take before this one starts beside them."""

    open: Callable[[], Awaitable[Stream]]
    patience: float = 0.0
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Won:
    """The stream, which attempt opened it, and the attempts that are still under way."""

    stream: Stream
    index: int
    others: dict[int, asyncio.Task[Stream]]


async def race(attempts: Sequence[Attempt], clock: Clock) -> Won:
    """The first stream that opens. An attempt starts when those before it failed, or when its
    patience with them is over. If this is cancelled, so are all attempts.

    Raises:
        PeerCheating: all failed, and one since it reached somebody else.
        PeerGone: all failed.
    """
    running: dict[asyncio.Task[Stream], int] = {}
    errors: list[WireError] = []
    timer: asyncio.Task[None] | None = None
    started = 0
    won: Won | None = None
    try:
        while True:
            due = timer is not None and timer.done()
            if started < len(attempts) and (not running or due):
                running[asyncio.ensure_future(_open(attempts[started]))] = started
                started += 1
                if timer is not None:
                    timer.cancel()
                timer = None
                if started < len(attempts):
                    timer = asyncio.ensure_future(clock.sleep(attempts[started].patience))
            elif not running:
                break
            waits = {*running, *({timer} if timer is not None else ())}
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in [t for t in running if t in done]:
                index = running.pop(task)
                try:
                    stream = task.result()
                except WireError as error:
                    errors.append(error)
                    continue
                if won is not None:
                    await stream.close()  # two opened in the same moment
                    continue
                won = Won(stream, index, {})
            if won is not None:
                won.others.update({i: t for t, i in running.items()})
                running.clear()
                return won
    finally:
        if timer is not None:
            timer.cancel()
        await discard(list(running))
    problem = "; ".join(str(error) for error in errors)
    if any(isinstance(error, PeerCheating) for error in errors):
        raise PeerCheating(problem)
    raise PeerGone(problem)


async def discard(tasks: Sequence[asyncio.Task[Stream]]) -> None:
    """Cancel attempts, and close what they opened all the same."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(result, BaseException):
            await result.close()


async def _open(attempt: Attempt) -> Stream:
    return await attempt.open()
