"""TCP with a handshake that proves both ids, and sealed records after it.

The handshake follows SIGMA (Krawczyk 2003). Both sides send a hello

    magic | ed25519 id | X25519 ephemeral key | 32 random bytes

and derive one key per direction by HKDF-SHA256 from the shared secret, salted with the
hash of both hellos (the transcript). Each then sends, as the first record under its key,
an ed25519 signature of its role and the transcript: nobody else could have made the
signature, it fits no other conversation and no other role, and whoever made it holds the
shared secret, so a man in the middle gains nothing by forwarding it.

A record is `u32 length | ChaCha20-Poly1305 ciphertext`; the length is authenticated as
associated data and the nonce counts records, so a record that was altered, repeated,
dropped or moved does not open. A frame starts a record and fills all its records but the
last. Memory is held for at most one unauthenticated record (64 KiB) per connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import socket
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from unisono.errors import ConfigurationError, PeerCheating, PeerGone, WireError
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import frame_size
from unisono.wire.identity import SIGNATURE_BYTES, Identity, verify_signature
from unisono.wire.transports import HandlerTasks, cancel_tasks
from unisono.wire.transports.base import StreamHandler

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
MAX_PENDING_HANDSHAKES = 128
MAX_DIALLED_ADDRESSES = 8
LINGER_SECONDS = 1.0
"""How long a closed stream may take to deliver what was sent before."""
SILENCE_SECONDS = 30
"""After this long without an acknowledgement the kernel gives a connection up."""

MAX_RECORD = 64 << 10
"""Bytes of plaintext in one record."""
TAG = 16
LENGTH = 4
READ_AHEAD = 256 << 10
"""Bytes buffered before reading pauses."""

_MAGIC = b"unisono-tcp/1\n"
_HELLO = len(_MAGIC) + 32 + 32 + 32
_DIALLER = b"unisono-tcp/1 dialler"
_LISTENER = b"unisono-tcp/1 listener"


class _Link(asyncio.Protocol):
    """A TCP connection as bytes: exact reads that survive cancellation, writes that wait."""

    def __init__(self, opened: Callable[[_Link], None], lost: Callable[[_Link], None]) -> None:
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
        _tune(transport.get_extra_info("socket"))
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


class _Direction:
    """The key of one direction and the number of its next record."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._count = 0

    def _nonce(self) -> bytes:
        nonce = self._count.to_bytes(12, "little")
        self._count += 1
        return nonce

    def seal(self, plain: bytes | memoryview) -> bytes:
        length = (len(plain) + TAG).to_bytes(LENGTH, "little")
        return length + self._cipher.encrypt(self._nonce(), bytes(plain), length)

    def open(self, length: bytes, sealed: bytes) -> bytes:
        try:
            return self._cipher.decrypt(self._nonce(), sealed, length)
        except InvalidTag:
            raise PeerCheating(
                f"record {self._count - 1} does not open: it was altered, repeated or moved"
            ) from None


class TcpStream:
    """A `Stream` over TCP, after the handshake."""

    def __init__(self, link: _Link, peer: NodeId, seal: _Direction, unseal: _Direction) -> None:
        self._link = link
        self._peer = peer
        self._seal = seal
        self._unseal = unseal
        self._sending = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None
        # What was read of the next frame, kept here so that `receive` may be cancelled.
        self._length: bytes | None = None
        self._partial = bytearray()
        self._size: int | None = None

    @property
    def peer(self) -> NodeId:
        return self._peer

    async def send(self, frame: bytes) -> None:
        if frame_size(frame) != len(frame):
            raise ValueError("not one whole frame")
        async with self._sending:
            # A frame that was begun is finished even if its sender gave up: half a frame
            # would make this side look like a cheat.
            if self._writing is not None:
                await asyncio.shield(self._writing)
                self._writing = None
            await self._link.writable()
            if len(frame) <= MAX_RECORD:
                self._link.write(self._seal.seal(frame))
                await self._link.writable()
            else:
                self._writing = asyncio.create_task(self._write(frame))
                await asyncio.shield(self._writing)
                self._writing = None

    async def receive(self) -> bytes:
        try:
            while True:
                frame = self._add(await self._record())
                if frame is not None:
                    return frame
        except PeerCheating:
            self._link.abort()
            raise
        except PeerGone as error:
            raise PeerGone(f"the stream with {self._peer} ended: {error}") from None

    async def close(self) -> None:
        self._link.close()
        self._partial.clear()
        if self._writing is not None:
            # A long frame under way fails at its next record, since the link is closed.
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _write(self, frame: bytes) -> None:
        """Write a frame of several records, a buffer at a time."""
        view = memoryview(frame)
        for start in range(0, len(view), MAX_RECORD):
            self._link.write(self._seal.seal(view[start : start + MAX_RECORD]))
            await self._link.writable()

    def _add(self, record: bytes) -> bytes | None:
        """Take the next record; the frame, if it is now complete."""
        if self._size is None:
            self._size = frame_size(record)
        missing = self._size - len(self._partial) - len(record)
        if missing < 0 or (missing and len(record) != MAX_RECORD):
            raise PeerCheating(
                f"a record of {len(record)} bytes does not fit a frame of {self._size}"
            )
        if missing:
            self._partial += record
            return None
        frame = bytes(self._partial) + record if self._partial else record
        self._partial = bytearray()
        self._size = None
        return frame

    async def _record(self) -> bytes:
        if self._length is None:
            self._length = await self._link.read(LENGTH)
        length = int.from_bytes(self._length, "little")
        if not TAG < length <= MAX_RECORD + TAG:
            raise PeerCheating(
                f"a record has {TAG + 1} to {MAX_RECORD + TAG} bytes; this one claims {length}"
            )
        sealed = await self._link.read(length)
        record = self._unseal.open(self._length, sealed)
        self._length = None
        return record


class TcpTransport:
    """A `Transport` over TCP; see the module's docstring."""

    def __init__(self, identity: Identity, bind: str = "127.0.0.1:0") -> None:
        self._identity = identity
        self._bind = bind
        self._address: PeerAddress | None = None
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
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

    async def dial(self, peer: PeerAddress) -> TcpStream:
        if self._closing.is_set():
            raise PeerGone("this transport is closed")
        if self._address is None:
            raise ConfigurationError("bind the transport before dialling")
        attempts = [
            asyncio.create_task(self._dial_one(peer.node, address))
            for address in peer.addresses[:MAX_DIALLED_ADDRESSES]
        ]
        errors: list[WireError] = []
        chosen: TcpStream | None = None
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

        def accept(link: _Link) -> None:
            self._links.add(link)
            if len(self._pending) >= MAX_PENDING_HANDSHAKES or self._handlers.full:
                link.abort()
                return
            task = asyncio.create_task(self._accept(link, handler))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Link(accept, self._links.discard), sock=self._socket
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

    async def _dial_one(self, node: NodeId, address: str) -> TcpStream:
        def opened(link: _Link) -> None:
            self._links.add(link)

        host, port = split_address(address, PeerGone)
        try:
            _, link = await asyncio.get_running_loop().create_connection(
                lambda: _Link(opened, self._links.discard), host, port
            )
        except OSError as error:
            raise PeerGone(f"{address}: {error.strerror or error}") from error
        try:
            return await _shake_as_dialler(link, self._identity, node)
        except BaseException:
            link.abort()
            raise

    async def _accept(self, link: _Link, handler: StreamHandler) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                stream = await _shake_as_listener(link, self._identity)
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


async def _shake_as_dialler(link: _Link, identity: Identity, node: NodeId) -> TcpStream:
    secret = X25519PrivateKey.generate()
    ours = _hello(identity, secret)
    link.write(ours)
    theirs = await link.read(_HELLO)
    found, key = _parse_hello(theirs)
    if found != node:
        raise PeerCheating(f"expected the node {node}; {found} answered")
    transcript, seal, unseal = _derive(secret, key, ours, theirs)
    await _check_proof(link, unseal, node, _LISTENER + transcript)
    link.write(seal.seal(identity.sign(_DIALLER + transcript)))
    return TcpStream(link, node, seal, unseal)


async def _shake_as_listener(link: _Link, identity: Identity) -> TcpStream:
    theirs = await link.read(_HELLO)
    node, key = _parse_hello(theirs)
    secret = X25519PrivateKey.generate()
    ours = _hello(identity, secret)
    transcript, unseal, seal = _derive(secret, key, theirs, ours)
    link.write(ours + seal.seal(identity.sign(_LISTENER + transcript)))
    await _check_proof(link, unseal, node, _DIALLER + transcript)
    return TcpStream(link, node, seal, unseal)


def _hello(identity: Identity, secret: X25519PrivateKey) -> bytes:
    return b"".join(
        (
            _MAGIC,
            bytes.fromhex(identity.node_id),
            secret.public_key().public_bytes_raw(),
            secrets.token_bytes(32),
        )
    )


def _parse_hello(hello: bytes) -> tuple[NodeId, bytes]:
    """The id and the ephemeral key."""
    if not hello.startswith(_MAGIC):
        raise PeerCheating(f"expected a hello of unisono-tcp/1; got {hello[: len(_MAGIC)]!r}")
    node = hello[len(_MAGIC) :][:32]
    return NodeId(node.hex()), hello[len(_MAGIC) + 32 :][:32]


def _derive(
    secret: X25519PrivateKey, key: bytes, dialler: bytes, listener: bytes
) -> tuple[bytes, _Direction, _Direction]:
    """The transcript, and the directions from the dialler and from the listener."""
    transcript = hashlib.sha256(dialler + listener).digest()
    try:
        shared = secret.exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        raise PeerCheating("the peer's ephemeral key is a point of small order") from None
    keys = HKDF(SHA256(), 64, salt=transcript, info=b"unisono-tcp/1 keys").derive(shared)
    return transcript, _Direction(keys[:32]), _Direction(keys[32:])


async def _check_proof(link: _Link, unseal: _Direction, node: NodeId, signed: bytes) -> None:
    length = await link.read(LENGTH)
    if int.from_bytes(length, "little") != SIGNATURE_BYTES + TAG:
        raise PeerCheating(f"expected a proof of {SIGNATURE_BYTES} bytes")
    signature = unseal.open(length, await link.read(SIGNATURE_BYTES + TAG))
    if not verify_signature(node, signed, signature):
        raise PeerCheating(f"the peer calls itself {node} and does not hold that key")


async def _discard(attempts: list[asyncio.Task[TcpStream]], chosen: TcpStream | None) -> None:
    """Cancel the attempts that are under way and close the streams that nobody wants."""
    for attempt in attempts:
        attempt.cancel()
    for result in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(result, TcpStream) and result is not chosen:
            await result.close()


def split_address(
    text: str, error: type[ConfigurationError | PeerGone] = ConfigurationError
) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT.

    Raises:
        ConfigurationError: it is neither; or `error`, if one is given.
    """
    host, found, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        found = ""
    if not (found and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise error(f"'{text}' is not an address: expected HOST:PORT or [IPV6]:PORT")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable_host(host: str) -> str:
    """`host`, or this machine's own address if `host` stands for all of them."""
    if host not in ("0.0.0.0", "::"):
        return host
    # Connecting a datagram socket sends nothing; it makes the kernel choose a route. The
    # targets are addresses reserved for documentation.
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with (
            contextlib.suppress(OSError),
            socket.socket(family, socket.SOCK_DGRAM) as probe,
        ):
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    return "127.0.0.1"


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


def _tune(connection: socket.socket) -> None:
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
