"""A handshake that proves both ids over any ordered bytes, and sealed records after it.

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
import hashlib
import secrets
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from unisono.errors import PeerCheating, PeerGone
from unisono.types import NodeId
from unisono.wire.frames import frame_size
from unisono.wire.identity import SIGNATURE_BYTES, Identity, verify_signature

MAX_RECORD = 64 << 10
"""Bytes of plaintext in one record."""
TAG = 16
LENGTH = 4

_MAGIC = b"unisono-tcp/1\n"
_HELLO = len(_MAGIC) + 32 + 32 + 32
_DIALLER = b"unisono-tcp/1 dialler"
_LISTENER = b"unisono-tcp/1 listener"


class ByteLink(Protocol):
    """Ordered bytes to and from one place that nobody has vouched for."""

    @property
    def remote(self) -> str | None:
        """HOST:PORT that the other side is seen at, if there is such a thing."""
        ...

    @property
    def is_carried(self) -> bool:
        """Whether another node carries the bytes, which may be the one that alters them."""
        ...

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes. If cancelled, nothing was consumed.

        Raises:
            PeerGone: the link ended before them.
        """
        ...

    def write(self, data: bytes) -> None:
        """Queue bytes.

        Raises:
            PeerGone: the link has ended.
        """
        ...

    async def writable(self) -> None:
        """Wait until the queue is short."""
        ...

    def close(self) -> None:
        """Deliver what was written, then close; reads fail at once. Idempotent."""
        ...

    def abort(self) -> None:
        """Close without delivering anything."""
        ...


class Tampered(PeerCheating):
    """Bytes that the peer did not write, or that somebody on the way changed."""


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
            raise Tampered(
                f"record {self._count - 1} does not open: it was altered, repeated or moved"
            ) from None


class SealedStream:
    """A `Stream` over a byte link, after the handshake."""

    def __init__(self, link: ByteLink, peer: NodeId, seal: _Direction, unseal: _Direction) -> None:
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

    @property
    def remote(self) -> str | None:
        """HOST:PORT that the peer is seen at, if known."""
        return self._link.remote

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
        except PeerCheating as error:
            self._link.abort()
            if self._link.is_carried and isinstance(error, Tampered):
                raise PeerGone(f"the relay broke the stream with {self._peer}: {error}") from None
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
            raise Tampered(
                f"a record has {TAG + 1} to {MAX_RECORD + TAG} bytes; this one claims {length}"
            )
        sealed = await self._link.read(length)
        record = self._unseal.open(self._length, sealed)
        self._length = None
        return record


async def shake_as_dialler(link: ByteLink, identity: Identity, node: NodeId) -> SealedStream:
    """Prove `identity`, and let the other side prove that it is `node`.

    Raises:
        PeerGone: the link ended.
        PeerCheating: the other side is someone else, or the bytes were tampered with.
    """
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
    return SealedStream(link, node, seal, unseal)


async def shake_as_listener(link: ByteLink, identity: Identity) -> SealedStream:
    """Prove `identity`, and let the other side prove who it is.

    Raises:
        PeerGone: the link ended.
        PeerCheating: the other side does not hold the key that it names, or the bytes were
            tampered with.
    """
    theirs = await link.read(_HELLO)
    node, key = _parse_hello(theirs)
    secret = X25519PrivateKey.generate()
    ours = _hello(identity, secret)
    transcript, unseal, seal = _derive(secret, key, theirs, ours)
    link.write(ours + seal.seal(identity.sign(_LISTENER + transcript)))
    await _check_proof(link, unseal, node, _DIALLER + transcript)
    return SealedStream(link, node, seal, unseal)


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


async def _check_proof(link: ByteLink, unseal: _Direction, node: NodeId, signed: bytes) -> None:
    length = await link.read(LENGTH)
    if int.from_bytes(length, "little") != SIGNATURE_BYTES + TAG:
        raise PeerCheating(f"expected a proof of {SIGNATURE_BYTES} bytes")
    signature = unseal.open(length, await link.read(SIGNATURE_BYTES + TAG))
    if not verify_signature(node, signed, signature):
        raise PeerCheating(f"the peer calls itself {node} and does not hold that key")
