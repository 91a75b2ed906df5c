"""Ways to carry frames: `iroh` between machines, `tcp` where UDP is blocked, `memory` in tests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unisono.clock import Clock
from unisono.errors import ConfigurationError, UnisonoError
from unisono.types import NodeId, PeerAddress
from unisono.wire.identity import Identity
from unisono.wire.transports.base import Stream, StreamHandler, Transport

if TYPE_CHECKING:
    from unisono.wire.transports.relayed import RelayedTransport

__all__ = [
    "HandlerTasks",
    "Stream",
    "StreamHandler",
    "Transport",
    "direct_transport",
    "make_transport",
]

logger = logging.getLogger(__name__)

MAX_ACCEPTED_STREAMS = 1024
"""Streams that peers may hold open at one transport."""
CANCEL_SECONDS = 1.0


def make_transport(
    name: str,
    identity: Identity,
    bind: str = "127.0.0.1:0",
    *,
    relays: Sequence[PeerAddress] = (),
    serve_relay: bool = False,
    clock: Clock | None = None,
) -> RelayedTransport:
    """A transport that is not bound yet.

    Args:
        name: `iroh` or `tcp`.
        identity: the key that this side proves.
        bind: HOST:PORT; port 0 lets the system choose.
        relays: nodes that lead peers to this one, if they may be unable to dial it.
        serve_relay: whether this node, which everyone can dial, leads peers to others.

    Raises:
        ConfigurationError: there is no such transport, or it cannot be loaded here.
    """
    from unisono.wire.transports.relayed import RelayedTransport

    inner = direct_transport(name, identity, bind)
    return RelayedTransport(inner, identity, relays=relays, serve_relay=serve_relay, clock=clock)


def direct_transport(name: str, identity: Identity, bind: str = "127.0.0.1:0") -> Transport:
    """The same without relays, neither used nor served. It does not understand one with them."""
    if name == "tcp":
        from unisono.wire.transports.tcp import TcpTransport

        return TcpTransport(identity, bind)
    if name == "iroh":
        # Late, since it loads a native library that other transports do without.
        try:
            from unisono.wire.transports.iroh import IrohTransport
        except (ImportError, OSError) as error:
            raise ConfigurationError(
                f"the iroh transport cannot be loaded here ({error}): "
                "reinstall the `iroh` package, or choose the transport `tcp`"
            ) from error
        return IrohTransport(identity, bind)
    raise ConfigurationError(f"there is no transport '{name}': expected 'iroh' or 'tcp'")


class HandlerTasks:
    """The running handlers of accepted streams, at most `limit` of them."""

    def __init__(self, limit: int = MAX_ACCEPTED_STREAMS) -> None:
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        """Whether one more stream would be too many."""
        return len(self._tasks) >= self._limit

    def start(self, handler: StreamHandler, stream: Stream) -> None:
        """Run `handler` on `stream`, then close the stream."""
        task = asyncio.create_task(_handle(handler, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self) -> None:
        """Cancel all handlers and wait for them to end, at most a second."""
        await cancel_tasks(self._tasks)


async def cancel_tasks(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for them, at most a second; the calling task is left alone."""
    others = tasks - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=CANCEL_SECONDS)


async def _handle(handler: StreamHandler, stream: Stream) -> None:
    try:
        await handler(stream)
    except UnisonoError as error:
        logger.info("stream of %s ended: %s: %s", _short(stream.peer), type(error).__name__, error)
    except Exception:
        # A bug in one handler must not end the service for other peers.
        logger.exception("the handler of a stream of %s failed", _short(stream.peer))
    finally:
        await stream.close()


def _short(node: NodeId) -> str:
    return f"{node[:8]}…"
