"""Links: one stream between two peers that carries the messages of many sessions.

Whatever is posted while the loop is busy leaves together, as one bundle. A link is watched from
both ends, and lost as a whole: whoever used it is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerGone, WireError
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import FRAME_PREFIX, decode_frame, encode_frame, frame_size
from unisono.wire.messages import Bundle, Message, Multiplex, Ping, Pong
from unisono.wire.transports.base import Stream, Transport

log = logging.getLogger(__name__)

PING_SECONDS = 1.0
SILENT_SECONDS = 3.0
"""A peer that answers no ping this long is lost."""
IDLE_SECONDS = 60.0
"""A link that nobody uses this long is closed by the side that dialled it."""
MAX_WAITING = 256 << 20
"""Bytes that may wait to be sent: a peer that reads slower is lost."""
HIGH_WATER = 4 << 20
"""Bulk data waits while this many bytes are waiting to be sent."""
MAX_BUNDLE_BYTES = 1 << 20
MAX_BUNDLE_MESSAGES = 1024

Receive = Callable[["Link", Message, memoryview], None]
Observe = Callable[[NodeId, float], None]


class Link:
    """One end of a link. `post` never waits; `run` takes what the other end posts."""

    def __init__(
        self,
        stream: Stream,
        clock: Clock,
        receive: Receive,
        *,
        dialled: bool,
        observe: Observe | None = None,
    ) -> None:
        self.peer = stream.peer
        self.dialled = dialled
        self.problem: WireError | None = None
        """Why the link is lost, once it is."""
        self.round_trip: float | None = None
        """Seconds that the last ping took."""
        self.users: set[Any] = set()
        """Who would miss it; an unused link is closed after a while."""
        self._stream = stream
        self._clock = clock
        self._receive = receive
        self._observe = observe
        self._outbox: list[bytes] = []
        self._waiting = 0
        self._filled = asyncio.Event()
        self._when_room: list[Callable[[], None]] = []
        self._pings: dict[int, float] = {}
        self._heard = clock.monotonic()
        self._used = self._heard

    @property
    def has_room(self) -> bool:
        """Whether bulk data may be posted."""
        return self._waiting < HIGH_WATER

    def when_room(self, call: Callable[[], None]) -> None:
        """Call back once there is room."""
        self._when_room.append(call)

    def post(self, message: Message, body: bytes = b"") -> None:
        """Send a message soon. On a lost link it is dropped: its users have been told."""
        if self.problem is not None:
            return
        frame = encode_frame(message, body)
        self._waiting += len(frame)
        if self._waiting > MAX_WAITING:
            self._lose(PeerGone(f"it left {self._waiting} bytes unread"))
            return
        self._outbox.append(frame)
        self._filled.set()

    async def run(self) -> None:
        """Carry messages both ways until the link is lost or closed; `problem` says why.

        Raises:
            PeerCheating: the peer broke the protocol.
        """
        tasks = [asyncio.create_task(work) for work in (self._write(), self._watch())]
        try:
            await self._read()
        except WireError as error:
            self._lose(error)
            if isinstance(error, PeerCheating):
                raise
        finally:
            self._lose(PeerGone("the link was closed"))
            for task in tasks:
                task.cancel()
            await self._stream.close()

    async def close(self) -> None:
        """End the link; idempotent."""
        self._lose(PeerGone("the link was closed"))
        await self._stream.close()

    def _lose(self, problem: WireError) -> None:
        if self.problem is None:
            self.problem = problem
            self._outbox.clear()

    async def _read(self) -> None:
        while True:
            frame = await self._stream.receive()
            message, body = decode_frame(frame)
            self._heard = self._clock.monotonic()
            if not isinstance(message, Bundle):
                self._take(message, body)
                continue
            count = 0
            while body:
                size = frame_size(body[:FRAME_PREFIX])
                part, rest = decode_frame(bytes(body[:size]))
                if isinstance(part, Bundle):
                    raise PeerCheating("a bundle inside a bundle")
                self._take(part, rest)
                body = body[size:]
                count += 1
            if count != message.count:
                raise PeerCheating(f"a bundle of {message.count} messages holds {count}")

    def _take(self, message: Message, body: memoryview) -> None:
        if isinstance(message, Ping):
            self.post(Pong(message.nonce))
        elif isinstance(message, Pong):
            sent = self._pings.pop(message.nonce, None)
            if sent is not None:
                self.round_trip = self._heard - sent
                if self._observe is not None:
                    self._observe(self.peer, self.round_trip)
        else:
            self._used = self._heard
            self._receive(self, message, body)

    async def _write(self) -> None:
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                frames, self._outbox = self._outbox, []
                for bundle, size in _bundles(frames):
                    await self._stream.send(bundle)
                    self._waiting -= size
                    self._tell_of_room()
        except WireError as error:
            self._lose(error)
            await self._stream.close()  # wakes the reader

    def _tell_of_room(self) -> None:
        if self._when_room and self.has_room:
            calls, self._when_room = self._when_room, []
            for call in calls:
                call()

    async def _watch(self) -> None:
        nonce = 0
        while True:
            await self._clock.sleep(PING_SECONDS)
            now = self._clock.monotonic()
            if self.problem is not None:  # it read too slowly: whoever waits for it is told now
                break
            if now - self._heard > SILENT_SECONDS:
                self._lose(PeerGone(f"it was silent for {SILENT_SECONDS:.0f} s"))
                break
            if not self.dialled:
                continue
            if self.users:
                self._used = now
            elif now - self._used > IDLE_SECONDS:
                self._lose(PeerGone("nobody used the link"))
                break
            nonce += 1
            self._pings = {n: t for n, t in self._pings.items() if now - t < SILENT_SECONDS}
            self._pings[nonce] = now
            self.post(Ping(nonce))
        await self._stream.close()


class Links:
    """The links of one endpoint: at most one is dialled per peer, and kept for all who use it."""

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        receive: Receive,
        lost: Callable[[Link], None],
        observe: Observe | None = None,
    ) -> None:
        """`receive` is called with every message; `lost` once when a link has gone; `observe` is
        told (node, seconds) of every ping's round trip."""
        self._transport = transport
        self._clock = clock
        self._receive = receive
        self._lost = lost
        self._observe = observe
        self._links: dict[NodeId, Link] = {}
        self._dialling: dict[NodeId, asyncio.Task[Link]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def existing(self, node: NodeId) -> Link | None:
        """A link with the peer that works, if there is one."""
        link = self._links.get(node)
        return link if link is not None and link.problem is None else None

    async def to(self, address: PeerAddress) -> Link:
        """A link with a peer, dialled if there is none.

        Raises:
            PeerGone: it cannot be reached.
            PeerCheating: someone answers who holds another key.
        """
        link = self.existing(address.node)
        if link is not None:
            return link
        task = self._dialling.get(address.node)
        if task is None:
            task = asyncio.create_task(self._dial(address))
            self._dialling[address.node] = task
            task.add_done_callback(lambda _: self._dialling.pop(address.node, None))
        return await asyncio.shield(task)

    async def _dial(self, address: PeerAddress) -> Link:
        stream = await self._transport.dial(address)
        try:
            await stream.send(encode_frame(Multiplex()))
        except WireError:
            await stream.close()
            raise
        link = Link(stream, self._clock, self._receive, dialled=True, observe=self._observe)
        self._links[link.peer] = link
        task = asyncio.create_task(self._run_dialled(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return link

    async def _run_dialled(self, link: Link) -> None:
        try:
            await self._run(link)
        except PeerCheating as error:
            log.warning("link with %s: %s", link.peer[:8], error)

    async def accept(self, stream: Stream) -> None:
        """Serve a stream whose first message was `Multiplex`, until it ends.

        Raises:
            PeerCheating: the peer broke the protocol.
        """
        link = Link(stream, self._clock, self._receive, dialled=False)
        if self.existing(link.peer) is None:
            self._links[link.peer] = link
        await self._run(link)

    async def _run(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            if self._links.get(link.peer) is link:
                del self._links[link.peer]
            self._lost(link)

    async def warm(self, addresses: Iterable[PeerAddress]) -> None:
        """Have links with these peers, as far as they can be reached."""
        for address in addresses:
            try:
                await self.to(address)
            except WireError as error:
                log.debug("cannot warm the link with %s: %s", address.node[:8], error)

    def links(self) -> tuple[Link, ...]:
        """Those that work now."""
        return tuple(link for link in self._links.values() if link.problem is None)

    async def close(self) -> None:
        """End all links; idempotent."""
        for task in (*self._dialling.values(), *self._tasks):
            task.cancel()
        for link in tuple(self._links.values()):
            await link.close()


def _bundles(frames: list[bytes]) -> Iterable[tuple[bytes, int]]:
    """Frames to send, with the bytes of the messages that each carries."""
    start = 0
    while start < len(frames):
        stop, size = start, 0
        while stop < len(frames) and stop - start < MAX_BUNDLE_MESSAGES:
            if size and size + len(frames[stop]) > MAX_BUNDLE_BYTES:
                break
            size += len(frames[stop])
            stop += 1
        if stop - start == 1:
            yield frames[start], size
        else:
            yield encode_frame(Bundle(stop - start), b"".join(frames[start:stop])), size
        start = stop
