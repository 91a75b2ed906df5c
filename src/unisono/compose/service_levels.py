"""A gateway's side of service levels: it measures its nodes and itself, and asks for credits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from unisono.clock import Clock
from unisono.errors import ConfigurationError, PeerCheating, PeerRefused, UnisonoError
from unisono.gateway.sla import ServiceReport, service_report
from unisono.market.presence import OFF_MS
from unisono.market.service_log import Figures, ServiceLog, outcomes
from unisono.routing.membership import Membership
from unisono.routing.reputation import Deed, Reputation
from unisono.types import NodeId
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Refused
from unisono.wire.payment_messages import CreditAsked, CreditGiven
from unisono.wire.records import NodeRecord
from unisono.wire.transports.base import Transport

if TYPE_CHECKING:
    from unisono.settlement.payments.purse import Purse

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
CLAIM_SECONDS = 5.0
"""Between two looks for credits that are due."""
ASK_SECONDS = 10.0
"""How long a node may take to answer."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 30.0, 3600.0
CLAIMED_WINDOWS = 7
"""A credit that nobody answers for is given up after so many windows. As long a node that refused
one gets no session that asks for a service level."""
BROKEN = frozenset({Deed.FAILED, Deed.LOST, Deed.UNREACHABLE, Deed.NOT_HELD, Deed.PRICE_BROKEN})
LATER = frozenset({"credit_early", "credit_later", "not_ready"})
"""Refusals after which a node is asked again."""


class ServiceLevels:
    """Implements `gateway.sla.Levels`. Use: `run` until cancelled."""

    def __init__(
        self,
        kept: ServiceLog,
        members: Membership,
        transport: Transport,
        clock: Clock,
        reputation: Reputation,
        purse: Purse | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`ready`: whether every model can be served now."""
        self._kept = kept
        self._members = members
        self._own = members.own
        self._transport = transport
        self._clock = clock
        self._reputation = reputation
        self._purse = purse
        self.ready = ready
        self._waits: dict[tuple[int, NodeId], tuple[float, float]] = {}
        """When a node is asked again for a window's credit, and how long it waits after that."""
        reputation.on_deed = self._deed
        now, looked = clock.now(), kept.looked
        if now - looked > OFF_MS / 1000:
            kept.own_down(self._own, looked, now)
        self._accounted = now
        """Up to when it is known whether the gateway could serve."""
        self._withhold()

    # what is observed

    def answered(self, good: bool) -> None:
        """See `Levels.answered`."""
        self._kept.session(self._own, good, self._clock.now())

    def audited(self, node: NodeId, verdict: str) -> None:
        """An audit of this gateway's has ended."""
        self._kept.audited(node, verdict, self._clock.now())

    def convicted(self, node: NodeId, signed: float) -> None:
        """A node is proven to have signed something false, at that Unix time."""
        self._kept.convicted(node, signed)
        self._waits.pop((self._kept.window(signed), node), None)

    def report(self) -> ServiceReport:
        """See `Levels.report`."""
        return service_report(self._kept, self._own, self._clock.now())

    async def run(self) -> None:
        """Watch heartbeats and ask for what is due, until cancelled."""
        asking: asyncio.Task[None] | None = None
        asked = self._clock.monotonic()
        try:
            while True:
                self.look()
                due = self._clock.monotonic() - asked >= CLAIM_SECONDS
                if self._purse is not None and due and (asking is None or asking.done()):
                    asked = self._clock.monotonic()
                    asking = asyncio.create_task(self.claim(self._purse))
                await self._clock.sleep(LOOK_SECONDS)
        finally:
            if asking is not None:
                asking.cancel()

    def look(self) -> None:
        """Take in the records that are known now."""
        kept, now = self._kept, self._clock.now()
        kept.look(now)
        if not self.ready():
            kept.own_down(self._own, max(self._accounted, now - OFF_MS / 1000), now)
        self._accounted = now
        for record, _ in self._members.known():
            # gateways hold nothing and promise nothing
            if record.model or kept.known(record.node):
                tier = record.terms.tier if record.terms else 0
                kept.heard(record.node, record.expires, leaving=record.leaving, tier=tier)

    def _deed(self, node: NodeId, deed: Deed) -> None:
        if deed is Deed.COMPLETED or deed in BROKEN:
            self._kept.session(node, deed is Deed.COMPLETED, self._clock.now())

    # credits

    async def claim(self, purse: Purse) -> None:
        """Ask every node for what it owes, unless it is to be asked later."""
        newest = self._kept.last_closed
        now = self._clock.monotonic()
        oldest = newest - CLAIMED_WINDOWS
        self._waits = {key: wait for key, wait in self._waits.items() if key[0] > oldest}
        for window in range(oldest + 1, newest + 1):
            for node, figures in self._kept.figures(window).items():
                due = figures.outcome in ("", "asked") and figures.share(self._kept.window_ms)
                at, wait = self._waits.get((window, node), (now, FIRST_RETRY_SECONDS))
                if not due or at > now or node == self._own:
                    continue
                self._waits[window, node] = now + wait, min(2 * wait, LAST_RETRY_SECONDS)
                try:
                    await self._claim(purse, window, node, figures)
                except (UnisonoError, TimeoutError) as error:
                    log.info("a credit of node %s… is not settled yet: %s", node[:8], error)

    async def _claim(self, purse: Purse, window: int, node: NodeId, figures: Figures) -> None:
        """Ask one node.

        Raises:
            UnisonoError: the node or the chain does not answer; it is asked again.
            TimeoutError: the node takes too long.
        """
        entry = self._members.find(node)
        if entry is None or entry.record.terms is None:
            self._kept.settled(window, node, "asked", figures.credit)
            return
        record = entry.record
        if not await purse.paid(record, window):
            self._kept.settled(window, node, "unpaid", 0)
            return
        asked = CreditAsked(
            purse.address,
            window,
            self._kept.window_ms // 1000,
            figures.tier,
            figures.down,
            figures.convicted,
        )
        self._kept.settled(window, node, "asked", figures.credit)
        try:
            units = await self._ask(record, asked)
        except PeerRefused as refusal:
            if refusal.code in LATER:
                raise
            self._refused(record, window, "refused", str(refusal))
            return
        share = figures.share(self._kept.window_ms)
        came, least = await purse.credited(record, window, units, share)
        if came < least:
            self._refused(record, window, "short", f"{came} units of {least}", came)
            return
        log.info("node %s… gave %d units back for window %d", node[:8], came, window)
        self._kept.settled(window, node, "granted", came)

    async def _ask(self, record: NodeRecord, asked: CreditAsked) -> int:
        """What a node says to it.

        Raises:
            PeerRefused: no, with its code.
            WireError, TimeoutError: nothing that counts.
        """
        async with asyncio.timeout(ASK_SECONDS):
            stream = await self._transport.dial(record.address)
            try:
                await stream.send(encode_frame(asked))
                message, _ = decode_frame(await stream.receive())
            finally:
                await stream.close()
        if isinstance(message, Refused):
            raise PeerRefused(message.message, message.code)
        if not isinstance(message, CreditGiven) or message.window != asked.window:
            raise PeerCheating(f"{type(message).__name__} in answer to a claim for a credit")
        return message.units

    def _refused(
        self, record: NodeRecord, window: int, outcome: str, why: str, came: int = 0
    ) -> None:
        log.warning("node %s… does not give what it owes: %s", record.node[:8], why)
        self._kept.settled(window, record.node, outcome, came)
        self._reputation.saw(record, Deed.CREDIT_REFUSED)
        self._withhold()

    def _withhold(self) -> None:
        """Nodes that refused what was due get no session that asks for a service level."""
        newest = self._kept.last_closed
        recent = range(newest - CLAIMED_WINDOWS + 1, newest + 1)
        self._reputation.withheld = outcomes(self._kept, recent, frozenset({"refused", "short"}))

    def close(self) -> None:
        """Keep what was observed; idempotent."""
        try:
            self._kept.close()
        except ConfigurationError as error:
            log.error("what was observed last is lost: %s", error)
