"""Channels on a chain: `Channels` over a ledger, a deployment and an outbox."""

from __future__ import annotations

from typing import Any

from unisono.errors import LedgerUnreachable
from unisono.settlement.artifacts import artifact
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.deploy import COIN
from unisono.settlement.ledger.deployment import Deployment
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Call, Ledger
from unisono.settlement.ledger.outbox import Outbox
from unisono.settlement.payments.channels import ChannelState
from unisono.settlement.vouchers import Voucher, channels_domain
from unisono.types import EvmAddress

MAX_UINT = (1 << 256) - 1
MAX_BATCH = 64
"""Vouchers in one transaction, as the contract has it."""
SECONDS = 600.0
"""A transaction that is not final by then is waited for elsewhere: it goes on by itself."""


class ContractChannels:
    """One account's view of one network's channels. The outbox's `run` must run."""

    def __init__(self, ledger: Ledger, deployment: Deployment, outbox: Outbox) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._channels = Contract(deployment.address("channels"), artifact("channels").abi)
        self._coin = Contract(deployment.address(COIN), artifact(COIN).abi)
        self.domain = channels_domain(deployment.chain_id, self._channels.address)
        """See `Channels.domain`."""

    async def state(self, payer: EvmAddress, payee: EvmAddress) -> ChannelState:
        """See `Channels`."""
        found = await self._read(self._channels, "channel", payer, payee)
        deposit, redeemed, closes, epoch = found
        return ChannelState(deposit, redeemed, closes, epoch)

    async def balance(self, owner: EvmAddress) -> int:
        """See `Channels`."""
        return await self._read(self._coin, "balanceOf", owner)

    async def deposit(self, payee: EvmAddress, amount: int) -> None:
        """See `Channels`. Asked again for the same deposit after a crash it is not made twice: what
        the channel held before is part of the intent."""
        account = self._outbox.account
        spender = self._channels.address
        if await self._read(self._coin, "allowance", account, spender) < amount:
            data = self._coin.encode("approve", spender, MAX_UINT)
            purpose = "letting the channels contract take deposits"
            await self._outbox.perform(Intent(self._coin.address, data, purpose=purpose), SECONDS)
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
            batch = [_fields(v) for v in vouchers[start : start + MAX_BATCH]]
            data = self._channels.encode("redeem_batch", payee, batch)
            purpose = f"redeeming {len(batch)} vouchers"
            await self._outbox.perform(
                Intent(self._channels.address, data, purpose=purpose), SECONDS
            )

    async def start_close(self, payee: EvmAddress) -> None:
        """Begin to close this account's channel to a payee."""
        state = await self.state(self._outbox.account, payee)
        data = self._channels.encode("start_close", payee)
        intent = Intent(self._channels.address, data, key=str(state.epoch), purpose="closing")
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
