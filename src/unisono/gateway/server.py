"""Runs the application with uvicorn inside an event loop that has other work to do."""

from __future__ import annotations

import asyncio
import math

import uvicorn
from fastapi import FastAPI

from unisono.errors import ConfigurationError
from unisono.gateway.service import GatewayService
from unisono.web_server import WebServer, tcp_listener

FORCE_SECONDS = 5
"""How long a connection may take to close once its answer was ended."""


class GatewayServer:
    """A gateway that listens. Made by `serve`."""

    def __init__(
        self, app: FastAPI, server: WebServer, task: asyncio.Task[None], host: str, port: int
    ) -> None:
        self._service: GatewayService = app.state.gateway
        self._server = server
        self._task = task
        self._watching = asyncio.create_task(self._service.watch.run())
        self.host = host
        self.port = port
        """The port that is bound, also if 0 was asked for."""

    @property
    def url(self) -> str:
        """Without a path: OpenAI's clients want `url + "/v1"`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def wait(self) -> None:
        """Until the server has stopped."""
        await asyncio.wait({self._task})

    async def close(self, grace_seconds: float = 5.0) -> None:
        """Stop listening, let running answers end within the grace, then end the others.

        A stream that is ended gets an error event first, so its client knows. Idempotent.
        """
        # What uvicorn does last: cancel requests whose clients do not read their ending.
        self._server.config.timeout_graceful_shutdown = math.ceil(grace_seconds + FORCE_SECONDS)
        self._server.should_exit = True
        if grace_seconds > 0:
            await asyncio.wait({self._task}, timeout=grace_seconds)
        self._service.closing.set()
        await asyncio.gather(self._task, return_exceptions=True)
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._service.close()


async def serve(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> GatewayServer:
    """Start to serve `app` (of `create_app`) and return when it listens. Port 0 picks a free one.

    Raises:
        ConfigurationError: the address cannot be bound.
    """
    try:
        listener = tcp_listener(host, port, backlog=1024)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another "
            "port or stop the program that has it"
        ) from error
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", server_header=False, ws="none"
    )
    server = WebServer(config)
    task = await server.begin(listener)
    return GatewayServer(app, server, task, host, listener.getsockname()[1])
