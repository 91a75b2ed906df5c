"""HTTP for the processes of one machine: one kind of request, bounded, bound to 127.0.0.1."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from unisono.errors import ConfigurationError
from unisono.web_server import WebServer, tcp_listener

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
_GRACE_SECONDS = 5
_CONNECTIONS = 512

Answer = Callable[[bytes], Awaitable[bytes]]
_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class LoopbackServer:
    """Answers `POST /` with JSON by what `answer` makes of the body."""

    def __init__(self, answer: Answer, *, max_body: int) -> None:
        """
        Args:
            answer: from the body of a request to the body of its response.
            max_body: bytes that a request may have.
        """
        self._answer = answer
        self._max_body = max_body
        self._port = 0
        self._server: WebServer | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self._port}"

    async def start(self, port: int) -> None:
        """Listen; port 0 is a free one.

        Raises:
            ConfigurationError: the port is taken.
        """
        try:
            listener = tcp_listener(HOST, port, backlog=256)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {HOST} port {port}: {error.strerror or error}; choose another "
                "port or stop the program that has it"
            ) from error
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._respond,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            interface="asgi3",
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._server = WebServer(config)
        self._task = await self._server.begin(listener)

    async def close(self) -> None:
        """Stop listening and end what runs; idempotent."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await asyncio.gather(self._task, return_exceptions=True)

    async def _respond(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        body = b"" if refusal else await self._read(receive)
        if body is None:
            refusal = (413, f"a request has at most {self._max_body:,} bytes")
        if refusal or body is None:
            status, text = refusal or (400, "")
            await _write(send, status, "text/plain", text.encode())
            return
        await _write(send, 200, "application/json", await self._answer(body))

    def _refusal(self, scope: _Scope) -> tuple[int, str] | None:
        """Why a request is not for us: a web page of any site can reach loopback, too."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "").rpartition(":")[0] or headers.get(b"host", "")
        if scope["method"] != "POST" or scope["path"] != "/":
            return 404, "POST JSON-RPC to /"
        if host not in _NAMES or b"origin" in headers:
            return 403, "only programs of this machine may ask, by the name 127.0.0.1"
        if headers.get(b"content-type", "").partition(";")[0].strip() != "application/json":
            return 415, "a request is application/json"
        return None

    async def _read(self, receive: _Receive) -> bytes | None:
        body = bytearray()
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return None
            body += event.get("body", b"")
            if len(body) > self._max_body:
                return None
            if not event.get("more_body"):
                return bytes(body)


async def _write(send: _Send, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
