"""A process that calls on nodes and serves nobody: an auditor, a challenger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from unisono.clock import Clock
from unisono.compose.front_door import FrontDoor
from unisono.errors import ConfigurationError, PeerGone, WireError
from unisono.routing.gossip import Gossip
from unisono.routing.membership import Membership
from unisono.types import NodeId, PeerAddress
from unisono.wire.identity import Identity
from unisono.wire.records import NodeRecord
from unisono.wire.transports import make_transport
from unisono.wire.transports.base import Stream

JOIN_SECONDS = 10.0
CALL_SECONDS = 20.0
_LOOPBACK = ("127.", "localhost", "[::1]")


class Visitor:
    """Use: `start`, then `call`, then `close`."""

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        addresses: Iterable[PeerAddress],
        join: tuple[PeerAddress, ...] = (),
    ) -> None:
        """`addresses`: nodes that are known already; `join`: members that know others.

        Raises:
            ConfigurationError: no address is given, or they are of several transports.
        """
        self._known = {address.node: address for address in (*join, *addresses)}
        transports = {address.transport for address in self._known.values()}
        if len(transports) != 1:
            raise ConfigurationError(
                "no node's address is known: give --join ADDRESS, or --base-url of a gateway"
                if not transports
                else f"the addresses are of several transports: {', '.join(sorted(transports))}"
            )
        hosts = [text for a in self._known.values() for text in a.addresses]
        local = all(text.startswith(_LOOPBACK) for text in hosts)
        self._identity, self._clock, self._join = identity, clock, join
        self._transport = make_transport(
            transports.pop(), identity, "127.0.0.1:0" if local else "0.0.0.0:0", clock=clock
        )
        self._members = Membership(clock, identity.node_id)
        self._gossip: Gossip | None = None
        self._address: PeerAddress | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind, and ask those who were named for others.

        Raises:
            WireError: none of them answers.
        """
        self._address = await self._transport.bind()
        if not self._join:
            return
        self._gossip = Gossip(
            self._transport,
            self._identity,
            self._members,
            self._clock,
            self._describe,
            bootstrap=self._join,
        )
        door = FrontDoor(self._gossip)
        self._serving = asyncio.create_task(self._transport.serve(door.handle))
        await self._gossip.join(JOIN_SECONDS)

    def address(self, node: NodeId) -> PeerAddress:
        """Where a node is reached.

        Raises:
            PeerGone: nobody here knows it.
        """
        for record in self._members.records():
            if record.node == node:
                return record.address
        if node in self._known:
            return self._known[node]
        raise PeerGone(
            f"node {node} is not known here: it may have left, or the member that was asked "
            "does not know it"
        )

    async def call(self, node: NodeId) -> Stream:
        """A stream to a node.

        Raises:
            WireError: it is not known or cannot be reached.
        """
        address = self.address(node)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await self._transport.dial(address)
        except TimeoutError:
            raise PeerGone(f"{address} did not answer in {CALL_SECONDS:.0f} s") from None

    async def close(self) -> None:
        """Leave; idempotent."""
        if self._gossip is not None:
            with contextlib.suppress(WireError):
                await self._gossip.leave()
        if self._serving is not None:
            self._serving.cancel()
        await self._transport.close()

    def _describe(self) -> NodeRecord:
        """A member that holds nothing."""
        assert self._address is not None
        return NodeRecord.of_member(self._address)
