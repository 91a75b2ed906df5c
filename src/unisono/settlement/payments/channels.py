"""The channels contract as payers and payees use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from unisono.settlement.eip712 import Domain
from unisono.settlement.vouchers import Voucher
from unisono.types import EvmAddress


@dataclass(frozen=True, slots=True)
class ChannelState:
    """What the chain says of a channel; amounts in units of the coin, this epoch."""

    deposit: int
    redeemed: int
    closes: int
    """Unix seconds from which the payer may take the rest; 0: nobody closes."""
    epoch: int


class Channels(Protocol):
    """One channels contract, and one account that acts on it."""

    @property
    def domain(self) -> Domain:
        """What vouchers are signed for."""
        ...

    async def state(self, payer: EvmAddress, payee: EvmAddress) -> ChannelState:
        """As of now.

        Raises:
            LedgerUnreachable: the chain does not answer.
        """
        ...

    async def balance(self, owner: EvmAddress) -> int:
        """Units of the coin that an account holds outside of channels.

        Raises:
            LedgerUnreachable: the chain does not answer.
        """
        ...

    async def deposit(self, payee: EvmAddress, amount: int) -> None:
        """Add to this account's channel to a payee, and wait until that is final.

        Raises:
            InsufficientFunds: the account has not so much.
            SettlementError: the chain refuses or is away.
        """
        ...

    async def redeem(self, payee: EvmAddress, vouchers: tuple[Voucher, ...]) -> None:
        """Have the payee paid what vouchers promise, and wait until that is final.

        Raises:
            SettlementError: the chain refuses or is away.
        """
        ...
