"""Claims of staked nodes in the form of a chain, asked for before an audit begins.

A stake is worth something only if the court can judge: it takes claims that are signed with the
operator's key. A gateway asks a node for that form of a claim when the lottery has drawn it, and
before anybody replays it; a node that does not sign, or signs something else, has no stake here
for a day. What it signed is kept with all that a dispute needs.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from msgspec import UNSET

from unisono.clock import Clock
from unisono.compose.prosecution import ask_for_claim
from unisono.compose.staked import StakedMembers
from unisono.errors import (
    BadSignature,
    ConfigurationError,
    ModelError,
    PeerRefused,
    ReceiptError,
    WireError,
)
from unisono.models.store import StoredModel
from unisono.settlement.briefs import Brief, Briefs
from unisono.settlement.claims import SettlementClaim, court_domain
from unisono.settlement.eip712 import parse_address
from unisono.settlement.ledger.deployment import Deployment
from unisono.types import EvmAddress
from unisono.verification.fraud.descriptors import Descriptors, descriptors
from unisono.verification.fraud.moves import Subject
from unisono.verification.fraud.positions import subject_of
from unisono.verification.receipt import Receipt
from unisono.wire.claims import RETENTION_EPOCHS, HopClaim
from unisono.wire.transports.base import Transport

log = logging.getLogger(__name__)

SIGN_SECONDS = 15.0


class Sureties:
    """One gateway's, for one model."""

    def __init__(
        self,
        members: StakedMembers,
        transport: Transport,
        clock: Clock,
        deployment: Deployment,
        payer: EvmAddress,
        model: StoredModel,
        folder: Path | None,
    ) -> None:
        """`payer`: who is refunded; `folder`: where signed claims are kept, None: in memory."""
        self._members = members
        self._transport = transport
        self._clock = clock
        self._deployment = deployment
        self._payer = payer
        self._model = model
        self._program: Descriptors | None = None
        self.briefs = Briefs(folder)
        """What was signed, by the claim's digest."""

    async def secure(self, receipt: Receipt, claim: HopClaim) -> SettlementClaim | None:
        """Have a node sign for the chain, if it has a stake; None if it has none or does not."""
        staked = self._members.staked(claim.node)
        # the court knows no ensembles, so a hop that was given its tokens need not sign for it
        given = claim.distributions is not UNSET
        if staked is None or claim.model != self._model.id or given:
            return None
        assert staked.terms is not None
        try:
            if self._program is None:
                self._program = await asyncio.to_thread(descriptors, self._model.manifest)
            subject = subject_of(receipt, receipt.hops.index(claim), self._model)
            operator = parse_address(staked.terms.operator or staked.terms.payee)
            async with asyncio.timeout(SIGN_SECONDS):
                stream = await self._transport.dial(staked.address)
                try:
                    signed = await ask_for_claim(
                        stream,
                        subject,
                        receipt.tokens,
                        self._program,
                        self._deployment,
                        self._payer,
                        operator,
                    )
                finally:
                    await stream.close()
        except (ModelError, ReceiptError, ConfigurationError) as error:
            log.warning("no claim of receipt %s can be had for the chain: %s", receipt.id, error)
            return None
        except (WireError, BadSignature, TimeoutError) as error:
            log.warning("node %s… does not sign for its stake: %s", claim.node[:16], error)
            self._members.distrust(claim.node)
            return None
        self._keep(subject, receipt.tokens, signed)
        return signed

    def _keep(self, subject: Subject, answer: tuple[int, ...], signed: SettlementClaim) -> None:
        domain = court_domain(self._deployment.chain_id, self._deployment.address("court"))
        self.briefs.forget(subject.claim.epoch - RETENTION_EPOCHS)
        kept = Brief(subject, () if subject.tokens else answer, claim=signed)
        try:
            self.briefs.keep(signed.digest(domain), kept)
        except PeerRefused as refusal:
            log.warning("a signed claim is not kept: %s", refusal)
