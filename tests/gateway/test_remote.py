"""How a remote endpoint is read, on a transport without sockets and in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.clock import Clock, VirtualClock
from unisono.gateway.errors import FallbackFailed
from unisono.gateway.remote import MAX_REST_SECONDS, RemoteEndpoint, RemoteLimits, RemotePart

Body = Callable[[], AsyncIterator[bytes]]


class Pieces(httpx.AsyncByteStream):
    def __init__(self, body: Body) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._body():
            yield piece


def at(body: Body, clock: Clock, status: int = 200, **limits: Any) -> RemoteEndpoint:
    """An endpoint whose every answer is `body`."""

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"content-type": "text/event-stream"}
        return httpx.Response(status, headers=headers, stream=Pieces(body))

    return RemoteEndpoint(
        "https://far.example/v1",
        "far",
        clock,
        limits=RemoteLimits(**limits),
        transport=httpx.MockTransport(answer),
    )


async def read(endpoint: RemoteEndpoint) -> list[RemotePart]:
    return [part async for part in endpoint.stream("/completions", b"{}")]


def events(texts: Sequence[str], finish: str | None = "stop") -> bytes:
    chunks = [{"choices": [{"index": 0, "text": text}]} for text in texts]
    if finish is not None:
        chunks.append({"choices": [{"index": 0, "text": "", "finish_reason": finish}]})
    lines = [b": a comment", *(b"data: " + json.dumps(chunk).encode() for chunk in chunks)]
    return b"\r\n\r\n".join([*lines, b"data: [DONE]", b""])


texts = st.lists(st.text(max_size=8), max_size=6)


@given(texts, st.lists(st.integers(0, 400), max_size=12))
def test_an_answer_does_not_depend_on_how_its_bytes_are_cut(
    said: list[str], cuts: list[int]
) -> None:
    data = events(said, "length")
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]

    async def body() -> AsyncIterator[bytes]:
        for i in range(len(edges) - 1):
            yield data[edges[i] : edges[i + 1]]

    parts = asyncio.run(read(at(body, VirtualClock())))
    assert [part.text for part in parts] == [*filter(None, said), ""]
    assert parts[-1].finish_reason == "length"
    assert all(part.finish_reason is None for part in parts[:-1])


@given(st.binary(max_size=200))
def test_whatever_an_endpoint_sends_the_answer_is_whole_or_refused(data: bytes) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"data: " + data

    try:
        parts = asyncio.run(read(at(body, VirtualClock())))
    except FallbackFailed:
        return
    assert parts[-1].finish_reason is not None


@pytest.mark.parametrize("finish", ["tool_calls", "x" * 1000, "\x1b[2J"])
async def test_a_finish_reason_that_nobody_knows_is_a_stop(finish: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield events(["a"], finish)

    assert (await read(at(body, VirtualClock())))[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("every", "seconds", "text"),
    [
        (None, 30, "sent no text within 30 seconds"),
        (29.0, 600, "was not done within 600 seconds"),
    ],
)
async def test_silence_and_dribbling_end_in_time(
    every: float | None, seconds: float, text: str
) -> None:
    """A word every 29 seconds is within the limit of silence, and not of the whole."""
    clock = VirtualClock()

    async def body() -> AsyncIterator[bytes]:
        while True:
            await clock.sleep(every or 10_000)
            yield events(["word"], None).replace(b"data: [DONE]", b"")

    endpoint = at(body, clock)
    reading = asyncio.create_task(read(endpoint))
    started = clock.monotonic()
    while not reading.done() and clock.monotonic() < started + 700:
        for _ in range(20):
            await asyncio.sleep(0)
        await clock.advance(1)
    assert reading.done()
    with pytest.raises(FallbackFailed, match=text):
        await reading
    assert clock.monotonic() - started == pytest.approx(seconds, abs=2)


async def test_an_endpoint_rests_longer_after_each_failure_and_not_after_an_answer() -> None:
    clock = VirtualClock()
    good = False

    async def body() -> AsyncIterator[bytes]:
        yield events(["fine"]) if good else b"data: {\n\n"

    endpoint = at(body, clock)
    rests: list[float] = []
    for _ in range(9):
        with pytest.raises(FallbackFailed):
            await read(endpoint)
        rests.append(endpoint.resting)
        await clock.advance(endpoint.resting)
        assert endpoint.resting == 0
    assert rests == [1, 2, 4, 8, 16, 32, MAX_REST_SECONDS, MAX_REST_SECONDS, MAX_REST_SECONDS]
    good = True
    await read(endpoint)
    good = False
    with pytest.raises(FallbackFailed):
        await read(endpoint)
    assert endpoint.resting == 1


async def test_requests_that_fail_together_are_one_failure() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b""

    endpoint = at(body, VirtualClock(), status=500)
    results = await asyncio.gather(*(read(endpoint) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, FallbackFailed) for result in results)
    assert endpoint.resting == 1


async def test_a_key_is_never_in_what_is_printed() -> None:
    endpoint = RemoteEndpoint("http://localhost/v1", "m", VirtualClock(), key="sk-secret")
    assert "sk-secret" not in repr(endpoint) + repr(vars(endpoint))
    await endpoint.close()
