"""The auditor in a gateway: answers wait for the lottery, and committees replay those it names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from unisono.clock import Clock
from unisono.compose.hearing import AuditSettings, Heard, Hearing
from unisono.compose.herald import Herald
from unisono.errors import PeerCheating, ReceiptError, UnisonoError
from unisono.gateway import GatewayMetrics, ReceiptStore
from unisono.gateway.audits import ConvictedNode
from unisono.routing.membership import Membership
from unisono.routing.recent import Recent
from unisono.types import ModelId, NodeId
from unisono.verification.audit_note import AuditNote
from unisono.verification.conduct import STRANGER, Conduct, Finding, after
from unisono.verification.policy import rate_for
from unisono.verification.receipt import Receipt, from_json
from unisono.verification.stakes.bulletin import notice_of
from unisono.verification.stakes.conviction import Conviction
from unisono.verification.stakes.docket import Case, Docket
from unisono.verification.stakes.service import Audited, Auditor
from unisono.wire.bounds import MAX_MESSAGE_CHARACTERS, MAX_ROWS
from unisono.wire.claims import HopClaim
from unisono.wire.identity import Identity
from unisono.wire.transports.base import Transport
from unisono.wire.verification_messages import Ticket

if TYPE_CHECKING:  # gateways without a chain do not load its libraries
    from unisono.settlement.claims import SettlementClaim

    Secure = Callable[[Receipt, HopClaim], Awaitable[SettlementClaim | None]]
    Sue = Callable[[Receipt, SettlementClaim, Heard, AuditNote], Awaitable[None]]

log = logging.getLogger(__name__)

MAX_CONDUCTS = 16_384
MAX_DUE = 1024
"""Audits that wait for their turn; beyond, the oldest are given up."""
LOOKS_PER_EPOCH = 4


class Audits:
    """Implements `gateway.audits.Auditing`. Use: `take` answers, `run` until cancelled."""

    def __init__(
        self,
        identity: Identity,
        transport: Transport,
        members: Membership,
        clock: Clock,
        herald: Herald,
        receipts: ReceiptStore,
        metrics: GatewayMetrics,
        widths: Mapping[ModelId, int],
        settings: AuditSettings,
        convict: Callable[[NodeId], None],
        audited: Callable[[NodeId, str], None] = lambda node, verdict: None,
        secure: Secure | None = None,
        sue: Sue | None = None,
    ) -> None:
        """
        Args:
            widths: hidden size of every model that is audited.
            convict: keeps a node from all work of this gateway.
            audited: told of the verdict of every audit.
            secure: has a claim that is drawn signed for a chain, before anybody replays it.
            sue: opens a case on that chain about such a claim that is false.
        """
        self._identity = identity
        self._transport = transport
        self._members = members
        self._clock = clock
        self._herald = herald
        self._bulletin = herald.bulletin
        self._receipts = receipts
        self._metrics = metrics
        self._widths = widths
        self._settings = settings
        self._convict = convict
        self._audited = audited
        self._secure, self._sue = secure, sue
        self._auditor = Auditor(identity, transport, clock)
        self._docket = Docket(herald.key, identity.node_id, self._bulletin, self._bulletin)
        self._conducts: Recent[NodeId, Conduct] = Recent(MAX_CONDUCTS)
        self._due: asyncio.Queue[tuple[Case, Ticket]] = asyncio.Queue(MAX_DUE)

    def take(self, receipt: Receipt) -> None:
        """See `Auditing.take`. What this gateway computed itself is not audited."""
        if receipt.request.model not in self._widths or not self._settings.rate:
            return
        now = self._clock.now()
        for claim in receipt.hops:
            if claim.node != self._identity.node_id and claim.positions <= MAX_ROWS:
                rate = rate_for(self._settings.rate, self.conduct(claim.node), now)
                self._docket.add(Case(claim, receipt.id, rate, self._settings.seats))

    def convicted(self) -> tuple[ConvictedNode, ...]:
        """See `Auditing.convicted`."""
        return tuple(
            ConvictedNode(c.node, c.epoch, c.fault.kind, c.fault.message)
            for c in self._bulletin.convicted
        )

    def conduct(self, node: NodeId) -> Conduct:
        """What this gateway's audits found of a node."""
        return self._conducts.get(node) or STRANGER

    async def run(self) -> None:
        """Draw lots and hold audits until cancelled."""
        workers = [asyncio.create_task(self._work()) for _ in range(self._settings.running)]
        try:
            while True:
                await self._clock.sleep(self._bulletin.epoch_seconds / LOOKS_PER_EPOCH)
                due = self._docket.take_due()
                won = await asyncio.to_thread(self._docket.lots, due) if due else []
                for case, ticket in won:
                    if self._due.full():
                        log.warning("audits come faster than they are held: one is given up")
                        self._due.get_nowait()
                    self._due.put_nowait((case, ticket))
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            case, ticket = await self._due.get()
            try:
                await self._hold(case, ticket)
            except UnisonoError as error:
                log.warning("an audit of node %s… failed: %s", case.claim.node[:16], error)

    async def _hold(self, case: Case, ticket: Ticket) -> None:
        """One audit, from the receipt to what follows from the verdict."""
        stored = await self._receipts.get(case.receipt)
        roster = self._bulletin.roster(case.claim.epoch, self._identity.node_id)
        if stored is None or roster is None:
            log.info("receipt %s is not audited: it or its epoch is forgotten", case.receipt)
            return
        receipt = from_json(stored)
        signed = None if self._secure is None else await self._secure(receipt, case.claim)
        hearing = Hearing(
            auditor=self._auditor,
            transport=self._transport,
            clock=self._clock,
            address_of=self._members.address_of,
            hidden=self._widths[receipt.request.model],
            settings=self._settings,
            receipt=receipt,
            claim=case.claim,
            ticket=ticket,
            roster=roster,
        )
        heard = await hearing.hold()
        self._metrics.audits.labels(heard.verdict.verdict).inc()
        note = _note(case.claim, heard)
        await self._receipts.note(receipt.id, note)
        self._audited(case.claim.node, heard.verdict.verdict)
        self._learn(case.claim.node, heard)
        if heard.verdict.verdict == "INVALID":
            log.warning("audit of receipt %s: %s", receipt.id, heard.verdict.message)
            self._accuse(receipt, case.claim, heard)
            if signed is not None and self._sue is not None:
                await self._sue(receipt, signed, heard, note)

    def _learn(self, node: NodeId, heard: Heard) -> None:
        """Remember what the audit shows of the node and of those who sat."""
        if heard.verdict.verdict != "INCONCLUSIVE":
            self._found(node, "verified" if heard.verdict.verdict == "VALID" else "convicted")
        for audited in (heard.audited, heard.planted):
            if audited is not None:
                self._judge_members(audited)

    def _judge_members(self, audited: Audited) -> None:
        blamed: dict[NodeId, Finding] = {fault.node: fault.kind for fault in audited.faults}
        for kind in blamed.values():
            self._metrics.committee_faults.labels(kind).inc()
        decided = audited.outcome is not None and audited.outcome.result is not None
        for member in audited.members:
            if member in blamed:
                self._found(member, blamed[member])
            elif decided:
                self._found(member, "served")

    def _found(self, node: NodeId, finding: Finding) -> None:
        self._conducts.put(node, after(self.conduct(node), finding, self._clock.now()))

    def _accuse(self, receipt: Receipt, claim: HopClaim, heard: Heard) -> None:
        """Give the node no more work, and tell all others why, if they can be shown."""
        self._convict(claim.node)
        auditor = self._identity.node_id
        binding = self._bulletin.binding(auditor, claim.epoch)
        roster = self._bulletin.signed_roster(claim.epoch, auditor)
        if heard.audited is None or heard.audited.transcript is None or not (binding and roster):
            return
        conviction = Conviction.of(receipt, claim.hop, heard.audited.transcript, binding, roster)
        try:
            conviction.check(self._bulletin)
        except ReceiptError as error:
            log.warning("node %s… cannot be convicted elsewhere: %s", claim.node[:16], error)
            return
        notice = notice_of("conviction", conviction)
        if notice is None:
            log.warning("the conviction of node %s… is too large to pass on", claim.node[:16])
            return
        try:
            self._herald.board.post(notice)
        except PeerCheating as error:
            log.warning("the conviction of node %s… is not taken: %s", claim.node[:16], error)


def _note(claim: HopClaim, heard: Heard) -> AuditNote:
    verdict, audited = heard.verdict, heard.audited
    outcome = None if audited is None else audited.outcome
    return AuditNote(
        hop=claim.hop,
        node=claim.node,
        epoch=claim.epoch,
        verdict=verdict.verdict,
        fault=None if verdict.fault is None else verdict.fault.kind,
        message=verdict.message[:MAX_MESSAGE_CHARACTERS],
        seats=heard.seats,
        votes=0 if outcome is None else outcome.votes,
        members=() if audited is None else audited.members,
    )
