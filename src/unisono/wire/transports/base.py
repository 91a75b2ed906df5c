"""What a transport promises.

A transport carries whole frames (bytes) between endpoints that have proved their
ed25519 ids to each other. Frames of one stream arrive complete, once, in order, or
the stream fails. Nothing is promised between two streams.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from unisono.types import NodeId, PeerAddress


class Stream(Protocol):
    """An ordered two-way sequence of frames with one authenticated peer."""

    @property
    def peer(self) -> NodeId:
        """The id that the other side proved."""
        ...

    async def send(self, frame: bytes) -> None:
        """Send one encoded frame (see `wire.frames`).

        Safe to call from several tasks; frames are not interleaved.

        Raises:
            PeerGone: the stream is closed, by either side, or the link failed.
        """
        ...

    async def receive(self) -> bytes:
        """The next whole frame. One task at a time.

        Raises:
            PeerGone: the peer ended the stream or the link failed.
            PeerCheating: the bytes are not a frame, or exceed the limits of `wire.frames`;
                the stream is closed.
        """
        ...

    async def close(self) -> None:
        """End the stream. Idempotent, never raises; pending `receive` calls raise PeerGone."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]
"""Called in a task of its own for every stream a peer opens; the stream is closed when it
returns or raises. A UnisonoError that it raises is logged and dropped."""


class Transport(Protocol):
    """bind → (dial | serve)* → close."""

    async def bind(self) -> PeerAddress:
        """Open the local endpoint. The address is what peers dial.

        Raises:
            ConfigurationError: the address is taken or malformed.
        """
        ...

    async def dial(self, peer: PeerAddress) -> Stream:
        """Open a stream to `peer` and check that it holds the key of `peer.node`.

        Raises:
            PeerGone: no address answers in time.
            PeerCheating: someone answers who holds another key.
        """
        ...

    async def serve(self, handler: StreamHandler) -> None:
        """Accept streams until `close`, each handled in a task of its own."""
        ...

    async def close(self) -> None:
        """Close all streams and the endpoint. Idempotent, never raises."""
        ...
