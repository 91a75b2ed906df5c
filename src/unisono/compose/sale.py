"""What a node sells: its till, and its prices in its record. Knows the libraries of a chain only
when something is sold."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from unisono.clock import Clock
from unisono.compose.chain_settings import ChainSettings, SellerSettings
from unisono.errors import ConfigurationError, SettlementError
from unisono.wire.identity import Identity
from unisono.wire.records import NodeRecord

if TYPE_CHECKING:
    from unisono.compose.wallet import Wallet
    from unisono.settlement.payments.till import Till

log = logging.getLogger(__name__)

LAST_SECONDS = 10.0
"""How long a node that leaves waits for its last vouchers to be redeemed."""


class Sale:
    """Made by `Sale.open`."""

    def __init__(self, wallet: Wallet, till: Till) -> None:
        self._wallet = wallet
        self.till = till
        self._running = asyncio.create_task(till.run())

    @classmethod
    async def open(
        cls,
        chain: ChainSettings | None,
        seller: SellerSettings | None,
        identity: Identity,
        clock: Clock,
        layer_count: int,
    ) -> Sale | None:
        """Begin to sell; None where nothing is sold.

        Raises:
            ConfigurationError: prices without a chain, or a file that is not what it should be.
            SettlementError: the chain does not answer.
        """
        if seller is None:
            return None
        if chain is None:
            raise ConfigurationError("prices need a chain: give --chain-rpc and --deployment")
        from unisono.compose.wallet import Wallet

        wallet = await Wallet.open(chain, identity, clock)
        try:
            return cls(wallet, wallet.till(seller, layer_count))
        except BaseException:
            await wallet.close()
            raise

    def priced(self, record: NodeRecord) -> NodeRecord:
        """A record with what is asked; unsigned."""
        price_in, price_out = self.till.prices
        return msgspec.structs.replace(
            record, price_in=price_in, price_out=price_out, terms=self.till.terms
        )

    async def close(self) -> None:
        """Redeem what is left, and close everything; idempotent."""
        self._running.cancel()
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self.till.redeem()
        except (SettlementError, TimeoutError) as error:
            log.warning("vouchers are left to be redeemed at the next start: %s", error)
        await self._wallet.close()
