"""A network inside one process, for tests: no sockets, and faults on demand."""

from __future__ import annotations

import asyncio
from collections import deque

from unisono.clock import Clock, SystemClock
from unisono.errors import ConfigurationError, PeerCheating, PeerGone
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import MAX_FRAME, frame_size
from unisono.wire.identity import Identity
from unisono.wire.transports import HandlerTasks
from unisono.wire.transports.base import StreamHandler

WINDOW = MAX_FRAME
"""Bytes in flight in one direction of a stream before `send` waits."""
WINDOW_FRAMES = 1024
BACKLOG = 256
"""Streams that wait for `serve`."""


class MemoryNetwork:
    """The hub that memory transports meet at."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self._bound: dict[str, MemoryTransport] = {}
        self._dead: set[NodeId] = set()
        self._delays: dict[frozenset[NodeId], float] = {}
        self._count = 0

    def transport(self, identity: Identity) -> MemoryTransport:
        """A transport of this network that is not bound yet."""
        return MemoryTransport(self, identity)

    def kill(self, node: NodeId) -> None:
        """Make `node` vanish: its streams break, frames in flight are lost, dials fail."""
        self._dead.add(node)
        for transport in [*self._bound.values()]:
            transport.break_streams(node)

    def revive(self, node: NodeId) -> None:
        """Let a killed node be dialled and dial again."""
        self._dead.discard(node)

    def set_delay(self, one: NodeId, other: NodeId, seconds: float) -> None:
        """Let frames sent from now on take `seconds` of the network's clock, in both ways."""
        self._delays[frozenset((one, other))] = seconds

    def delay(self, one: NodeId, other: NodeId) -> float:
        """Seconds that a frame takes between two nodes."""
        return self._delays.get(frozenset((one, other)), 0.0)

    def attach(self, transport: MemoryTransport) -> str:
        """Make `transport` reachable and return its address."""
        self._count += 1
        address = f"memory:{self._count}"
        self._bound[address] = transport
        return address

    def detach(self, address: str) -> None:
        """Forget an address."""
        self._bound.pop(address, None)

    def connect(self, dialler: MemoryTransport, peer: PeerAddress) -> MemoryStream:
        """Join `dialler` and the transport at `peer`; see `Transport.dial`."""
        if dialler.node_id in self._dead or peer.node in self._dead:
            raise PeerGone(f"{peer} cannot be reached: the node was killed")
        found = [self._bound[a] for a in peer.addresses if a in self._bound]
        if not found:
            raise PeerGone(f"{peer} cannot be reached: nobody is at this address")
        target = next((t for t in found if t.node_id == peer.node), None)
        if target is None:
            raise PeerCheating(f"{peer} is held by the node {found[0].node_id}")
        there, back = _Pipe(), _Pipe()
        near = MemoryStream(self, dialler, target.node_id, back, there)
        far = MemoryStream(self, target, dialler.node_id, there, back)
        target.offer(far)
        dialler.streams.add(near)
        return near


class MemoryTransport:
    """A `Transport` of a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, identity: Identity) -> None:
        self.node_id = identity.node_id
        self.streams: set[MemoryStream] = set()
        self._network = network
        self._address: PeerAddress | None = None
        self._backlog: deque[MemoryStream] = deque()
        self._arrived = asyncio.Event()
        self._handlers = HandlerTasks()
        self._closed = False

    async def bind(self) -> PeerAddress:
        if self._address is None:
            self._address = PeerAddress(self.node_id, "memory", (self._network.attach(self),))
        return self._address

    async def dial(self, peer: PeerAddress) -> MemoryStream:
        if self._closed:
            raise PeerGone("this transport is closed")
        if self._address is None:
            raise ConfigurationError("bind the transport before dialling")
        await asyncio.sleep(0)
        return self._network.connect(self, peer)

    async def serve(self, handler: StreamHandler) -> None:
        if self._address is None:
            raise ConfigurationError("bind the transport before serving")
        while not self._closed:
            while self._backlog:
                self._handlers.start(handler, self._backlog.popleft())
            self._arrived.clear()
            await self._arrived.wait()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._arrived.set()
        if self._address is not None:
            for address in self._address.addresses:
                self._network.detach(address)
        for stream in [*self.streams]:
            await stream.close()
        await self._handlers.cancel()

    def offer(self, stream: MemoryStream) -> None:
        """Queue a stream that a peer opened.

        Raises:
            PeerGone: too many streams.
        """
        if self._handlers.full or len(self._backlog) >= BACKLOG:
            raise PeerGone(f"{self.node_id} accepts no more streams")
        self.streams.add(stream)
        self._backlog.append(stream)
        self._arrived.set()

    def break_streams(self, node: NodeId) -> None:
        """Break the streams between this transport and `node`, or all if it is `node`."""
        for stream in [*self.streams]:
            if node in (self.node_id, stream.peer):
                stream.break_link()


class _Pipe:
    """One direction of a stream."""

    def __init__(self) -> None:
        self.frames: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.ended = False
        """The sender will send nothing more."""
        self.changed = asyncio.Event()

    def touch(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def drop(self) -> None:
        self.frames.clear()
        self.size = 0
        self.ended = True
        self.touch()


class MemoryStream:
    """A `Stream` of a `MemoryNetwork`."""

    def __init__(
        self,
        network: MemoryNetwork,
        owner: MemoryTransport,
        peer: NodeId,
        incoming: _Pipe,
        outgoing: _Pipe,
    ) -> None:
        self._network = network
        self._owner = owner
        self._peer = peer
        self._incoming = incoming
        self._outgoing = outgoing
        self._sending = asyncio.Lock()

    @property
    def peer(self) -> NodeId:
        return self._peer

    async def send(self, frame: bytes) -> None:
        if frame_size(frame) != len(frame):
            raise ValueError("not one whole frame")
        pipe = self._outgoing
        async with self._sending:
            while not pipe.ended and (
                pipe.size + len(frame) > WINDOW or len(pipe.frames) >= WINDOW_FRAMES
            ):
                await pipe.changed.wait()
            if pipe.ended:
                raise PeerGone(f"the stream with {self._peer} is closed")
            self.push(frame)

    def push(self, data: bytes) -> None:
        """Put bytes on the link unchecked: what a hostile peer would do."""
        delay = self._network.delay(self._owner.node_id, self._peer)
        due = self._network.clock.monotonic() + delay
        if self._outgoing.frames:
            due = max(due, self._outgoing.frames[-1][0])
        self._outgoing.frames.append((due, data))
        self._outgoing.size += len(data)
        self._outgoing.touch()

    async def receive(self) -> bytes:
        pipe = self._incoming
        while True:
            if pipe.frames:
                wait = pipe.frames[0][0] - self._network.clock.monotonic()
                if wait <= 0:
                    break
                await self._sleep_or_change(wait)
            elif pipe.ended:
                raise PeerGone(f"the stream with {self._peer} is closed")
            else:
                await pipe.changed.wait()
        _, frame = pipe.frames.popleft()
        pipe.size -= len(frame)
        pipe.touch()
        try:
            if frame_size(frame) != len(frame):
                raise PeerCheating(f"expected one frame; got {len(frame)} bytes that are none")
        except PeerCheating:
            await self.close()
            raise
        return frame

    async def close(self) -> None:
        self._incoming.drop()
        self._outgoing.ended = True
        self._outgoing.touch()
        self._owner.streams.discard(self)

    def break_link(self) -> None:
        """Lose everything in flight, both ways, and let both sides notice."""
        self._incoming.drop()
        self._outgoing.drop()
        self._owner.streams.discard(self)

    async def _sleep_or_change(self, seconds: float) -> None:
        # A break of the link must be noticed even if the clock stands still.
        waits = {
            asyncio.ensure_future(self._network.clock.sleep(seconds)),
            asyncio.ensure_future(self._incoming.changed.wait()),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
