"""What verdicts awarded to an account, and how it is paid out: registry and judges only write it
down, so that no recipient can stand in a verdict's way."""

from __future__ import annotations

from unisono.errors import TransactionRefused
from unisono.settlement.courthouses import contract_of, read
from unisono.settlement.disputes import Desk
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.deploy import JUDGES
from unisono.settlement.ledger.deployment import Deployment
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Ledger
from unisono.types import EvmAddress

SECONDS = 600.0
"""For a transaction to become final."""


def debtors(deployment: Deployment) -> tuple[Contract, ...]:
    """The contracts that award coins."""
    names = (name for name in ("registry", *JUDGES) if name in deployment.contracts)
    return tuple(contract_of(deployment, name) for name in names)


async def owed(ledger: Ledger, deployment: Deployment, owner: EvmAddress) -> int:
    """Units that registry and judges owe somebody: fees, bonds, and shares of penalties.

    Raises:
        LedgerUnreachable: the chain does not answer.
    """
    return sum([await read(ledger, c, "credit", owner) for c in debtors(deployment)])


async def collect(
    ledger: Ledger, desk: Desk, debtor: Contract, owner: EvmAddress, seconds: float | None
) -> tuple[int, int]:
    """Pay out what one contract owes somebody: units, and the gas of it. Anybody can do that, so
    that others may be faster, which comes to the same. `seconds`: how long to wait; None: as long
    as it takes.

    Raises:
        SettlementError: the chain refuses or is away.
    """
    found = int(await read(ledger, debtor, "credit", owner))
    if not found:
        return 0, 0
    data = debtor.encode("collect", owner)
    key = str((await ledger.head()).number)
    intent = Intent(debtor.address, data, key=key, purpose=f"collecting for {owner}")
    try:
        return found, (await desk.perform(intent, seconds)).gas_used
    except TransactionRefused:
        if await read(ledger, debtor, "credit", owner):
            raise
        return found, 0


class Awards:
    """Those of one network; `desk` sends, for anybody's account."""

    def __init__(self, ledger: Ledger, desk: Desk, deployment: Deployment) -> None:
        self._ledger, self._desk = ledger, desk
        self._debtors = debtors(deployment)

    async def collect(self, owner: EvmAddress) -> tuple[int, int]:
        """Pay out what all of them owe somebody: units, and the gas of it.

        Raises:
            SettlementError: the chain refuses or is away.
        """
        units = gas = 0
        for contract in self._debtors:
            found, burned = await collect(self._ledger, self._desk, contract, owner, SECONDS)
            units, gas = units + found, gas + burned
        return units, gas
