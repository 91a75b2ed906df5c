"""Channels on a chain: `Channels` over a ledger, a deployment and an outbox."""

from __future__ import annotations

from typing import Any

from unisono.errors import ConfigurationError, LedgerUnreachable
from unisono.settlement.artifacts import artifact
from unisono.settlement.coins import Coins
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.deploy import COIN
from unisono.settlement.ledger.deployment import Deployment
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Call, Ledger
from unisono.settlement.ledger.outbox import Outbox
from unisono.settlement.payments.channels import ChannelState
from unisono.settlement.vouchers import Voucher, channels_domain
from unisono.types import EvmAddress

MAX_BATCH = 64
"""Vouchers in one transaction, as the contract has it."""
LOG_BLOCKS = 10_000
"""Blocks whose events are asked for at once: what public endpoints allow."""
SECONDS = 600.0
"""A transaction that is not final by then is waited for elsewhere: it goes on by itself."""


class ContractChannels:
    """One account's view of one network's channels. The outbox's `run` must run; without one
    nothing can be changed."""

    def __init__(
        self, ledger: Ledger, deployment: Deployment, outbox: Outbox | None = None
    ) -> None:
        self._ledger = ledger
        self._given = outbox
        self._channels = Contract(deployment.address("channels"), artifact("channels").abi)
        self._coin = Contract(deployment.address(COIN), artifact(COIN).abi)
        self._first_block = deployment.block
        self.domain = channels_domain(deployment.chain_id, self._channels.address)
        """See `Channels.domain`."""

    @property
    def _outbox(self) -> Outbox:
        if self._given is None:
            raise ConfigurationError("these channels are only looked at: open a wallet")
        return self._given

    async def state(self, payer: EvmAddress, payee: EvmAddress) -> ChannelState:
        """See `Channels`."""
        found = await self._read(self._channels, "channel", payer, payee)
        deposit, redeemed, closes, epoch = found
        return ChannelState(deposit, redeemed, closes, epoch)

    async def balance(self, owner: EvmAddress) -> int:
        """See `Channels`."""
        return await self._read(self._coin, "balanceOf", owner)

    async def partners(self, account: EvmAddress, *, pays: bool) -> tuple[EvmAddress, ...]:
        """Everybody whom an account ever opened a channel to, or (`pays` False) who did so to it,
        the oldest first.

        Raises:
            SettlementError: the chain does not answer.
        """
        topic = self._channels.topic("Deposited")
        found: dict[EvmAddress, None] = {}
        last = (await self._ledger.head()).number
        for first in range(self._first_block, last + 1, LOG_BLOCKS):
            until = min(last, first + LOG_BLOCKS - 1)
            for log in await self._ledger.logs((self._channels.address,), first, until, topic):
                _, fields = self._channels.event(log) or ("", {})
                payer, payee = fields.get("payer"), fields.get("payee")
                if pays and payer == account and payee is not None:
                    found[payee] = None
                elif not pays and payee == account and payer is not None:
                    found[payer] = None
        return tuple(found)

    async def send(self, owner: EvmAddress, amount: int) -> None:
        """Send coins that are outside of channels to somebody, and wait until that is final.

        Raises:
            SettlementError: the chain refuses or is away.
        """
        data = self._coin.encode("transfer", owner, amount)
        key = str((await self._ledger.head()).number)
        intent = Intent(self._coin.address, data, key=key, purpose=f"sending coins to {owner}")
        await self._outbox.perform(intent, SECONDS)

    async def deposit(self, payee: EvmAddress, amount: int) -> None:
        """See `Channels`. Asked again for the same deposit after a crash it is not made twice: what
        the channel held before is part of the intent."""
        account = self._outbox.account
        coins = Coins(self._ledger, self._outbox, self._coin, account)
        purpose = "letting the channels contract take deposits"
        await coins.allow(self._channels.address, amount, purpose)
        state = await self.state(account, payee)
        data = self._channels.encode("deposit", payee, amount)
        key = f"{state.epoch} {state.deposit}"
        purpose = f"a deposit for {payee}"
        await self._outbox.perform(
            Intent(self._channels.address, data, key=key, purpose=purpose), SECONDS
        )

    async def redeem(self, payee: EvmAddress, vouchers: tuple[Voucher, ...]) -> None:
        """See `Channels`."""
        for start in range(0, len(vouchers), MAX_BATCH):
            batch = vouchers[start : start + MAX_BATCH]
            data = self._channels.encode("redeem_batch", payee, [_fields(v) for v in batch])
            # A voucher that the deposit did not cover is redeemed again after a top-up.
            states = [await self.state(voucher.payer, payee) for voucher in batch]
            key = " ".join(str(state.redeemed) for state in states)
            purpose = f"redeeming {len(batch)} vouchers"
            intent = Intent(self._channels.address, data, key=key, purpose=purpose)
            await self._outbox.perform(intent, SECONDS)

    async def start_close(self, payee: EvmAddress) -> None:
        """Begin to close this account's channel to a payee."""
        state = await self.state(self._outbox.account, payee)
        data = self._channels.encode("start_close", payee)
        # A deposit takes a close back, and grows: closing again is then another intent.
        key = f"{state.epoch} {state.deposit}"
        intent = Intent(self._channels.address, data, key=key, purpose="closing")
        await self._outbox.perform(intent, SECONDS)

    async def finish_close(self, payee: EvmAddress) -> None:
        """Take back what is left of this account's channel, when its window is over."""
        account = self._outbox.account
        state = await self.state(account, payee)
        data = self._channels.encode("finish_close", account, payee)
        intent = Intent(self._channels.address, data, key=str(state.epoch), purpose="a refund")
        await self._outbox.perform(intent, SECONDS)

    async def _read(self, contract: Contract, function: str, *arguments: object) -> Any:
        data = contract.encode(function, *arguments)
        answer = contract.decode(function, await self._ledger.call(Call(contract.address, data)))
        if answer is None:
            raise LedgerUnreachable(f"{function} of {contract.address} answered with nothing")
        return answer


def _fields(voucher: Voucher) -> tuple[object, ...]:
    """As the contract's `Voucher` struct has them."""
    r, s, v = voucher.signature[:32], voucher.signature[32:64], voucher.signature[64]
    return voucher.payer, voucher.epoch, voucher.cumulative, v, r, s
