"""An endpoint outside the network that speaks OpenAI's HTTP interface, read with suspicion."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import msgspec

from unisono.clock import Clock
from unisono.errors import ConfigurationError
from unisono.gateway.errors import FallbackFailed
from unisono.gateway.race import Overtaken, unless

log = logging.getLogger(__name__)

FINISH_REASONS = frozenset({"stop", "length", "content_filter"})
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_REST_SECONDS = 60.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteLimits:
    """How long and how much a gateway listens to an endpoint."""

    connect_seconds: float = 5.0
    first_seconds: float = 30.0
    """From the request to the first text."""
    silence_seconds: float = 30.0
    """Between two pieces of text; comments that keep the connection open do not count."""
    total_seconds: float = 600.0
    answer_bytes: int = 8 << 20
    event_bytes: int = 256 << 10


@dataclass(frozen=True, slots=True)
class RemotePart:
    """The next text of an answer; the last part has the reason why it ended."""

    text: str
    finish_reason: str | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    """What is read of a chunk of either shape; everything else in it is ignored."""

    choices: list[_Choice] = []
    error: Any = None


class RemoteEndpoint:
    """One endpoint, one model of it. After failures it is left alone for a while, longer each
    time, so that an endpoint that hangs does not cost every request its timeout."""

    def __init__(
        self,
        url: str,
        model: str,
        clock: Clock,
        *,
        key: str | None = None,
        limits: RemoteLimits | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`url` as OpenAI's clients want it, usually ending in `/v1`. `key` is sent as a bearer
        token, to this host only (redirects are not followed), and never logged.

        Raises:
            ConfigurationError: the URL is not one of HTTP, or holds credentials.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"'{url}' is not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigurationError(
                f"'{url}' is no endpoint: expected a URL such as https://api.example.com/v1"
            )
        if parsed.userinfo or parsed.query or parsed.fragment:
            raise ConfigurationError(
                f"the URL of the endpoint at {parsed.host} holds credentials, a query or a "
                "fragment: leave them out; a key belongs into a variable or a file"
            )
        if not model:
            raise ConfigurationError(f"name the model that {url} is asked for")
        self.url = str(parsed).rstrip("/")
        self.host = parsed.host if parsed.port is None else f"{parsed.host}:{parsed.port}"
        self.model = model
        local = parsed.host in LOCAL_HOSTS
        if key and parsed.scheme == "http" and not local:
            log.warning("the key for %s crosses the network in clear text: use https", self.host)
        self.limits = limits or RemoteLimits()
        self._clock = clock
        headers = {
            "accept": "text/event-stream",
            # A compressed answer could be far larger than what arrives.
            "accept-encoding": "identity",
            "content-type": "application/json",
        }
        if key:
            headers["authorization"] = f"Bearer {key}"
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=self.limits.connect_seconds),
            headers=headers,
            # As many as there are answers, which admission bounds.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
            transport=transport,
            follow_redirects=False,
            trust_env=not local,
        )
        self._failures = 0
        self._rests_until = 0.0

    @property
    def resting(self) -> float:
        """Seconds for which it is left alone after failures; 0 if it may be asked."""
        return max(0.0, self._rests_until - self._clock.monotonic())

    async def close(self) -> None:
        """Close its connections; idempotent."""
        await self._http.aclose()

    async def stream(self, path: str, body: bytes) -> AsyncGenerator[RemotePart, None]:
        """Ask, and read the answer as it comes. The first part comes with its first text, and
        the last one has a `finish_reason`.

        Args:
            path: `/chat/completions` or `/completions`.
            body: a JSON request with `"stream": true` and one choice.

        Raises:
            FallbackFailed: it cannot be reached, refuses, is silent for too long, sends what is
                no answer or too much, or ends before the answer does.
        """
        try:
            async with aclosing(self._stream(path, body)) as parts:
                async for part in parts:
                    self._failures = 0
                    yield part
        except FallbackFailed:
            if self.resting:  # a request that was on its way when the first one failed
                raise
            self._failures += 1
            rest = min(2.0 ** (self._failures - 1), MAX_REST_SECONDS)
            self._rests_until = self._clock.monotonic() + rest
            raise

    async def _stream(self, path: str, body: bytes) -> AsyncGenerator[RemotePart, None]:
        started, limits = self._clock.monotonic(), self.limits
        try:
            request = self._http.build_request("POST", self.url + path, content=body)
            response = await self._within(
                limits.first_seconds,
                self._http.send(request, stream=True),
                f"did not answer within {limits.first_seconds:g} seconds",
            )
            try:
                self._check(response)
                async with aclosing(self._parts(response)) as parts:
                    left = started + limits.first_seconds - self._clock.monotonic()
                    reason = f"sent no text within {limits.first_seconds:g} seconds"
                    while True:
                        part = await self._within(left, _next(parts), reason)
                        if part is None:
                            raise self._failed("ended the stream before the answer was whole")
                        yield part
                        if part.finish_reason is not None:
                            return
                        total = started + limits.total_seconds - self._clock.monotonic()
                        left, reason = limits.silence_seconds, "fell silent in its answer"
                        if total < left:
                            left = total
                            reason = f"was not done within {limits.total_seconds:g} seconds"
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise self._failed(f"cannot be read ({type(error).__name__})") from error

    async def _within(
        self, seconds: float, work: Coroutine[Any, Any, Result], reason: str
    ) -> Result:
        """Do `work`; raises FallbackFailed with `reason` if it takes longer."""
        try:
            return await unless(self._clock.sleep(max(0.0, seconds)), work)
        except Overtaken:
            raise self._failed(reason) from None

    def _check(self, response: httpx.Response) -> None:
        # Its words are not repeated: such bodies may quote the key or the account.
        if response.status_code != 200:
            raise self._failed(f"answered with status {response.status_code}")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            raise self._failed("answered, and not with an event stream")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._failed("sent a compressed answer, which it was asked not to")

    async def _parts(self, response: httpx.Response) -> AsyncGenerator[RemotePart, None]:
        """Parts with text or a finish reason; ends where the stream does."""
        finish: str | None = None
        async for data in self._events(response):
            if data == b"[DONE]":
                break
            try:
                chunk = msgspec.json.decode(data, type=_Chunk)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise self._failed("sent an event that is no chunk of an answer") from error
            if chunk.error is not None:
                raise self._failed("reported an error in the middle of its answer")
            for choice in chunk.choices:
                if choice.index != 0:
                    raise self._failed(f"sent choice {choice.index} where one was asked for")
                text = (choice.delta.content if choice.delta else choice.text) or ""
                if choice.finish_reason is not None:
                    finish = choice.finish_reason
                if text:
                    yield RemotePart(text)
            if finish is not None:
                break
        if finish is not None:
            yield RemotePart("", finish if finish in FINISH_REASONS else "stop")

    async def _events(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event, of which only single lines are used here."""
        buffer, size, limits = b"", 0, self.limits
        async for piece in response.aiter_raw():
            size += len(piece)
            if size > limits.answer_bytes:
                raise self._failed(f"sent more than {limits.answer_bytes} bytes")
            *lines, buffer = (buffer + piece).replace(b"\r", b"").split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip()
            if len(buffer) > limits.event_bytes:
                raise self._failed(f"sent an event of more than {limits.event_bytes} bytes")

    def _failed(self, what: str) -> FallbackFailed:
        return FallbackFailed(f"the endpoint {self.host} {what}: try again later")


async def _next(parts: AsyncIterator[RemotePart]) -> RemotePart | None:
    return await anext(parts, None)
