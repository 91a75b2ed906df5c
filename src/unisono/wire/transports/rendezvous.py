"""A direct path to nodes that are reached through relays: both sides dial at once.

A NAT lets packets in from where packets went out to. If both sides send at the same time, to the
addresses that a relay sees them at, each opens its own NAT for the other. That works unless one
of the NATs uses another port for every destination (a symmetric NAT): then the relay carries on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerRefused, WireError
from unisono.types import NodeId, PeerAddress
from unisono.wire.bounds import MAX_ADDRESSES
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Refused
from unisono.wire.relay_messages import DialBack, Introduce, Introduced
from unisono.wire.transports import cancel_tasks
from unisono.wire.transports.addresses import may_dial
from unisono.wire.transports.allowance import Bucket
from unisono.wire.transports.base import Meeting, Transport
from unisono.wire.transports.relay import seen_at

logger = logging.getLogger(__name__)

PAUSES = (0.0, 2.0, 8.0, 30.0, 120.0)
"""Seconds before each attempt of a search."""
REST_SECONDS = 600.0
"""After a search that found nothing, the next call of the same node starts another this late."""
REPLY_SECONDS = 5.0
MAX_SEARCHES = 64
MAX_REMEMBERED = 1024

_T = TypeVar("_T")


class Rendezvous:
    """Searches that run in the background, one per node."""

    def __init__(
        self, inner: Transport, clock: Clock, own_addresses: Callable[[], tuple[str, ...]]
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._own_addresses = own_addresses
        self._tasks: set[asyncio.Task[None]] = set()
        self._searching: set[NodeId] = set()
        self._hopeless: OrderedDict[NodeId, float] = OrderedDict()
        """Nodes without a direct path, and when to look again."""
        self._found: OrderedDict[NodeId, tuple[str, ...]] = OrderedDict()
        self._dial_backs = Bucket(1.0, 8.0, clock)

    def worth_dialling(self, node: NodeId) -> bool:
        """Whether a direct dial may work."""
        if isinstance(self._inner, Meeting) and self._inner.connected(node):
            return True
        return node not in self._searching and not self._is_hopeless(node)

    def found(self, node: NodeId) -> tuple[str, ...]:
        """Addresses that a search reached a node at."""
        return self._found.get(node, ())

    def search(self, peer: PeerAddress, relays: tuple[PeerAddress, ...]) -> None:
        """Look for a direct path to `peer` in the background, unless that goes on already.

        Args:
            peer: with its direct addresses only, perhaps none.
            relays: that lead to it.
        """
        node = peer.node
        if node in self._searching or self._is_hopeless(node):
            return
        if len(self._searching) >= MAX_SEARCHES:
            return
        self._searching.add(node)
        self._spawn(self._search(peer, relays), node)

    def dial_back(self, relay: PeerAddress, message: DialBack) -> None:
        """Dial whoever dials this node now, in the background."""
        if not isinstance(self._inner, Meeting) or self._inner.connected(message.caller):
            return
        told_by = relay.addresses[0]
        addresses = tuple(a for a in message.addresses if may_dial(a, told_by))
        if addresses and self._dial_backs.allows(1):
            caller = PeerAddress(message.caller, relay.transport, addresses)
            self._spawn(self._knock_back(caller), None)

    async def close(self) -> None:
        """End all searches."""
        await cancel_tasks(self._tasks)

    def _is_hopeless(self, node: NodeId) -> bool:
        until = self._hopeless.get(node)
        return until is not None and until > self._clock.monotonic()

    async def _search(self, peer: PeerAddress, relays: tuple[PeerAddress, ...]) -> None:
        node = peer.node
        for number, pause in enumerate(PAUSES):
            await self._clock.sleep(pause)
            relay = relays[number % len(relays)]
            try:
                addresses = dict.fromkeys(peer.addresses)
                if isinstance(self._inner, Meeting):
                    addresses = dict.fromkeys(await self._introduced(relay, node)) | addresses
                if not addresses:
                    continue
                direct = PeerAddress(node, peer.transport, tuple(addresses)[:MAX_ADDRESSES])
                await (await self._inner.dial(direct)).close()
            except WireError as error:
                logger.debug("no direct path to %s yet: %s", node, error)
                continue
            _remember(self._found, node, direct.addresses)
            self._hopeless.pop(node, None)
            logger.info("found a direct path to %s", node)
            return
        _remember(self._hopeless, node, self._clock.monotonic() + REST_SECONDS)

    async def _introduced(self, relay: PeerAddress, node: NodeId) -> list[str]:
        """Where the relay sees `node`, which dials this one now."""
        stream = await self._inner.dial(relay)
        try:
            await stream.send(encode_frame(Introduce(node, self._own_addresses())))
            async with asyncio.timeout(REPLY_SECONDS):
                message, _ = decode_frame(await stream.receive())
        except TimeoutError:
            raise PeerRefused(f"the relay {relay} does not introduce anyone") from None
        finally:
            told_by = seen_at(stream) or relay.addresses[0]
            await stream.close()
        if isinstance(message, Refused):
            raise PeerRefused(message.message, message.code)
        if not isinstance(message, Introduced):
            raise PeerCheating(f"{type(message).__name__} in reply to an introduction")
        return [address for address in message.addresses if may_dial(address, told_by)]

    async def _knock_back(self, caller: PeerAddress) -> None:
        try:
            await (await self._inner.dial(caller)).close()
        except WireError as error:
            logger.debug("dialled %s back in vain: %s", caller.node, error)

    def _spawn(self, work: Coroutine[Any, Any, None], searched: NodeId | None) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if searched is not None:
                self._searching.discard(searched)

        task.add_done_callback(done)


def _remember(kept: OrderedDict[NodeId, _T], node: NodeId, value: _T) -> None:
    kept[node] = value
    kept.move_to_end(node)
    while len(kept) > MAX_REMEMBERED:
        kept.popitem(last=False)
