"""TCP between nodes: a handshake that proves both ids, and sealed records (see `sealed`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

from unisono.errors import ConfigurationError, PeerCheating, PeerGone, WireError
from unisono.types import NodeId, PeerAddress
from unisono.wire.identity import Identity
from unisono.wire.transports import HandlerTasks, cancel_tasks
from unisono.wire.transports.addresses import join_address, reachable_host, split_address
from unisono.wire.transports.base import StreamHandler
from unisono.wire.transports.sealed import SealedStream, shake_as_dialler, shake_as_listener
from unisono.wire.transports.tcp_link import LINGER_SECONDS, Link

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
MAX_PENDING_HANDSHAKES = 128
MAX_DIALLED_ADDRESSES = 8


class TcpTransport:
    """A `Transport` over TCP; see the module's docstring."""

    def __init__(self, identity: Identity, bind: str = "127.0.0.1:0") -> None:
        self._identity = identity
        self._bind = bind
        self._address: PeerAddress | None = None
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._links: set[Link] = set()
        self._pending: set[asyncio.Task[None]] = set()
        self._handlers = HandlerTasks()
        self._closing = asyncio.Event()

    async def bind(self) -> PeerAddress:
        if self._address is None:
            host, port = split_address(self._bind)
            try:
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
                self._socket = _listen(found[0][0], found[0][4])
            except OSError as error:
                raise ConfigurationError(
                    f"cannot listen on {self._bind}: {error.strerror or error}; "
                    "choose another HOST:PORT"
                ) from error
            name = self._socket.getsockname()
            addresses = (join_address(reachable_host(name[0]), name[1]),)
            self._address = PeerAddress(self._identity.node_id, "tcp", addresses)
        return self._address

    async def dial(self, peer: PeerAddress) -> SealedStream:
        if self._closing.is_set():
            raise PeerGone("this transport is closed")
        if self._address is None:
            raise ConfigurationError("bind the transport before dialling")
        attempts = [
            asyncio.create_task(self._dial_one(peer.node, address))
            for address in peer.addresses[:MAX_DIALLED_ADDRESSES]
        ]
        errors: list[WireError] = []
        chosen: SealedStream | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                for attempt in asyncio.as_completed(attempts):
                    try:
                        chosen = await attempt
                        return chosen
                    except WireError as error:
                        errors.append(error)
        except TimeoutError:
            errors.append(PeerGone(f"no answer in {HANDSHAKE_SECONDS:.0f} s"))
        finally:
            await _discard(attempts, chosen)
        problem = f"{peer} cannot be reached: {'; '.join(str(error) for error in errors)}"
        # A wrong key at one address matters only if no other address leads to the right one.
        if any(isinstance(error, PeerCheating) for error in errors):
            raise PeerCheating(problem)
        raise PeerGone(problem)

    async def serve(self, handler: StreamHandler) -> None:
        if self._socket is None:
            raise ConfigurationError("bind the transport before serving")
        if self._closing.is_set():
            return

        def accept(link: Link) -> None:
            self._links.add(link)
            if len(self._pending) >= MAX_PENDING_HANDSHAKES or self._handlers.full:
                link.abort()
                return
            task = asyncio.create_task(self._accept(link, handler))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Link(accept, self._links.discard), sock=self._socket
        )
        try:
            await self._closing.wait()
        finally:
            self._server.close()

    async def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        if self._server is not None:
            self._server.close()
        elif self._socket is not None:
            self._socket.close()
        await cancel_tasks(self._pending)
        links = [*self._links]
        for link in links:
            link.close()
        await self._handlers.cancel()
        for link in links:
            # Each link ends by itself within the linger time; the first wait covers them all.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.closed.wait(), LINGER_SECONDS + 0.5)

    async def _dial_one(self, node: NodeId, address: str) -> SealedStream:
        def opened(link: Link) -> None:
            self._links.add(link)

        host, port = split_address(address, PeerGone)
        try:
            _, link = await asyncio.get_running_loop().create_connection(
                lambda: Link(opened, self._links.discard), host, port
            )
        except OSError as error:
            raise PeerGone(f"{address}: {error.strerror or error}") from error
        try:
            return await shake_as_dialler(link, self._identity, node)
        except BaseException:
            link.abort()
            raise

    async def _accept(self, link: Link, handler: StreamHandler) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                stream = await shake_as_listener(link, self._identity)
        except (WireError, TimeoutError) as error:
            link.abort()
            logger.debug("handshake failed: %s: %s", type(error).__name__, error)
        except BaseException:
            link.abort()
            raise
        else:
            if self._closing.is_set() or self._handlers.full:
                link.abort()
            else:
                self._handlers.start(handler, stream)


async def _discard(attempts: list[asyncio.Task[SealedStream]], chosen: SealedStream | None) -> None:
    """Cancel the attempts that are under way and close the streams that nobody wants."""
    for attempt in attempts:
        attempt.cancel()
    for result in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(result, SealedStream) and result is not chosen:
            await result.close()


def _listen(
    family: int, address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Peers that dial before `serve` wait here.
        listener.listen(128)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
