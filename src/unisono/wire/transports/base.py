"""What a transport promises.

A transport carries whole frames (bytes) between endpoints that have proved their
ed25519 ids to each other. Frames of one stream arrive complete, once, in order, or
the stream fails. Nothing is promised between two streams.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

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

        Called again it returns the address as it is now: a transport learns with time where
        others see it and which relays reach it.

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


@runtime_checkable
class Located(Protocol):
    """A stream that knows where its peer is seen."""

    @property
    def remote(self) -> str | None:
        """HOST:PORT that the peer's packets come from; None if that is not known."""
        ...


@runtime_checkable
class Meeting(Protocol):
    """A transport that dials from the socket that it listens on, and whose one connection with
    a peer, made by either side, carries the streams of both.

    So the address that others see it at leads back to it, and two such transports behind NAT
    meet if each dials the other at the same time.
    """

    def connected(self, node: NodeId) -> bool:
        """Whether there is a connection with a node."""
        ...

    async def set_observed(self, addresses: tuple[str, ...]) -> None:
        """Take note of the addresses (HOST:PORT) that others see this transport at."""
        ...
