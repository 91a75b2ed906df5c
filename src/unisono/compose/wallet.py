"""A node's or gateway's access to its network's chain: ledger, contracts, key, outbox, accounts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from unisono.clock import Clock
from unisono.compose.chain_settings import ChainSettings, SellerSettings
from unisono.market.sla import WINDOW_SECONDS
from unisono.settlement.bench import COMMITTEE, OwnPlace
from unisono.settlement.committees import JuryHouse
from unisono.settlement.courthouses import contract_of
from unisono.settlement.eip712 import parse_address
from unisono.settlement.ledger.deployment import Deployment
from unisono.settlement.ledger.keys import Keystore, find_passphrase
from unisono.settlement.ledger.network import open_network
from unisono.settlement.ledger.outbox import Outbox, stop
from unisono.settlement.ledger.rpc import RpcLedger
from unisono.settlement.payments.books import Books
from unisono.settlement.payments.contract_channels import ContractChannels
from unisono.settlement.payments.purse import Purse
from unisono.settlement.payments.till import Till
from unisono.settlement.signature import SettlementKey
from unisono.settlement.stakes import OwnStake, Registry
from unisono.types import EvmAddress, digest
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
    store = Keystore(settings.keystore)
    address = store.choose(settings.account)
    passphrase = find_passphrase(settings.passphrase_file, what=f"Passphrase of {address}")
    return store.unlock(address, passphrase)


def account_address(settings: ChainSettings, identity: Identity) -> EvmAddress:
    """Where this process's money is. A keystore tells that without its passphrase.

    Raises:
        ConfigurationError, KeyRefused: the keystore cannot be used, or has no such key.
    """
    if settings.keystore is None:
        return settlement_key(settings, identity).address
    return Keystore(settings.keystore).choose(settings.account)


@asynccontextmanager
async def onlooker(
    settings: ChainSettings, identity: Identity
) -> AsyncGenerator[tuple[EvmAddress, RpcLedger, ContractChannels]]:
    """An account, to look at it: also while another process works with it.

    Raises:
        ConfigurationError: a file, key or contract is not what it should be.
        SettlementError: the chain does not answer.
    """
    address = account_address(settings, identity)
    network = await open_network(settings.rpc, settings.deployment, wait_seconds=0)
    try:
        yield address, network.ledger, ContractChannels(network.ledger, network.deployment)
    finally:
        await network.close()


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
        folder: Path | None = None,
    ) -> None:
        """`folder`: where its state is kept; None: nowhere."""
        self.folder = folder
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
        network = await open_network(
            settings.rpc, settings.deployment, wait_seconds=CONNECT_SECONDS, clock=clock
        )
        ledger, deployment = network.ledger, network.deployment
        try:
            private = await ledger.is_private()
            if private:
                await ledger.fund(key.address)
            folder = None
            if settings.state is not None:
                folder = Path(settings.state) / f"{deployment.chain_id}-{key.address}"
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            outbox = await Outbox.open(
                None if folder is None else folder / "outbox.sqlite",
                ledger,
                key,
                settings=network.outbox_settings(
                    poll_seconds=PRIVATE_POLL if private else PUBLIC_POLL
                ),
                clock=clock,
            )
        except BaseException:
            await network.close()
            raise
        books = Books(None if folder is None else folder / "accounts.sqlite")
        return cls(key, ledger, deployment, outbox, books, clock, folder)

    def purse(self, deposit: int, window_seconds: int = WINDOW_SECONDS) -> Purse:
        """What pays nodes. `window_seconds`: over which service levels are promised."""
        if self._purse is None:
            self._purse = Purse(
                self.key,
                self.channels,
                self._books,
                self._clock,
                deposit=deposit,
                window_seconds=window_seconds,
            )
        return self._purse

    def till(
        self, seller: SellerSettings, layer_count: int, window_seconds: int = WINDOW_SECONDS
    ) -> Till:
        """What takes payments for a block of a model of so many layers. `window_seconds`: over
        which service levels are promised.

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
            operator=None if payee == self.key.address else self.key.address,
            tier=seller.tier,
            window_seconds=window_seconds,
        )
        if seller.floor is None:
            till.ask(seller.price_in, seller.price_out)
        return till

    def own_stake(self, identity: Identity) -> OwnStake:
        """The stake of this account on a node."""
        return OwnStake(self.ledger, self.deployment, self.outbox, identity, self._clock)

    def registry(self) -> Registry:
        """What says what others have staked."""
        return Registry(self.ledger, self.deployment)

    def jury_house(self) -> JuryHouse:
        """The committee of this network's chain.

        Raises:
            ConfigurationError: the network has none.
        """
        committee = contract_of(self.deployment, COMMITTEE)
        return JuryHouse(self.ledger, self.outbox, committee, self._clock)

    def own_place(self, identity: Identity) -> OwnPlace:
        """This account's place on the committee's bench, for a node.

        Raises:
            ConfigurationError: the network has no committee.
        """
        return OwnPlace(self.jury_house(), self.deployment, self.key.address, identity.node_id)

    async def close(self) -> None:
        """Stop, keeping what is at rest; idempotent."""
        if self._purse is not None:
            await self._purse.close()
        await stop(self._working)
        await self.outbox.close()
        self._books.close()
        await self.ledger.close()
