"""The default transport: QUIC between machines behind NAT, through iroh.

A node's id is its iroh endpoint id, so iroh's handshake proves it. There is one connection
per peer, in whichever direction it was made, and one bidirectional QUIC stream per `Stream`.

A stream starts with one byte from its opener, since QUIC shows a stream to the other side
only once something was written, and one byte back. Without that answer `dial` could succeed
on a connection whose other end was restarted: QUIC notices that after 30 s only.

No relay and no discovery service of others is contacted: peers are dialled at the addresses
in their records.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

import iroh

from unisono.errors import ConfigurationError, PeerCheating, PeerGone
from unisono.types import NodeId, PeerAddress
from unisono.wire.identity import Identity
from unisono.wire.transports import HandlerTasks, cancel_tasks
from unisono.wire.transports.addresses import split_address
from unisono.wire.transports.base import StreamHandler
from unisono.wire.transports.iroh_endpoint import (
    ALPN,
    bind_endpoint,
    describe,
    own_address,
    resolve,
)
from unisono.wire.transports.iroh_stream import (
    HELLO,
    LINGER_SECONDS,
    IrohPeer,
    IrohStream,
    is_cancelled,
)

logger = logging.getLogger(__name__)

DIAL_SECONDS = 5.0
STALE_SECONDS = 1.5
"""How long a connection that was made earlier may take to answer before it is made anew."""
CLOSE_SECONDS = 2.0
MAX_CONNECTIONS = 512
MAX_PENDING_HANDSHAKES = 128
MAX_STREAMS_PER_PEER = 512
MAX_DIALLED_ADDRESSES = 8
RECEIVE_WINDOW = 128 << 20
"""Bytes that one peer may have in flight towards this node, over all streams."""


class IrohTransport:
    """A `Transport` over iroh; see the module's docstring."""

    def __init__(self, identity: Identity, bind: str = "127.0.0.1:0") -> None:
        self.streams: set[IrohStream] = set()
        self._identity = identity
        self._bind = bind
        self._address: PeerAddress | None = None
        self._endpoint: iroh.Endpoint | None = None
        self._peers: dict[NodeId, IrohPeer] = {}
        self._connections: set[IrohPeer] = set()
        self._dialling: dict[NodeId, asyncio.Task[IrohPeer]] = {}
        self._handler: StreamHandler | None = None
        self._serving = asyncio.Event()
        self._acceptor: asyncio.Task[None] | None = None
        self._handlers = HandlerTasks()
        self._pending: set[asyncio.Task[None]] = set()
        self._welcoming: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._winding: set[asyncio.Task[None]] = set()
        self._observed: set[str] = set()
        self._closed = False

    async def bind(self) -> PeerAddress:
        if self._address is None:
            host, port = split_address(self._bind)
            try:
                address = (await resolve(host, port))[0]
                self._endpoint = await bind_endpoint(address, self._identity.secret_seed())
            except OSError as error:
                raise ConfigurationError(f"cannot resolve {host}: {error.strerror}") from error
            except iroh.IrohError as error:
                raise ConfigurationError(
                    f"cannot listen on {self._bind}: {describe(error)}; choose another HOST:PORT"
                ) from error
            self._address = PeerAddress(
                self._identity.node_id, "iroh", (own_address(self._endpoint, address),)
            )
        return self._address

    async def dial(self, peer: PeerAddress) -> IrohStream:
        if self._closed:
            raise PeerGone("this transport is closed")
        if self._endpoint is None:
            raise ConfigurationError("bind the transport before dialling")
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                known = self._peers.get(peer.node)
                if known is not None:
                    try:
                        return await self._open(known, STALE_SECONDS)
                    except PeerGone as error:
                        logger.debug("connecting to %s again: %s", peer.node, error)
                        self._forget(known)
                return await self._open(await self._connect(peer), DIAL_SECONDS)
        except TimeoutError:
            raise PeerGone(f"{peer} cannot be reached: no answer in {DIAL_SECONDS:.0f} s") from None

    async def serve(self, handler: StreamHandler) -> None:
        if self._endpoint is None:
            raise ConfigurationError("bind the transport before serving")
        self._handler = handler
        self._serving.set()
        self._acceptor = asyncio.create_task(self._accept_all(self._endpoint))
        await self._acceptor

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for stream in [*self.streams]:
            await stream.close()
        await self._handlers.cancel()
        dialling = [*self._dialling.values()]
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        if self._winding:
            await asyncio.wait([*self._winding], timeout=2 * LINGER_SECONDS)
        await cancel_tasks(self._pending | self._welcoming | self._watching | self._winding)
        for peer in self._connections:
            peer.close()
        self._connections.clear()
        self._peers.clear()
        if self._endpoint is not None:
            with contextlib.suppress(iroh.IrohError, TimeoutError):
                await asyncio.wait_for(self._endpoint.close(), CLOSE_SECONDS)
            # The socket is released with the last reference, and the acceptor holds one.
            if self._acceptor is not None:
                await asyncio.wait({self._acceptor}, timeout=CLOSE_SECONDS)
            self._endpoint = None

    def connected(self, node: NodeId) -> bool:
        """Whether there is a connection with a node."""
        return node in self._peers

    async def set_observed(self, addresses: tuple[str, ...]) -> None:
        """Let iroh offer these addresses to peers as its own."""
        wanted = set(addresses)
        if self._endpoint is None:
            return
        try:
            for address in self._observed - wanted:
                await self._endpoint.remove_external_addr(address)
            for address in wanted - self._observed:
                await self._endpoint.add_external_addr(address)
        except iroh.IrohError as error:
            logger.warning("iroh does not take an observed address: %s", describe(error))
        self._observed = wanted

    def wind_down(self, finish: Coroutine[Any, Any, None]) -> None:
        """Let a stream end in the background; `close` waits for it."""
        _spawn(self._winding, finish)

    async def _open(self, peer: IrohPeer, seconds: float) -> IrohStream:
        try:
            async with asyncio.timeout(seconds):
                stream = IrohStream(self, peer, await peer.connection.open_bi())
        except iroh.IrohError as error:
            raise PeerGone(f"{peer.node} is gone: {describe(error)}") from None
        except TimeoutError:
            raise PeerGone(f"{peer.node} accepts no more streams") from None
        try:
            await stream.start(HELLO, seconds)
        except BaseException:
            await stream.close()
            raise
        return stream

    async def _connect(self, peer: PeerAddress) -> IrohPeer:
        """A new connection; callers at the same time share one."""
        task = self._dialling.get(peer.node)
        if task is None:
            task = asyncio.create_task(self._dial_anew(peer))
            self._dialling[peer.node] = task
            task.add_done_callback(lambda done: self._dialled(peer.node, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not is_cancelled():
                raise PeerGone("this transport is closed") from None
            raise

    def _dialled(self, node: NodeId, task: asyncio.Task[IrohPeer]) -> None:
        self._dialling.pop(node, None)
        # Whoever asked may have left; asyncio would complain of an error that nobody read.
        if not task.cancelled():
            task.exception()

    async def _dial_anew(self, peer: PeerAddress) -> IrohPeer:
        assert self._endpoint is not None
        if not self._has_room():
            raise PeerGone(f"{peer} cannot be reached: {MAX_CONNECTIONS} connections are in use")
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                addresses: list[str] = []
                for text in peer.addresses[:MAX_DIALLED_ADDRESSES]:
                    addresses += await resolve(*split_address(text, PeerGone))
                key = iroh.EndpointId.from_bytes(bytes.fromhex(peer.node))
                target = iroh.EndpointAddr(key, None, addresses)
                return self._adopt(await self._endpoint.connect(target, ALPN))
        except iroh.IrohError as error:
            problem = describe(error)
            if "invalid peer certificate" in problem:
                raise PeerCheating(f"{peer} is held by another node") from None
            raise PeerGone(f"{peer} cannot be reached: {problem}") from None
        except OSError as error:
            # TimeoutError is one of these.
            raise PeerGone(f"{peer} cannot be reached: {error or 'no answer in time'}") from None

    async def _accept_all(self, endpoint: iroh.Endpoint) -> None:
        while not self._closed:
            incoming = await endpoint.accept_next()
            if incoming is None or self._closed:
                return
            if len(self._pending) >= MAX_PENDING_HANDSHAKES or not self._has_room():
                with contextlib.suppress(iroh.IrohError):
                    await incoming.refuse()
                continue
            _spawn(self._pending, self._accept(incoming))

    async def _accept(self, incoming: iroh.Incoming) -> None:
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                self._adopt(await (await incoming.accept()).connect())
        except iroh.IrohError as error:
            logger.debug("handshake failed: %s", describe(error))
        except TimeoutError:
            logger.debug("handshake took too long")

    def _adopt(self, connection: iroh.Connection) -> IrohPeer:
        """Use a connection for streams in both directions."""
        connection.set_max_concurrent_bi_streams(MAX_STREAMS_PER_PEER)
        connection.set_max_concurrent_uni_streams(0)
        connection.set_receive_window(RECEIVE_WINDOW)
        peer = IrohPeer(connection)
        # The newest wins: an older one may be a ghost of the peer's last life.
        self._peers[peer.node] = peer
        self._connections.add(peer)
        _spawn(self._watching, self._watch(peer))
        return peer

    async def _watch(self, peer: IrohPeer) -> None:
        """Take the streams that the peer opens, until the connection ends."""
        try:
            while True:
                stream = IrohStream(self, peer, await peer.connection.accept_bi())
                if self._handlers.full or len(self._welcoming) >= MAX_PENDING_HANDSHAKES:
                    await stream.close()
                else:
                    _spawn(self._welcoming, self._welcome(stream))
        except iroh.IrohError as error:
            logger.debug("connection with %s ended: %s", peer.node, describe(error))
        finally:
            self._forget(peer)
            self._connections.discard(peer)

    async def _welcome(self, stream: IrohStream) -> None:
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await self._serving.wait()
            await stream.start(b"", DIAL_SECONDS)
        except (PeerGone, TimeoutError) as error:
            logger.debug("a stream of %s did not start: %s", stream.peer, error)
            await stream.close()
        except BaseException:
            await stream.close()
            raise
        else:
            assert self._handler is not None
            self._handlers.start(self._handler, stream)

    def _has_room(self) -> bool:
        """Whether one more connection is allowed, after closing an idle one if need be."""
        if len(self._connections) < MAX_CONNECTIONS:
            return True
        idle = next((peer for peer in self._connections if peer.streams == 0), None)
        if idle is None:
            return False
        self._forget(idle)
        self._connections.discard(idle)
        idle.close()
        return True

    def _forget(self, peer: IrohPeer) -> None:
        if self._peers.get(peer.node) is peer:
            del self._peers[peer.node]


def _spawn(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
