"""Where a member of the network is reached, as it changes: routers forget, relays come and go."""

from __future__ import annotations

import logging
from collections.abc import Callable

from unisono.clock import Clock
from unisono.routing.membership import Membership
from unisono.types import PeerAddress
from unisono.wire.transports.base import Transport
from unisono.wire.transports.relayed import RelayedTransport

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
MAX_RELAYS = 4
"""Members that offer to relay, of which a node behind NAT tries as many."""


class Reach:
    """A bound transport's address. A node that finds itself behind NAT and was given no relays
    takes members that offer themselves."""

    def __init__(
        self, transport: Transport, members: Membership, clock: Clock, *, own_relays: bool
    ) -> None:
        """`own_relays`: whether relays were chosen for it, so that it looks for none."""
        self._transport = transport
        self._members = members
        self._clock = clock
        self._own_relays = own_relays

    async def keep(self, changed: Callable[[PeerAddress], None]) -> None:
        """Call `changed` with every new address, until cancelled."""
        address = await self._transport.bind()
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            if not isinstance(self._transport, RelayedTransport):
                continue
            if self._transport.behind_nat and not self._own_relays:
                offers = [r for r in self._members.records() if r.relay]
                offers.sort(key=lambda r: (r.sessions, r.node))
                await self._transport.use_relays([r.address for r in offers[:MAX_RELAYS]])
            now = await self._transport.bind()
            if now != address:
                log.info("this node is reached at %s now", now)
                address = now
                changed(now)
