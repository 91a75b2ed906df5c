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
import ipaddress
import logging
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

import iroh

from unisono.errors import ConfigurationError, PeerCheating, PeerGone
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import FRAME_PREFIX, frame_size
from unisono.wire.identity import Identity
from unisono.wire.transports import HandlerTasks, cancel_tasks
from unisono.wire.transports.addresses import join_address, reachable_host, split_address
from unisono.wire.transports.base import StreamHandler
from unisono.wire.transports.iroh_binding import repair

logger = logging.getLogger(__name__)

ALPN = b"unisono/1"
DIAL_SECONDS = 5.0
STALE_SECONDS = 1.5
"""How long a connection that was made earlier may take to answer before it is made anew."""
LINGER_SECONDS = 1.0
"""How long a closed stream may take to deliver what was sent before."""
CLOSE_SECONDS = 2.0
MAX_CONNECTIONS = 512
MAX_PENDING_HANDSHAKES = 128
MAX_STREAMS_PER_PEER = 512
MAX_DIALLED_ADDRESSES = 8
RECEIVE_WINDOW = 128 << 20
"""Bytes that one peer may have in flight towards this node, over all streams."""
READ_SIZE = 64 << 10
WRITE_SIZE = 1 << 20

_HELLO = b"\x01"
_T = TypeVar("_T")

PATCHED = repair()
"""Whether the binding copies in one piece here."""


class _Preset(iroh.Preset):
    """iroh's minimal preset; if an address is given, the socket of the other IP version is
    bound there. By default iroh would bind it to all interfaces."""

    def __init__(self, other: str | None) -> None:
        self._other = other

    def apply(self, builder: iroh.EndpointBuilder) -> None:
        builder.apply_minimal()
        if self._other is not None:
            builder.bind_addr(self._other)


class _Peer:
    """One connection."""

    def __init__(self, connection: iroh.Connection) -> None:
        self.connection = connection
        self.node = NodeId(connection.remote_id().to_bytes().hex())
        self.streams = 0


class IrohStream:
    """A `Stream` over one QUIC stream."""

    def __init__(self, transport: IrohTransport, peer: _Peer, stream: iroh.BiStream) -> None:
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
                if await self._recv.read_exact(1) != _HELLO:
                    raise PeerGone(f"{self.peer} does not speak this protocol")
                if not greeting:
                    await self._send.write_all(_HELLO)
        except iroh.IrohError as error:
            raise PeerGone(f"{self.peer} did not take the stream: {_describe(error)}") from None
        except TimeoutError:
            raise PeerGone(f"{self.peer} did not answer in {seconds:.1f} s") from None

    async def _outcome(self, task: asyncio.Task[_T]) -> _T:
        """The result of a task of this stream, which goes on if the waiting caller gives up."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _is_cancelled():
                raise self._gone("it was closed on this side") from None
            raise
        except iroh.IrohError as error:
            raise self._gone(_describe(error)) from None

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


class IrohTransport:
    """A `Transport` over iroh; see the module's docstring."""

    def __init__(self, identity: Identity, bind: str = "127.0.0.1:0") -> None:
        self.streams: set[IrohStream] = set()
        self._identity = identity
        self._bind = bind
        self._address: PeerAddress | None = None
        self._endpoint: iroh.Endpoint | None = None
        self._peers: dict[NodeId, _Peer] = {}
        self._connections: set[_Peer] = set()
        self._dialling: dict[NodeId, asyncio.Task[_Peer]] = {}
        self._handler: StreamHandler | None = None
        self._serving = asyncio.Event()
        self._acceptor: asyncio.Task[None] | None = None
        self._handlers = HandlerTasks()
        self._pending: set[asyncio.Task[None]] = set()
        self._welcoming: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._winding: set[asyncio.Task[None]] = set()
        self._closed = False

    async def bind(self) -> PeerAddress:
        if self._address is None:
            host, port = split_address(self._bind)
            try:
                address = (await _resolve(host, port))[0]
                self._endpoint = await _bind(address, self._identity.secret_seed())
            except OSError as error:
                raise ConfigurationError(f"cannot resolve {host}: {error.strerror}") from error
            except iroh.IrohError as error:
                raise ConfigurationError(
                    f"cannot listen on {self._bind}: {_describe(error)}; choose another HOST:PORT"
                ) from error
            self._address = PeerAddress(
                self._identity.node_id, "iroh", (_own_address(self._endpoint, address),)
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
            _close_connection(peer)
        self._connections.clear()
        self._peers.clear()
        if self._endpoint is not None:
            with contextlib.suppress(iroh.IrohError, TimeoutError):
                await asyncio.wait_for(self._endpoint.close(), CLOSE_SECONDS)
            # The socket is released with the last reference, and the acceptor holds one.
            if self._acceptor is not None:
                await asyncio.wait({self._acceptor}, timeout=CLOSE_SECONDS)
            self._endpoint = None

    def wind_down(self, finish: Coroutine[Any, Any, None]) -> None:
        """Let a stream end in the background; `close` waits for it."""
        _spawn(self._winding, finish)

    async def _open(self, peer: _Peer, seconds: float) -> IrohStream:
        try:
            async with asyncio.timeout(seconds):
                stream = IrohStream(self, peer, await peer.connection.open_bi())
        except iroh.IrohError as error:
            raise PeerGone(f"{peer.node} is gone: {_describe(error)}") from None
        except TimeoutError:
            raise PeerGone(f"{peer.node} accepts no more streams") from None
        try:
            await stream.start(_HELLO, seconds)
        except BaseException:
            await stream.close()
            raise
        return stream

    async def _connect(self, peer: PeerAddress) -> _Peer:
        """A new connection; callers at the same time share one."""
        task = self._dialling.get(peer.node)
        if task is None:
            task = asyncio.create_task(self._dial_anew(peer))
            self._dialling[peer.node] = task
            task.add_done_callback(lambda done: self._dialled(peer.node, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _is_cancelled():
                raise PeerGone("this transport is closed") from None
            raise

    def _dialled(self, node: NodeId, task: asyncio.Task[_Peer]) -> None:
        self._dialling.pop(node, None)
        # Whoever asked may have left; asyncio would complain of an error that nobody read.
        if not task.cancelled():
            task.exception()

    async def _dial_anew(self, peer: PeerAddress) -> _Peer:
        assert self._endpoint is not None
        if not self._has_room():
            raise PeerGone(f"{peer} cannot be reached: {MAX_CONNECTIONS} connections are in use")
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                addresses: list[str] = []
                for text in peer.addresses[:MAX_DIALLED_ADDRESSES]:
                    addresses += await _resolve(*split_address(text, PeerGone))
                key = iroh.EndpointId.from_bytes(bytes.fromhex(peer.node))
                target = iroh.EndpointAddr(key, None, addresses)
                return self._adopt(await self._endpoint.connect(target, ALPN))
        except iroh.IrohError as error:
            problem = _describe(error)
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
            logger.debug("handshake failed: %s", _describe(error))
        except TimeoutError:
            logger.debug("handshake took too long")

    def _adopt(self, connection: iroh.Connection) -> _Peer:
        """Use a connection for streams in both directions."""
        connection.set_max_concurrent_bi_streams(MAX_STREAMS_PER_PEER)
        connection.set_max_concurrent_uni_streams(0)
        connection.set_receive_window(RECEIVE_WINDOW)
        peer = _Peer(connection)
        # The newest wins: an older one may be a ghost of the peer's last life.
        self._peers[peer.node] = peer
        self._connections.add(peer)
        _spawn(self._watching, self._watch(peer))
        return peer

    async def _watch(self, peer: _Peer) -> None:
        """Take the streams that the peer opens, until the connection ends."""
        try:
            while True:
                stream = IrohStream(self, peer, await peer.connection.accept_bi())
                if self._handlers.full or len(self._welcoming) >= MAX_PENDING_HANDSHAKES:
                    await stream.close()
                else:
                    _spawn(self._welcoming, self._welcome(stream))
        except iroh.IrohError as error:
            logger.debug("connection with %s ended: %s", peer.node, _describe(error))
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
        _close_connection(idle)
        return True

    def _forget(self, peer: _Peer) -> None:
        if self._peers.get(peer.node) is peer:
            del self._peers[peer.node]


def _is_cancelled() -> bool:
    """Whether the running task, not only what it waits for, is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _spawn(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _close_connection(peer: _Peer) -> None:
    with contextlib.suppress(iroh.IrohError):
        peer.connection.close(0, b"closed")


def _describe(error: iroh.IrohError) -> str:
    """What an IrohError says; its `str` is empty."""
    # The first line names a variant and a source file; the last one names the cause.
    lines = error.message().strip().splitlines() or [""]
    return f"{error.kind().name.lower()}: {lines[-1].strip()}"


async def _resolve(host: str, port: int) -> list[str]:
    """Addresses that iroh takes: it does not look names up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        return [join_address(str(entry[4][0]), port) for entry in found]
    return [join_address(host, port)]


async def _bind(address: str, seed: bytes) -> iroh.Endpoint:
    host, _ = split_address(address)
    everywhere = ipaddress.ip_address(host).is_unspecified
    other = "127.0.0.1:0" if ":" in host else "[::1]:0"
    # A machine without the other IP version cannot bind it: then iroh's default does no harm.
    presets = [_Preset(None)] if everywhere else [_Preset(other), _Preset(None)]
    for preset in presets:
        try:
            return await iroh.Endpoint.bind(
                iroh.EndpointOptions(
                    preset=preset,
                    bind_addr=address,
                    secret_key=seed,
                    alpns=[ALPN],
                    relay_mode=iroh.RelayMode.disabled(),
                )
            )
        except iroh.IrohError:
            if preset is presets[-1]:
                raise
    raise AssertionError("unreachable")


def _own_address(endpoint: iroh.Endpoint, bound: str) -> str:
    """Where peers reach the socket that was asked for."""
    host, _ = split_address(bound)
    for text in endpoint.bound_sockets():
        found, port = split_address(text)
        if (":" in found) == (":" in host):
            return join_address(reachable_host(host), port)
    raise ConfigurationError(f"iroh did not bind {bound}: it bound {endpoint.bound_sockets()}")
