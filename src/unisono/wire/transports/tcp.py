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
from unisono.wire.transports.addresses import join_address, reachable_host, split_address
from unisono.wire.transports.base import StreamHandler
from unisono.wire.transports.tcp_link import LINGER_SECONDS, Link

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
MAX_PENDING_HANDSHAKES = 128
MAX_DIALLED_ADDRESSES = 8

MAX_RECORD = 64 << 10
"""Bytes of plaintext in one record."""
TAG = 16
LENGTH = 4

_MAGIC = b"unisono-tcp/1\n"
_HELLO = len(_MAGIC) + 32 + 32 + 32
_DIALLER = b"unisono-tcp/1 dialler"
_LISTENER = b"unisono-tcp/1 listener"


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

    def __init__(self, link: Link, peer: NodeId, seal: _Direction, unseal: _Direction) -> None:
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

    async def _dial_one(self, node: NodeId, address: str) -> TcpStream:
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
            return await _shake_as_dialler(link, self._identity, node)
        except BaseException:
            link.abort()
            raise

    async def _accept(self, link: Link, handler: StreamHandler) -> None:
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


async def _shake_as_dialler(link: Link, identity: Identity, node: NodeId) -> TcpStream:
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


async def _shake_as_listener(link: Link, identity: Identity) -> TcpStream:
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


async def _check_proof(link: Link, unseal: _Direction, node: NodeId, signed: bytes) -> None:
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
