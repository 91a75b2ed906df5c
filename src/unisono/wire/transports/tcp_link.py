"""A TCP connection as bytes: exact reads, bounded buffers, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from unisono.errors import PeerGone
from unisono.wire.transports.addresses import join_address

LINGER_SECONDS = 1.0
"""How long a closed stream may take to deliver what was sent before."""
SILENCE_SECONDS = 30
"""After this long without an acknowledgement the kernel gives a connection up."""
READ_AHEAD = 256 << 10
"""Bytes buffered before reading pauses."""


class Link(asyncio.Protocol):
    """A TCP connection as bytes: exact reads that survive cancellation, writes that wait."""

    def __init__(self, opened: Callable[[Link], None], lost: Callable[[Link], None]) -> None:
        self.closed = asyncio.Event()
        """The connection is gone and its socket closed."""
        self._opened = opened
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._wanted = 0
        self._reader: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._paused = False
        self._ended: str | None = None
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        tune(transport.get_extra_info("socket"))
        self._opened(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._buffer += data
        if len(self._buffer) >= max(READ_AHEAD, self._wanted) and not self._paused:
            self._paused = True
            self._require().pause_reading()
        if len(self._buffer) >= self._wanted:
            self._wake()

    def eof_received(self) -> bool:
        # Nothing is sent to a peer that closed: asyncio closes the socket if this is False.
        # Received frames stay readable.
        self._end("the peer closed the stream")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection was lost: {exc}" if exc else "the connection is closed")
        if self._timer is not None:
            self._timer.cancel()
        self.closed.set()
        self._lost(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    @property
    def remote(self) -> str | None:
        """HOST:PORT of the other end."""
        name = self._transport.get_extra_info("peername") if self._transport else None
        return join_address(str(name[0]), int(name[1])) if name else None

    @property
    def is_carried(self) -> bool:
        """No node lies in between."""
        return False

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes. If cancelled, nothing was consumed.

        Raises:
            PeerGone: the stream ended before them.
        """
        while len(self._buffer) < size or self._closing:
            if self._ended is not None:
                raise PeerGone(self._ended)
            self._wanted = size
            if self._paused:
                self._paused = False
                self._require().resume_reading()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    def write(self, data: bytes) -> None:
        """Hand bytes to the kernel or the write buffer.

        Raises:
            PeerGone: the stream is closed.
        """
        if self._ended is not None or self._closing:
            raise PeerGone(self._ended or "the stream is closed")
        self._require().write(data)

    async def writable(self) -> None:
        """Return once the write buffer is short."""
        await self._writable.wait()

    def close(self) -> None:
        """Deliver what was written, then close; reads fail at once. Idempotent."""
        if self._closing or self._transport is None:
            return
        self._closing = True
        self._end("the stream is closed")
        self._buffer.clear()
        if self.closed.is_set():
            return
        # Closing while received bytes are unread would send a reset that can overtake the
        # last frames: close only our half, discard what comes, and wait for the other half.
        if not self._transport.is_closing():
            self._transport.resume_reading()
            with contextlib.suppress(OSError):  # the peer reset the connection just now
                self._transport.write_eof()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LINGER_SECONDS, self._transport.abort)

    def abort(self) -> None:
        """Close without delivering anything."""
        self._closing = True
        self._end("the stream is closed")
        if self._transport is not None:
            self._transport.abort()

    def _end(self, reason: str) -> None:
        if self._ended is None:
            self._ended = reason
        self._writable.set()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _require(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport


def tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": SILENCE_SECONDS // 3,
        "TCP_KEEPINTVL": SILENCE_SECONDS // 6,
        "TCP_KEEPCNT": 4,
        "TCP_USER_TIMEOUT": SILENCE_SECONDS * 1000,
    }
    for name, value in options.items():
        # Not every system has every option; each alone is an improvement.
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
