"""Channels kept in memory by the contract's rules: what a chain does, without one."""

from __future__ import annotations

from unisono.errors import InsufficientFunds, LedgerUnreachable
from unisono.settlement.payments.channels import ChannelState
from unisono.settlement.vouchers import Channel, Voucher, accept, channels_domain
from unisono.types import EvmAddress

CONTRACT = EvmAddress("0x5FbDB2315678afecb367f032d93F642f64180aa3")


class Counter:
    """The contract and its coin, shared by all accounts."""

    def __init__(self, chain: int = 31337) -> None:
        self.domain = channels_domain(chain, CONTRACT)
        self.coins: dict[EvmAddress, int] = {}
        self.states: dict[tuple[EvmAddress, EvmAddress], ChannelState] = {}
        self.away = False

    @property
    def total(self) -> int:
        """All coins there are."""
        locked = sum(s.deposit - s.redeemed for s in self.states.values())
        return locked + sum(self.coins.values())

    def at(self, account: EvmAddress) -> Desk:
        """The contract as one account uses it."""
        return Desk(self, account)


class Desk:
    """Implements `Channels`."""

    def __init__(self, counter: Counter, account: EvmAddress) -> None:
        self._counter, self._account = counter, account
        self.domain = counter.domain

    def _check(self) -> None:
        if self._counter.away:
            raise LedgerUnreachable("the chain does not answer")

    async def state(self, payer: EvmAddress, payee: EvmAddress) -> ChannelState:
        self._check()
        return self._counter.states.get((payer, payee), ChannelState(0, 0, 0, 0))

    async def balance(self, owner: EvmAddress) -> int:
        self._check()
        return self._counter.coins.get(owner, 0)

    async def deposit(self, payee: EvmAddress, amount: int) -> None:
        self._check()
        have = self._counter.coins.get(self._account, 0)
        if have < amount:
            raise InsufficientFunds("too little", have, amount)
        self._counter.coins[self._account] = have - amount
        old = await self.state(self._account, payee)
        self._counter.states[self._account, payee] = ChannelState(
            old.deposit + amount, old.redeemed, 0, old.epoch
        )

    async def redeem(self, payee: EvmAddress, vouchers: tuple[Voucher, ...]) -> None:
        self._check()
        for voucher in vouchers:
            key = voucher.payer, payee
            old = self._counter.states[key]
            channel = Channel(self.domain, *key, old.epoch, 1 << 95, old.redeemed)
            accept(channel, voucher)
            to = min(voucher.cumulative, old.deposit)
            coins = self._counter.coins
            coins[payee] = coins.get(payee, 0) + to - old.redeemed
            self._counter.states[key] = ChannelState(old.deposit, to, old.closes, old.epoch)
