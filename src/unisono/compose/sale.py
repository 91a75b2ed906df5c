"""What a node sells: its till, its stake, and its prices in its record. Knows the libraries of a
chain only when something is sold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from unisono.clock import Clock
from unisono.compose.chain_settings import ChainSettings, SellerSettings
from unisono.errors import ConfigurationError, SettlementError
from unisono.market.service_log import ServiceLog
from unisono.market.sla import WINDOW_SECONDS
from unisono.routing.membership import Membership
from unisono.types import NodeId
from unisono.wire.identity import Identity
from unisono.wire.records import LEASE_SECONDS, NodeRecord

if TYPE_CHECKING:
    from unisono.compose.counsel import Counsel
    from unisono.compose.credit_desk import CreditDesk
    from unisono.compose.jury_duty import Bench, JuryDuty
    from unisono.compose.respondent import Respondent
    from unisono.compose.wallet import Wallet
    from unisono.market.pricing import Machine
    from unisono.models.store import StoredModel
    from unisono.settlement.payments.till import Till
    from unisono.settlement.stakes import OwnStake
    from unisono.verification.stakes.work import Recomputer

log = logging.getLogger(__name__)

LAST_SECONDS = 10.0
"""How long a node that leaves waits for its last vouchers to be redeemed."""
REVIEW_SECONDS = 60.0
"""How often a node looks at its price and its stake."""


class Sale:
    """Made by `Sale.open`."""

    def __init__(
        self,
        wallet: Wallet,
        till: Till,
        seller: SellerSettings,
        clock: Clock,
        layer_count: int,
        own: OwnStake | None = None,
        machine: Machine | None = None,
    ) -> None:
        self._wallet = wallet
        self.till = till
        self._seller = seller
        self._clock = clock
        self._layer_count = layer_count
        self._own = own
        self._machine = machine
        self._kept: ServiceLog | None = None
        self._desk: CreditDesk | None = None
        self._priced_at = -REVIEW_SECONDS
        self._running = asyncio.create_task(till.run())
        self._reviewing = asyncio.create_task(self._review())

    @classmethod
    async def open(
        cls,
        chain: ChainSettings | None,
        seller: SellerSettings | None,
        identity: Identity,
        clock: Clock,
        layer_count: int,
        report: Callable[[str], None] = log.info,
        window_seconds: int = WINDOW_SECONDS,
    ) -> Sale | None:
        """Begin to sell; None where nothing is sold. `window_seconds`: over which service levels
        are promised.

        Raises:
            ConfigurationError: prices without a chain, or a file that is not what it should be.
            InsufficientFunds: less than the stake; says what is missing.
            SettlementError: the chain does not answer.
        """
        if seller is None:
            return None
        if chain is None:
            raise ConfigurationError("prices need a chain: give --chain-rpc and --deployment")
        machine = None
        if seller.floor is not None:
            from unisono.compose.pricing import machine_of

            machine = machine_of(seller.floor)
        from unisono.compose.wallet import Wallet

        report("opening the wallet")
        wallet = await Wallet.open(chain, identity, clock)
        try:
            own = None
            till = wallet.till(seller, layer_count, window_seconds)
            if seller.stake or seller.bench:
                report("staking")
                own = wallet.own_stake(identity)
                till.staked((await own.ensure(seller.stake)).counts)
            if seller.bench:
                report("taking a place on the committee's bench")
                await wallet.own_place(identity).ensure(seller.bench)
            return cls(wallet, till, seller, clock, layer_count, own, machine)
        except BaseException:
            await wallet.close()
            raise

    def desk(
        self,
        members: Membership,
        window_seconds: int,
        convicted_at: Callable[[NodeId], float | None],
    ) -> CreditDesk:
        """What answers for the service level that is promised. See `CreditDesk`.

        Raises:
            ConfigurationError: its file cannot be used.
        """
        from unisono.compose.credit_desk import CreditDesk

        folder = self._wallet.folder
        self._kept = ServiceLog(
            None if folder is None else folder / f"service-{members.own[:16]}.sqlite",
            window_seconds,
            LEASE_SECONDS,
            self._clock.now(),
            of_itself=True,
        )
        self._desk = CreditDesk(self.till, self._kept, members, self._clock, convicted_at)
        return self._desk

    async def counsel(
        self, respondent: Respondent, model: StoredModel, epoch_seconds: int
    ) -> Counsel | None:
        """What answers for this node's claims before the court; None of a node without a stake.

        Raises:
            ConfigurationError: the court counts epochs of another length.
            SettlementError: the chain does not answer.
        """
        if self._own is None:
            return None
        from unisono.compose.counsel import Counsel

        return await Counsel.open(respondent, self._wallet, model, self._clock, epoch_seconds)

    async def jury_duty(
        self, counsel: Counsel, identity: Identity, bench: Bench, judge: Recomputer
    ) -> JuryDuty | None:
        """This node before the committee of its chain; None where there is none.

        Args:
            judge: what computes this node's own claims again when they are contradicted.

        Raises:
            ConfigurationError: its file cannot be used.
            SettlementError: the chain does not answer.
        """
        from unisono.compose.jury_duty import duty_of

        return await duty_of(self._wallet, counsel, identity, bench, judge, self._clock)

    def priced(self, record: NodeRecord) -> NodeRecord:
        """A record with what is asked; unsigned. The floor of a machine is found once a minute,
        from what the record says of its speed."""
        floor, now = self._seller.floor, self._clock.monotonic()
        if floor is not None and self._machine is not None:
            if now - self._priced_at >= REVIEW_SECONDS:
                self._reprice(record, floor.sessions)
            if not self.till.is_open:  # nothing is known of its speed yet
                return msgspec.structs.replace(record, free_positions=0, terms=self.till.terms)
        price_in, price_out = self.till.prices
        return msgspec.structs.replace(
            record, price_in=price_in, price_out=price_out, terms=self.till.terms
        )

    def _reprice(self, record: NodeRecord, sessions: int) -> None:
        from unisono.compose.pricing import price_at

        assert self._machine is not None
        try:
            price = price_at(self._machine, record, sessions, self._layer_count, self._clock.now())
        except ConfigurationError as error:
            log.error("no price is found, the last one stays: %s", error)
            return
        if price is not None:
            self._priced_at = self._clock.monotonic()
            self.till.ask(price.per_input, price.per_output)

    async def _review(self) -> None:
        """Tell what the registry says of the stake, however it changes."""
        while self._own is not None:
            await self._clock.sleep(REVIEW_SECONDS)
            try:
                self.till.staked((await self._own.record()).counts)
            except SettlementError as error:
                log.warning("the stake cannot be read: %s", error)

    async def close(self) -> None:
        """Redeem what is left, and close everything; idempotent."""
        self._running.cancel()
        self._reviewing.cancel()
        if self._kept is not None and self._desk is not None:
            self._desk.look()  # the record that says farewell
            self._kept.close()
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self.till.redeem()
        except (SettlementError, TimeoutError) as error:
            log.warning("vouchers are left to be redeemed at the next start: %s", error)
        await self._wallet.close()
