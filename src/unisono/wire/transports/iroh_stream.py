"""One connection with a peer over iroh, and the streams on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import iroh

from unisono.errors import PeerCheating, PeerGone
from unisono.types import NodeId
from unisono.wire.frames import FRAME_PREFIX, frame_size
from unisono.wire.transports.iroh_endpoint import describe

LINGER_SECONDS = 1.0
"""How long a closed stream may take to deliver what was sent before."""
READ_SIZE = 64 << 10
WRITE_SIZE = 1 << 20
HELLO = b"\x01"
"""The first byte of a stream, either way."""

_T = TypeVar("_T")


class StreamOwner(Protocol):
    """What a stream needs of its transport."""

    streams: set[IrohStream]

    def wind_down(self, finish: Coroutine[Any, Any, None]) -> None:
        """Let a stream end in the background."""
        ...


class IrohPeer:
    """One connection."""

    def __init__(self, connection: iroh.Connection) -> None:
        self.connection = connection
        self.node = NodeId(connection.remote_id().to_bytes().hex())
        self.streams = 0

    @property
    def remote(self) -> str | None:
        """HOST:PORT that the peer's packets come from."""
        paths = [path for path in self.connection.paths() if path.is_ip]
        chosen = next((path for path in paths if path.is_selected), paths[0] if paths else None)
        return None if chosen is None else chosen.remote_addr

    def close(self) -> None:
        """End the connection and all its streams."""
        with contextlib.suppress(iroh.IrohError):
            self.connection.close(0, b"closed")


class IrohStream:
    """A `Stream` over one QUIC stream."""

    def __init__(self, transport: StreamOwner, peer: IrohPeer, stream: iroh.BiStream) -> None:
        self._transport = transport
        self._peer = peer
        self._send = stream.send()
        self._recv = stream.recv()
        self._buffer = bytearray()
        self._sending = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[bytes] | None = None
        self._closed = False
        peer.streams += 1
        transport.streams.add(self)

    @property
    def peer(self) -> NodeId:
        return self._peer.node

    @property
    def remote(self) -> str | None:
        """HOST:PORT that the peer is seen at, if known."""
        return self._peer.remote

    async def send(self, frame: bytes) -> None:
        if frame_size(frame) != len(frame):
            raise ValueError("not one whole frame")
        async with self._sending:
            # A frame that was begun is finished even if its sender gave up: half a frame
            # would make this side look like a cheat.
            if self._writing is not None:
                await self._outcome(self._writing)
            self._check_open()
            self._writing = asyncio.create_task(self._write(frame))
            await self._outcome(self._writing)
            self._writing = None

    async def receive(self) -> bytes:
        self._check_open()
        # In a task, since a read of iroh that is cancelled loses the bytes it had.
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        try:
            frame = await self._outcome(self._reading)
        except asyncio.CancelledError:
            # The read goes on, and the next call takes its frame.
            raise
        except PeerCheating:
            await self.close()
            raise
        except PeerGone:
            self._reading = None
            raise
        self._reading = None
        return frame

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._transport.streams.discard(self)
        self._peer.streams -= 1
        if self._reading is not None:
            self._reading.cancel()
        self._transport.wind_down(self._finish())

    async def start(self, greeting: bytes, seconds: float) -> None:
        """Exchange the first bytes: as the opener if `greeting` is given.

        Raises:
            PeerGone: the other side does not answer in time, or not so.
        """
        try:
            async with asyncio.timeout(seconds):
                if greeting:
                    await self._send.write_all(greeting)
                if await self._recv.read_exact(1) != HELLO:
                    raise PeerGone(f"{self.peer} does not speak this protocol")
                if not greeting:
                    await self._send.write_all(HELLO)
        except iroh.IrohError as error:
            raise PeerGone(f"{self.peer} did not take the stream: {describe(error)}") from None
        except TimeoutError:
            raise PeerGone(f"{self.peer} did not answer in {seconds:.1f} s") from None

    async def _outcome(self, task: asyncio.Task[_T]) -> _T:
        """The result of a task of this stream, which goes on if the waiting caller gives up."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not is_cancelled():
                raise self._gone("it was closed on this side") from None
            raise
        except iroh.IrohError as error:
            raise self._gone(describe(error)) from None

    async def _write(self, frame: bytes) -> None:
        for start in range(0, len(frame), WRITE_SIZE):
            await self._send.write_all(frame[start : start + WRITE_SIZE])

    async def _read(self) -> bytes:
        # One call into iroh costs about as much as copying 64 KiB: most frames take one.
        while len(self._buffer) < FRAME_PREFIX:
            await self._read_some(READ_SIZE)
        size = frame_size(self._buffer)
        while len(self._buffer) < size:
            missing = size - len(self._buffer)
            if missing <= READ_SIZE:
                self._buffer += await self._recv.read_exact(missing)
            else:
                # Memory grows as bytes arrive, not as the prefix promises.
                await self._read_some(WRITE_SIZE)
        frame = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return frame

    async def _read_some(self, limit: int) -> None:
        data = await self._recv.read(limit)
        if not data:
            raise self._gone("the peer closed it")
        self._buffer += data

    async def _finish(self) -> None:
        """Deliver what was sent, within the linger time, then let the QUIC stream go."""
        try:
            await self._deliver()
        finally:
            # The errors of these tasks refer to this stream: a cycle that would keep the
            # connection, and so the endpoint's socket, until the next garbage collection.
            self._reading = self._writing = None

    async def _deliver(self) -> None:
        if self._reading is not None:
            # iroh locks the stream while a read waits. The outcome is of no interest.
            await asyncio.gather(self._reading, return_exceptions=True)
        with contextlib.suppress(iroh.IrohError):
            await self._recv.stop(0)
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                if self._writing is not None:
                    await self._writing
                await self._send.finish()
                await self._send.stopped()
        except iroh.IrohError:
            # The link is down: nothing can be delivered.
            pass
        except TimeoutError:
            with contextlib.suppress(iroh.IrohError, TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await self._send.reset(1)

    def _check_open(self) -> None:
        if self._closed:
            raise self._gone("it was closed on this side")

    def _gone(self, reason: str) -> PeerGone:
        return PeerGone(f"the stream with {self.peer} ended: {reason}")


def is_cancelled() -> bool:
    """Whether the running task, not only what it waits for, is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
