"""Asking peers where they see this node."""

from __future__ import annotations

import asyncio
import logging

from unisono.clock import Clock
from unisono.errors import PeerGone, WireError
from unisono.types import PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.relay_messages import Look, Seen
from unisono.wire.transports.addresses import is_own_host, may_dial, split_address
from unisono.wire.transports.base import Meeting, Transport
from unisono.wire.transports.observed import ObservedAddresses

logger = logging.getLogger(__name__)

REPLY_SECONDS = 5.0
MAX_LOOKS = 4
"""Questions under way at once."""


class Witnesses:
    """Collects what peers say and tells the transport what is believed.

    Only for a transport that dials from the socket that it listens on: of any other, peers see
    a port that leads nowhere.
    """

    def __init__(self, inner: Transport, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock
        self._observed = ObservedAddresses()
        self._looking: set[str] = set()

    def believed(self) -> tuple[str, ...]:
        """The addresses (HOST:PORT) that enough of them agree on."""
        return self._observed.believed(self._clock.monotonic())

    def translated(self) -> bool | None:
        """Whether a router translates this node's addresses; None while nobody has said."""
        seen = self._observed.hosts(self._clock.monotonic())
        return None if not seen else not any(is_own_host(host) for host in seen)

    def wants(self, remote: str | None) -> bool:
        """Whether to ask the peer at an address (HOST:PORT): not if it was asked lately."""
        if remote is None or not isinstance(self._inner, Meeting):
            return False
        host = split_address(remote, PeerGone)[0]
        if host in self._looking or len(self._looking) >= MAX_LOOKS:
            return False
        return not self._observed.is_known(host, self._clock.monotonic())

    async def ask(self, peer: PeerAddress, remote: str) -> None:
        """Ask a peer that was dialled at `remote`. Failures are logged."""
        host = split_address(remote, PeerGone)[0]
        self._looking.add(host)
        try:
            stream = await self._inner.dial(peer)
            try:
                await stream.send(encode_frame(Look()))
                async with asyncio.timeout(REPLY_SECONDS):
                    message, _ = decode_frame(await stream.receive())
            finally:
                await stream.close()
            if isinstance(message, Seen) and message.address is not None:
                await self.report(peer, remote, message.address)
        except (WireError, TimeoutError) as error:
            logger.debug("%s does not say where it sees this node: %s", peer.node, error)
        finally:
            self._looking.discard(host)

    async def report(self, witness: PeerAddress, remote: str, seen: str) -> None:
        """Take note that a peer, dialled at `remote`, sees this node at `seen`."""
        if not isinstance(self._inner, Meeting) or not may_dial(seen, remote):
            return
        now = self._clock.monotonic()
        before = self._observed.believed(now)
        self._observed.report(split_address(remote, PeerGone)[0], witness.node, seen, now)
        believed = self._observed.believed(now)
        if believed != before:
            logger.info("others see this node at %s", ", ".join(believed) or "no one address")
            await self._inner.set_observed(believed)
