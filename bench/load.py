"""Many answers at once from any OpenAI-compatible endpoint, ours or another engine's."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

MOST_STREAMS = 1024


class LoadError(RuntimeError):
    """The endpoint did not answer every stream as an OpenAI-compatible one does."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one round of simultaneous answers took."""

    streams: int
    tokens: int
    """Generated tokens of all streams, as the endpoint counts them."""
    fewest_tokens: int
    """Tokens of the shortest answer: below `max_tokens`, an answer ended early by itself."""
    wall_seconds: float
    """From the first request sent to the last answer complete."""
    tokens_per_second: float
    """`tokens` over `wall_seconds`, so reading the prompts is included."""
    first_token_p50: float
    first_token_p95: float
    """Seconds from a request to the first text of its answer, over the streams."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One stream: seconds to its first text, and its generated tokens."""

    first_token: float
    tokens: int


async def load(
    base_url: str,
    streams: int,
    max_tokens: int,
    prompts: Sequence[str],
    model: str,
    *,
    ignore_eos: bool = False,
    seconds: float = 300,
) -> Load:
    """Ask `base_url`/completions for `streams` greedy answers at once, one request each.

    Stream i gets prompt i, starting over when there are fewer prompts. `ignore_eos` asks the
    server to go on after an end token, which only some (llama-server) know. The round as a
    whole is given up after `seconds`.

    Raises ValueError for counts that make no round, and LoadError if a request fails, if the
    endpoint reports no usage, or if the round takes longer than `seconds`.
    """
    if not (1 <= streams <= MOST_STREAMS and max_tokens >= 1 and prompts):
        raise ValueError(
            f"cannot load with {streams} streams, {max_tokens} tokens and {len(prompts)} prompts; "
            f"expected 1 to {MOST_STREAMS} streams, at least one token and one prompt"
        )
    bodies = [
        _body(prompts[i % len(prompts)], max_tokens, model, ignore_eos) for i in range(streams)
    ]
    limits = httpx.Limits(max_connections=streams, max_keepalive_connections=streams)
    # The round as a whole is bounded below; a queued stream may wait that long for its turn.
    timeout = httpx.Timeout(seconds)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=timeout) as client:
        start = time.perf_counter()
        answers = await _all(client, bodies, seconds)
        wall = time.perf_counter() - start
    return _summary(answers, wall)


def _body(prompt: str, max_tokens: int, model: str, ignore_eos: bool) -> dict[str, object]:
    body: dict[str, object] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return {**body, "ignore_eos": True} if ignore_eos else body


async def _all(
    client: httpx.AsyncClient, bodies: list[dict[str, object]], seconds: float
) -> list[Answer]:
    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            tasks = [group.create_task(_answer(client, body)) for body in bodies]
    except TimeoutError:
        raise LoadError(
            f"{len(bodies)} streams of {client.base_url} were not complete after {seconds:.0f} s; "
            "ask for fewer streams or tokens, or give more seconds"
        ) from None
    except ExceptionGroup as failed:
        # The first failure cancelled the other streams, so it is the one to report.
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _answer(client: httpx.AsyncClient, body: dict[str, object]) -> Answer:
    start, first, tokens = time.perf_counter(), None, None
    try:
        async with client.stream("POST", "completions", json=body) as response:
            if response.status_code != 200:
                said = (await response.aread()).decode(errors="replace")
                raise LoadError(
                    f"{response.url} answered {response.status_code} instead of 200: {said[:500]}"
                )
            async for event in _events(response):
                if first is None and any(c.get("text") for c in event.get("choices") or ()):
                    first = time.perf_counter() - start
                if event.get("usage"):
                    tokens = int(event["usage"]["completion_tokens"])
    except httpx.HTTPError as error:
        raise LoadError(
            f"a stream of {client.base_url} broke ({error!r}); see that the server still runs"
        ) from error
    if first is None or tokens is None:
        raise LoadError(
            f"a stream of {client.base_url} ended without text or without usage; the endpoint "
            "must honour stream_options.include_usage, or tokens cannot be counted"
        )
    return Answer(first, tokens)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, to its end mark."""
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise LoadError(f"{response.url} sent {data[:200]!r}, expected JSON") from None
        if "error" in event:
            raise LoadError(f"{response.url} ended a stream with an error: {event['error']}")
        yield event


def _summary(answers: list[Answer], wall: float) -> Load:
    tokens = sum(answer.tokens for answer in answers)
    waits = sorted(answer.first_token for answer in answers)
    return Load(
        streams=len(answers),
        tokens=tokens,
        fewest_tokens=min(answer.tokens for answer in answers),
        wall_seconds=wall,
        tokens_per_second=tokens / wall,
        first_token_p50=_percentile(waits, 0.50),
        first_token_p95=_percentile(waits, 0.95),
    )


def _percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1]
