"""A node's or gateway's access to its network's chain: ledger, contracts, key, outbox, accounts."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from unisono.clock import Clock
from unisono.compose.chain_settings import ChainSettings, SellerSettings
from unisono.errors import ConfigurationError
from unisono.settlement.eip712 import parse_address
from unisono.settlement.ledger.delivery import OutboxSettings
from unisono.settlement.ledger.deployment import Deployment, check_deployment, load_deployment
from unisono.settlement.ledger.keys import Keystore, read_passphrase
from unisono.settlement.ledger.outbox import Outbox, stop
from unisono.settlement.ledger.rpc import RpcLedger, connected
from unisono.settlement.payments.books import Books
from unisono.settlement.payments.contract_channels import ContractChannels
from unisono.settlement.payments.purse import Purse
from unisono.settlement.payments.till import Till
from unisono.settlement.signature import SettlementKey
from unisono.types import digest
from unisono.wire.identity import Identity

log = logging.getLogger(__name__)

CONNECT_SECONDS = 20.0
PRIVATE_POLL, PUBLIC_POLL = 0.1, 2.0
"""Seconds between two looks at a chain on which something is under way."""


def settlement_key(settings: ChainSettings, identity: Identity) -> SettlementKey:
    """The key that owns this process's money.

    Raises:
        ConfigurationError, KeyRefused: the keystore cannot be used or opened.
    """
    if settings.keystore is None:
        secret = digest("settlement-key/1", identity.secret_seed())
        return SettlementKey(secret)
    if settings.passphrase_file is None:
        raise ConfigurationError("a keystore needs --passphrase-file: nobody is there to ask")
    store = Keystore(settings.keystore)
    passphrase = read_passphrase(settings.passphrase_file)
    return store.unlock(store.choose(settings.account), passphrase)


class Wallet:
    """Made by `Wallet.open`."""

    def __init__(
        self,
        key: SettlementKey,
        ledger: RpcLedger,
        deployment: Deployment,
        outbox: Outbox,
        books: Books,
        clock: Clock,
    ) -> None:
        self.key = key
        self.ledger = ledger
        self.deployment = deployment
        self.outbox = outbox
        self._books = books
        self._clock = clock
        self.channels = ContractChannels(ledger, deployment, outbox)
        self._working = asyncio.create_task(outbox.run())
        self._purse: Purse | None = None

    @classmethod
    async def open(cls, settings: ChainSettings, identity: Identity, clock: Clock) -> Wallet:
        """Connect, compare the contracts with the deployment file, and open what is at rest.

        Raises:
            ConfigurationError: a file, key or contract is not what it should be.
            SettlementError: the chain does not answer, or gives nothing for gas.
        """
        key = settlement_key(settings, identity)
        deployment = load_deployment(settings.deployment)
        ledger = await connected(settings.rpc, wait_seconds=CONNECT_SECONDS, clock=clock)
        try:
            await check_deployment(deployment, ledger)
            private = await ledger.is_private()
            if private:
                await ledger.fund(key.address)
            folder = None if settings.state is None else Path(settings.state)
            outbox = await Outbox.open(
                None if folder is None else folder / "outbox.sqlite",
                ledger,
                key,
                settings=OutboxSettings(
                    confirmations=deployment.confirmations,
                    poll_seconds=PRIVATE_POLL if private else PUBLIC_POLL,
                ),
                clock=clock,
                locks=folder,
            )
        except BaseException:
            await ledger.close()
            raise
        books = Books(None if folder is None else folder / "accounts.sqlite")
        return cls(key, ledger, deployment, outbox, books, clock)

    def purse(self, deposit: int) -> Purse:
        """What pays nodes."""
        if self._purse is None:
            self._purse = Purse(self.key, self.channels, self._books, self._clock, deposit=deposit)
        return self._purse

    def till(self, seller: SellerSettings, layer_count: int) -> Till:
        """What takes payments for a block of a model of so many layers.

        Raises:
            ConfigurationError: the payee is no address.
        """
        payee = self.key.address if seller.payee is None else parse_address(seller.payee)
        till = Till(
            payee,
            self.channels,
            self._books,
            self._clock,
            layer_count,
            window=seller.window,
            stake=seller.stake,
            tier=seller.tier,
        )
        till.ask(seller.price_in, seller.price_out)
        return till

    async def close(self) -> None:
        """Stop, keeping what is at rest; idempotent."""
        if self._purse is not None:
            await self._purse.close()
        await stop(self._working)
        await self.outbox.close()
        self._books.close()
        await self.ledger.close()
