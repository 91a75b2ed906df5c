"""uvicorn inside an event loop that has other work to do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn


class WebServer(uvicorn.Server):
    """A uvicorn server that leaves signals alone and tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals belong to the program that runs the server, not to the server."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        self.listening.set()

    async def begin(self, listener: socket.socket) -> asyncio.Task[None]:
        """Serve on a socket; returns the task that serves, once it listens.

        Raises whatever keeps it from that; the socket is closed then.
        """
        task = asyncio.create_task(self.serve(sockets=[listener]))
        listening = asyncio.create_task(self.listening.wait())
        await asyncio.wait({task, listening}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            listening.cancel()
            listener.close()
            task.result()
        return task


def tcp_listener(host: str, port: int, backlog: int) -> socket.socket:
    """A listening socket, of IPv6 if the host is written so; port 0 picks a free one.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.create_server((host, port), family=family, backlog=backlog)
    # Taken up again by its number a socket knows that it speaks TCP, and only for such asyncio
    # switches Nagle's algorithm off: small parts of a stream would wait up to 40 ms.
    return socket.socket(fileno=made.detach())
