"""Stakes in a registry: an operator's own, and those of nodes that a gateway relies on.

A record in the registry belongs to a node id and an operator's address together, and holds the
node's signature unchecked (`registration.py`): whoever reads it checks it here.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from unisono.clock import Clock
from unisono.errors import ConfigurationError, TransactionRefused
from unisono.settlement.artifacts import artifact
from unisono.settlement.coins import DECIMALS, Coins
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.deploy import COIN
from unisono.settlement.ledger.deployment import Deployment
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Call, ChainReceipt, Ledger
from unisono.settlement.ledger.outbox import Outbox
from unisono.settlement.registration import Registration
from unisono.types import EvmAddress, NodeId
from unisono.wire.identity import Identity

SECONDS = 600.0
"""A transaction that is not final by then is waited for elsewhere: it goes on by itself."""


@dataclass(frozen=True, slots=True)
class StakeRecord:
    """What a registry says of a node under an operator's address; amounts in units of the coin."""

    stake: int
    leaving: int
    """Unbonded, still liable."""
    ready: int
    """Unix seconds from which `leaving` may be withdrawn."""
    locked: int
    """Of both, what open disputes are about."""
    registered: bool
    """Whether the node's signature is there and good: else the stake stands for nothing."""

    @property
    def counts(self) -> int:
        """Units that stand behind the node's word from now on: what stays, without what open
        disputes may take."""
        return max(0, self.stake - self.locked) if self.registered else 0


class Registry:
    """A network's registry, read by anybody."""

    def __init__(self, ledger: Ledger, deployment: Deployment) -> None:
        self._ledger = ledger
        self._chain_id = deployment.chain_id
        self.contract = Contract(deployment.address("registry"), artifact("registry").abi)

    async def record(self, node: NodeId, operator: EvmAddress) -> StakeRecord:
        """As of now.

        Raises:
            LedgerUnreachable: the chain does not answer.
        """
        data = self.contract.encode("record", bytes.fromhex(node), operator)
        answer = await self._ledger.call(Call(self.contract.address, data))
        found: tuple[Any, ...] = self.contract.decode("record", answer)
        stake, leaving, ready, locked, r, s = found
        signed = Registration(node, operator, bytes(r) + bytes(s))
        good = signed.is_good(self._chain_id, self.contract.address)
        return StakeRecord(stake, leaving, ready, locked, good)

    def registration(self, identity: Identity, operator: EvmAddress) -> Registration:
        """A node's own signature for this registry."""
        return Registration.signed(identity, self._chain_id, self.contract.address, operator)


class OwnStake:
    """One operator's stake on one node. The outbox's `run` must run."""

    def __init__(
        self,
        ledger: Ledger,
        deployment: Deployment,
        outbox: Outbox,
        identity: Identity,
        clock: Clock,
    ) -> None:
        self.registry = Registry(ledger, deployment)
        self._ledger = ledger
        self._outbox = outbox
        self._identity = identity
        self._clock = clock
        self._coin = Contract(deployment.address(COIN), artifact(COIN).abi)
        self._node = bytes.fromhex(identity.node_id)

    async def record(self) -> StakeRecord:
        """What the registry says of this node."""
        return await self.registry.record(self._identity.node_id, self._outbox.account)

    async def ensure(self, amount: int) -> StakeRecord:
        """Register, and stake what the stake lacks to `amount`. What an earlier process began is
        waited for first, so that nothing is staked twice.

        Raises:
            InsufficientFunds: the account has not so much; says what is missing.
            SettlementError: the chain refuses or is away.
        """
        await self._settled()
        known = await self.record()
        if not known.registered:
            arguments = self.registry.registration(self._identity, self._outbox.account).arguments
            await self._do("register", *arguments, purpose="registering the node")
        if known.stake < amount:
            await self._stake(amount - known.stake)
        return await self.record()

    async def add(self, amount: int) -> StakeRecord:
        """Stake so much more; see `ensure`."""
        await self._settled()
        return await self.ensure((await self.record()).stake + amount)

    async def unbond(self, amount: int) -> StakeRecord:
        """Begin to take so much back.

        Raises:
            ConfigurationError: the stake is smaller.
            SettlementError: the chain refuses or is away.
        """
        await self._settled()
        known = await self.record()
        if not 0 < amount <= known.stake:
            raise ConfigurationError(
                f"{amount / 10**DECIMALS:g} cannot be unbonded: the stake is "
                f"{known.stake / 10**DECIMALS:g}"
            )
        await self._do("unbond", self._node, amount, purpose="unbonding a stake")
        return await self.record()

    async def withdraw(self) -> StakeRecord:
        """Take back what was unbonded long enough ago.

        Raises:
            ConfigurationError: nothing was unbonded, or not long enough ago.
            SettlementError: the chain refuses or is away.
        """
        await self._settled()
        known = await self.record()
        if not known.leaving:
            raise ConfigurationError("nothing is unbonded: begin with `unisono stake unbond`")
        # A quiet chain has no block of this minute.
        wait = known.ready - int(self._clock.now())
        if wait > 0:
            raise ConfigurationError(f"what was unbonded is free in {wait:,} seconds: wait")
        await self._do("withdraw", self._node, purpose="withdrawing a stake")
        return await self.record()

    async def _stake(self, amount: int) -> None:
        coins = Coins(self._ledger, self._outbox, self._coin, self._outbox.account)
        remedy = "send {missing} to that address, or stake less"
        await coins.require(amount, "the stake", remedy)
        spender = self.registry.contract.address
        await coins.allow(spender, amount, "letting the registry take stakes")
        await self._do("stake", self._node, amount, purpose="staking")

    async def _do(self, function: str, *arguments: object, purpose: str) -> ChainReceipt:
        # The block makes the same wish, at another time, another intent.
        key = str((await self._ledger.head()).number)
        data = self.registry.contract.encode(function, *arguments)
        intent = Intent(self.registry.contract.address, data, key=key, purpose=purpose)
        return await self._outbox.perform(intent, SECONDS)

    async def _settled(self) -> None:
        """Wait for what is under way to the registry; what the chain refused is over."""
        for entry in await self._outbox.open_entries():
            if entry.intent.to == self.registry.contract.address:
                with suppress(TransactionRefused):
                    await self._outbox.final(entry.id, SECONDS)
