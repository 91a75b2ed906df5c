"""A member's part in verification by committees: what it is told, passes on, and says itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from msgspec import Struct

from unisono.clock import Clock
from unisono.routing.entry import contains, node_key
from unisono.routing.membership import Membership
from unisono.routing.notices import NoticeBoard
from unisono.types import NodeId
from unisono.verification.stakes.beacon import ChainSource
from unisono.verification.stakes.bulletin import BeaconLink, Bulletin, Convicted, notice_of
from unisono.verification.stakes.conviction import SignedRoster
from unisono.verification.stakes.lottery import LotteryKey, Roster, Verifier
from unisono.wire.claims import EPOCH_SECONDS
from unisono.wire.identity import Identity
from unisono.wire.notices import NoticeKind
from unisono.wire.transports.base import Transport

log = logging.getLogger(__name__)

LOOKS_PER_EPOCH = 8
ROSTER_AT = 0.75
"""The share of an epoch after which its roster is published: nodes that came with it are in."""
MAX_ROSTER = 512
NEXT_CHAIN_EPOCHS = 64
"""An operator announces its next chain this many epochs ahead."""
STAKE = 1
"""Of every node, as long as nothing tells stakes apart."""


class Herald:
    """Publishes what is due, each epoch: the beacon's link if this member is an operator, and its
    lottery key and roster if it audits. Use: `run` until cancelled."""

    def __init__(
        self,
        identity: Identity,
        transport: Transport,
        members: Membership,
        clock: Clock,
        *,
        operators: Sequence[NodeId] = (),
        founder: bool = False,
        auditor: bool = False,
        epoch_seconds: int = EPOCH_SECONDS,
        on_conviction: Callable[[Convicted], None] = lambda convicted: None,
    ) -> None:
        """
        Args:
            operators: of the beacon; empty: the founder, or whoever is first heard to be one.
            founder: this member joined nobody.
        """
        self._identity = identity
        self._members = members
        self._clock = clock
        self._key = LotteryKey(identity) if auditor else None
        self.bulletin = Bulletin(
            clock,
            operators=operators,
            epoch_seconds=epoch_seconds,
            plausible=self._plausible,
            on_conviction=on_conviction,
        )
        self.board = NoticeBoard(transport, members, clock, self.bulletin.take, self.bulletin.keeps)
        self._source: ChainSource | None = None
        self._operates = identity.node_id in operators or (founder and not operators)
        self._linked = -1
        """The last epoch whose link was published."""
        self._announced = False
        """Whether the chain after the running one was."""
        self._bound = False

    @property
    def key(self) -> LotteryKey:
        """What this auditor draws with."""
        assert self._key is not None, "this member does not audit"
        return self._key

    async def run(self) -> None:
        """Publish what is due until cancelled."""
        while True:
            self.publish()
            await self._clock.sleep(self.bulletin.epoch_seconds / LOOKS_PER_EPOCH)

    def publish(self) -> None:
        """Say what is due now and was not said."""
        epoch = self.bulletin.epoch
        if self._operates:
            self._publish_beacon(epoch)
        if self._key is not None:
            if not self._bound:
                self._post("binding", self._key.binding(self._identity, epoch))
                self._bound = True
            into_epoch = self._clock.now() / self.bulletin.epoch_seconds - epoch
            if into_epoch >= ROSTER_AT:
                self._publish_roster(epoch)

    def _publish_beacon(self, epoch: int) -> None:
        source = self._source
        if source is None or not source.first <= epoch < source.first + source.epochs:
            source = self._source = ChainSource.of_operator(self._identity, epoch)
            self._announce(source)
            self._announced = False
        end = source.first + source.epochs
        if not self._announced and end - epoch <= NEXT_CHAIN_EPOCHS:
            self._announce(ChainSource.of_operator(self._identity, end))
            self._announced = True
        if self._linked < epoch:
            self._linked = epoch
            self._post("link", BeaconLink(self._identity.node_id, epoch, source.link(epoch)))

    def _announce(self, source: ChainSource) -> None:
        self._post("anchor", source.anchor(self._identity, self.bulletin.epoch_seconds))

    def _publish_roster(self, epoch: int) -> None:
        if self.bulletin.roster(epoch, self._identity.node_id) is not None:
            return
        # also those that did not answer last: others may have better luck, and views must agree
        records = [
            r
            for r, _ in self._members.all_records()
            if r.model and r.layers.count and not self.bulletin.is_convicted(r.node)
        ]
        if not records:
            return
        verifiers = (Verifier(r.node, STAKE, r.model, r.layers) for r in records[:MAX_ROSTER])
        signed = SignedRoster(self._identity.node_id, Roster.of(epoch, verifiers))
        self._post("roster", signed.signed_by(self._identity))

    def _post(self, kind: NoticeKind, statement: Struct) -> None:
        notice = notice_of(kind, statement)
        if notice is None or not self.board.post(notice):
            log.info("this member's %s is not of use now", kind)

    def _plausible(self, nodes: Sequence[NodeId]) -> bool:
        """Whether a roster can be an honest auditor's: most of it is known here, and most of what
        serves here is in it. In a large network, of the part that this member keeps records of."""
        region = self._members.region
        named = {n for n in nodes if contains(region, node_key(n))}
        known = {r.node for r, _ in self._members.known()} | {self._members.own}
        serving = {
            r.node
            for r in self._members.records()
            if r.layers.count and not self.bulletin.is_convicted(r.node)
        }
        return 2 * len(named & known) >= len(named) and 2 * len(named & serving) >= len(serving)
