"""One end of a circuit: the bytes of a sealed stream, carried by a relay as frames.

The handshake and the cipher of `sealed` run between the two ends. The relay sees who talks to
whom, when and how much. It can delay and end a circuit; bytes that it alters do not open, and it
holds nobody's key but its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from unisono.errors import PeerCheating, PeerGone
from unisono.wire.frames import FRAME_PREFIX, encode_frame, frame_size
from unisono.wire.relay_messages import MAX_SEALED, Sealed
from unisono.wire.transports.base import Stream

LINGER_SECONDS = 1.0
"""How long a closed circuit may take to hand over what was written before."""
READ_AHEAD = 256 << 10
WRITE_AHEAD = 256 << 10

_EMPTY = encode_frame(Sealed())
_HEADER = _EMPTY[FRAME_PREFIX:]
_START = _EMPTY[: FRAME_PREFIX - 4]
"""Everything before the length of the body."""


def sealed_frame(data: bytes) -> bytes:
    """Bytes as a `Sealed` frame: `encode_frame`, without its checks."""
    return b"".join((_START, len(data).to_bytes(4, "little"), _HEADER, data))


def sealed_body(frame: bytes) -> memoryview:
    """The bytes in a `Sealed` frame.

    Raises:
        PeerCheating: it is another frame, or an empty or too long one.
    """
    body = len(frame) - len(_EMPTY)
    if (
        not 0 < body <= MAX_SEALED
        or frame[: len(_START)] != _START
        or frame[FRAME_PREFIX : len(_EMPTY)] != _HEADER
        or frame_size(frame) != len(frame)
    ):
        raise PeerCheating(
            f"a circuit carries frames of 1 to {MAX_SEALED} sealed bytes; got another of "
            f"{len(frame)} bytes"
        )
    return memoryview(frame)[len(_EMPTY) :]


class CircuitLink:
    """A `ByteLink` over a stream with a relay that has joined it to another.

    Args:
        stream: after `Joined`.
        done: called once nothing of the circuit is left.
    """

    def __init__(self, stream: Stream, done: Callable[[CircuitLink], None]) -> None:
        self.closed = asyncio.Event()
        """The stream is closed and no task is left."""
        self._stream = stream
        self._done = done
        self._buffer = bytearray()
        self._wanted = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._written = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._ended: str | None = None
        self._reading = asyncio.create_task(self._read_ahead())
        self._writing = asyncio.create_task(self._write_on())
        self._ending: asyncio.Task[None] | None = None

    @property
    def remote(self) -> str | None:
        """Always None: the relay's address is not the peer's."""
        return None

    @property
    def is_carried(self) -> bool:
        """The relay carries the bytes."""
        return True

    async def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if self._ended is not None:
                raise PeerGone(self._ended)
            self._wanted = size
            self._room.set()
            self._arrived.clear()
            await self._arrived.wait()
        if self._ending is not None:
            raise PeerGone(self._ended or "the circuit is closed")
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        if len(self._buffer) < READ_AHEAD:
            self._room.set()
        return data

    def write(self, data: bytes) -> None:
        if self._ended is not None:
            raise PeerGone(self._ended)
        for start in range(0, len(data), MAX_SEALED):
            self._queue.append(data[start : start + MAX_SEALED])
        self._queued += len(data)
        self._flushed.clear()
        self._written.set()
        if self._queued > WRITE_AHEAD:
            self._writable.clear()

    async def writable(self) -> None:
        await self._writable.wait()

    def close(self) -> None:
        self._finish(LINGER_SECONDS)

    def abort(self) -> None:
        self._finish(0.0)

    def _finish(self, linger: float) -> None:
        self._end("the stream is closed")
        if self._ending is None:
            self._buffer.clear()
            self._ending = asyncio.create_task(self._wind_down(linger))

    async def _wind_down(self, linger: float) -> None:
        try:
            if linger:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(linger):
                        await self._flushed.wait()
            await self._stream.close()
            for task in (self._reading, self._writing):
                task.cancel()
            await asyncio.gather(self._reading, self._writing, return_exceptions=True)
        finally:
            self.closed.set()
            self._done(self)

    async def _read_ahead(self) -> None:
        try:
            while True:
                await self._room.wait()
                self._buffer += sealed_body(await self._stream.receive())
                if len(self._buffer) >= max(READ_AHEAD, self._wanted):
                    self._room.clear()
                if len(self._buffer) >= self._wanted:
                    self._arrived.set()
        except (PeerGone, PeerCheating) as error:
            self._end(f"the circuit was lost: {error}")

    async def _write_on(self) -> None:
        try:
            while True:
                while self._queue:
                    data = self._queue.popleft()
                    await self._stream.send(sealed_frame(data))
                    self._queued -= len(data)
                    if self._queued <= WRITE_AHEAD:
                        self._writable.set()
                self._flushed.set()
                self._written.clear()
                await self._written.wait()
        except PeerGone as error:
            self._flushed.set()
            self._end(f"the circuit was lost: {error}")

    def _end(self, reason: str) -> None:
        if self._ended is None:
            self._ended = reason
        self._writable.set()
        self._arrived.set()
