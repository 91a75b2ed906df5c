"""An account's coins: whether there are enough of them, and which contracts may take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Call, Ledger
from unisono.settlement.ledger.shortfall import shortfall
from unisono.types import EvmAddress

if TYPE_CHECKING:
    from unisono.settlement.disputes import Desk

DECIMALS = 6
MAX_UINT = (1 << 256) - 1
SECONDS = 600.0
"""For a transaction to become final."""


@dataclass(frozen=True)
class Coins:
    """Those of the account for which `desk` sends; amounts in units of the coin."""

    ledger: Ledger
    desk: Desk
    contract: Contract
    account: EvmAddress
    seconds: float | None = SECONDS
    """How long to wait for a transaction; None: as long as it takes."""

    async def require(self, amount: int, purpose: str, remedy: str) -> None:
        """Whether there are so many.

        Raises:
            InsufficientFunds: there are not; says what is missing and, by `remedy`, what to do.
            LedgerUnreachable: the chain does not answer.
        """
        have = await self._read("balanceOf", self.account)
        if have < amount:
            raise shortfall(
                have,
                amount,
                what=f"balance of {self.account}",
                purpose=purpose,
                remedy=remedy,
                decimals=DECIMALS,
            )

    async def allow(self, spender: EvmAddress, amount: int, purpose: str) -> None:
        """Let a contract take any number, unless it may take so many already.

        Raises:
            SettlementError: the chain refuses or is away.
        """
        if await self._read("allowance", self.account, spender) < amount:
            data = self.contract.encode("approve", spender, MAX_UINT)
            intent = Intent(self.contract.address, data, purpose=purpose)
            await self.desk.perform(intent, self.seconds)

    async def _read(self, function: str, *arguments: object) -> int:
        data = self.contract.encode(function, *arguments)
        answer = await self.ledger.call(Call(self.contract.address, data))
        return int(self.contract.decode(function, answer))
