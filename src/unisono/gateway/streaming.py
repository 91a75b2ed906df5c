"""Answers as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from unisono.errors import UnisonoError
from unisono.gateway.completion import Piece
from unisono.gateway.errors import Closing, kind_of
from unisono.gateway.generation import Generation, Silence
from unisono.gateway.interruption import Interruption, interruption
from unisono.gateway.race import Overtaken, unless
from unisono.gateway.replies import Format
from unisono.gateway.service import GatewayService

log = logging.getLogger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def event(data: bytes) -> bytes:
    """One server-sent event. JSON has no line breaks of its own, so it is one line."""
    return b"data: " + data + b"\n\n"


class EventStream(Response):
    """Sends a started generation event by event, and closes it whatever happens.

    An error after the headers becomes an event with OpenAI's error object, and the stream
    then ends without `[DONE]`: a client cannot mistake it for a complete answer.
    """

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, form: Format, service: GatewayService) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._generation = generation
        self._form = form
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics, failure = self._service.metrics, None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless(interruption(receive, self._service.closing), self._send_all(send))
        except Overtaken as stop:
            if stop.event is Interruption.GONE:
                metrics.disconnects.inc()
                return
            failure = Closing("The gateway is shutting down: try another one")
        except OSError:
            # How some servers report a client that left.
            metrics.disconnects.inc()
            return
        except UnisonoError as error:
            log.warning("a stream ended early: %s", error)
            failure = error
        except Exception as error:
            log.exception("a stream ended because of a defect")
            failure = error
        finally:
            # Before the client is told, which may take as long as the client likes.
            await self._generation.close()
        if failure is not None:
            metrics.errors.labels(kind_of(failure)).inc()
            last = event(self._service.reply_to(failure).json())
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        # A write costs more than an event: what is ready together leaves together.
        ready: list[bytes] = []
        try:
            async for data in self._events():
                ready.append(data)
                if not self._generation.has_more:
                    await _send_body(send, ready)
        except Exception:
            await _send_body(send, ready)
            raise
        await _send_body(send, ready)

    async def _events(self) -> AsyncIterator[bytes]:
        ask, form, encode = self._generation.ask, self._form, msgspec.json.encode
        for index in range(len(ask.requests)):
            opening = form.opening(index)
            if opening is not None:
                yield event(encode(opening))
        tokens = 0
        async for happened in self._generation.events(self._service.settings.heartbeat_seconds):
            if isinstance(happened, Silence):
                yield KEEP_ALIVE
            elif isinstance(happened, Piece):
                yield event(encode(form.piece(happened)))
            else:
                tokens += happened.tokens
                yield event(encode(form.ended(happened)))
        if ask.include_usage:
            yield event(encode(form.usage(tokens)))
        yield DONE


async def _send_body(send: Send, parts: list[bytes]) -> None:
    """Send the parts as one, if there are any, and empty the list."""
    body = b"".join(parts)
    parts.clear()
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})
