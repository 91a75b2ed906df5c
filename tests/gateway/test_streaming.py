"""Which events of an answer leave together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from unisono.errors import AnswerInterrupted
from unisono.gateway.completion import Ended, Piece
from unisono.gateway.errors import reply_to
from unisono.gateway.metrics import GatewayMetrics
from unisono.gateway.streaming import DONE, EventStream, event


class Turns:
    """A generation whose events are ready in groups; an exception among them ends it."""

    ask = SimpleNamespace(requests=(None,), include_usage=False)

    def __init__(self, *turns: list[Any]) -> None:
        self._turns = turns
        self._ready: deque[Any] = deque()
        self.closed = False

    @property
    def has_more(self) -> bool:
        return bool(self._ready)

    async def events(self, silence_seconds: float) -> AsyncIterator[Any]:
        for turn in self._turns:
            await asyncio.sleep(0)
            self._ready.extend(turn)
            while self._ready:
                happened = self._ready.popleft()
                if isinstance(happened, Exception):
                    raise happened
                yield happened

    async def close(self) -> None:
        self.closed = True


class Plain:
    """Texts and endings as they are."""

    def opening(self, index: int) -> None:
        return None

    def piece(self, piece: Piece) -> str:
        return piece.text

    def ended(self, ended: Ended) -> str:
        return ended.finish_reason


async def bodies(generation: Turns) -> list[bytes]:
    """The bodies that a stream of this generation sends, one per write."""
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    async def receive() -> Any:
        await asyncio.Event().wait()

    service: Any = SimpleNamespace(
        settings=SimpleNamespace(heartbeat_seconds=1.0),
        metrics=GatewayMetrics(),
        closing=asyncio.Event(),
        reply_to=lambda error: reply_to(error, 1),
    )
    parts: Any = generation, Plain()
    await EventStream(*parts, service)({}, receive, send)
    assert generation.closed
    return sent


def piece(text: str) -> Piece:
    return Piece(0, text, ())


def said(*texts: str) -> bytes:
    return b"".join(event(f'"{text}"'.encode()) for text in texts)


async def test_what_is_ready_together_leaves_as_one_write_and_nothing_waits_for_more() -> None:
    ended = Ended(0, "stop", 4, None)
    generation = Turns([piece("a")], [piece("b"), piece("c"), piece("d")], [ended])
    assert await bodies(generation) == [said("a"), said("b", "c", "d"), said("stop"), DONE, b""]


async def test_text_that_was_ready_before_an_interruption_is_sent_before_its_error() -> None:
    first, second, failure, end = await bodies(
        Turns([piece("a")], [piece("b"), piece("c"), AnswerInterrupted("a hop was lost")])
    )
    assert (first, second, end) == (said("a"), said("b", "c"), b"")
    assert b"a hop was lost" in failure
