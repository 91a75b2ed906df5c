"""One operator's place on the bench of a chain's committee: its deposit, and what it earned."""

from __future__ import annotations

from dataclasses import dataclass

from unisono.errors import ConfigurationError, TransactionRefused
from unisono.settlement.awards import collect
from unisono.settlement.coins import DECIMALS, Coins
from unisono.settlement.committees import JuryHouse, JuryRules
from unisono.settlement.courthouses import contract_of, read
from unisono.settlement.ledger.deploy import COIN
from unisono.settlement.ledger.deployment import Deployment
from unisono.settlement.ledger.ledger import Ledger
from unisono.types import EvmAddress, NodeId

COMMITTEE = "committee"
MAX_UNITS = 16
"""Of one place: as in the contract."""


@dataclass(frozen=True, slots=True)
class BenchPlace:
    """What the contract says of a place; amounts in units of the coin."""

    deposit: int
    """What fines have left of it."""
    weight: int
    """Of 16, in every draw."""
    left: int
    """Block in which it left; 0: it stays."""
    seated: int
    """Cases in which it sits and which are not over."""


async def place_of(
    ledger: Ledger, deployment: Deployment, node: NodeId, account: EvmAddress
) -> BenchPlace | None:
    """A node's place under an operator's address; None if it has none.

    Raises:
        ConfigurationError: the deployment has no committee.
        LedgerUnreachable: the chain does not answer.
    """
    committee = contract_of(deployment, COMMITTEE)
    try:
        place, term = await read(ledger, committee, "place", bytes.fromhex(node), account)
    except TransactionRefused:
        return None
    _, _, deposit, seated = await read(ledger, committee, "members", place)
    weight, _, left = term
    return BenchPlace(deposit, weight, left, seated)


@dataclass(frozen=True, slots=True)
class Earnings:
    """What the committee did to an account's money so far, in units of the coin."""

    credited: int
    """Fees and bonds, paid out or not."""
    fined: int


async def earnings_of(ledger: Ledger, deployment: Deployment, account: EvmAddress) -> Earnings:
    """All that the committee logged of an account.

    Raises: as `place_of`.
    """
    committee, last = contract_of(deployment, COMMITTEE), (await ledger.head()).number
    totals: list[int] = []
    for name, whose in (("Credited", "owner"), ("Fined", "operator")):
        topic = committee.topic(name)
        logs = await ledger.logs((committee.address,), deployment.block, last, topic)
        events = [event[1] for entry in logs if (event := committee.event(entry)) is not None]
        totals.append(sum(fields["amount"] for fields in events if fields[whose] == account))
    return Earnings(*totals)


class OwnPlace:
    """One account's place for one node. The outbox's `run` must run."""

    def __init__(
        self, house: JuryHouse, deployment: Deployment, account: EvmAddress, node: NodeId
    ) -> None:
        self._house, self._deployment = house, deployment
        self._account, self._node = account, node

    async def place(self) -> BenchPlace | None:
        """As of now."""
        return await place_of(self._house.ledger, self._deployment, self._node, self._account)

    async def ensure(self, amount: int) -> BenchPlace:
        """Enrol with a deposit of so many units, if the node has no place; it must be registered.

        Raises:
            ConfigurationError: the deposit is none that the contract takes.
            InsufficientFunds: the account has not so much; says what is missing.
            SettlementError: the chain refuses or is away.
        """
        known = await self.place()
        if known is None:
            weight = weight_of(amount, await self._house.rules())
            await self._approve(amount)
            await self._house.enrol(bytes.fromhex(self._node), weight)
            known = await self.place()
            assert known is not None
        return known

    async def leave(self) -> None:
        """Take no part in cases that are opened from now on.

        Raises:
            SettlementError: the chain refuses, and says why, or is away.
        """
        await self._send("leave")

    async def release(self) -> None:
        """Take the deposit back, some blocks after `leave` and after the last case.

        Raises:
            SettlementError: the chain refuses, and says why, or is away.
        """
        await self._send("release")

    async def collect(self) -> int:
        """Have paid out what the committee owes this account; returns units."""
        units, _ = await collect(
            self._house.ledger, self._house.desk, self._house.contract, self._account, None
        )
        return units

    async def _send(self, function: str) -> None:
        key = str((await self._house.ledger.head()).number)
        await self._house.send(function, bytes.fromhex(self._node), key=key)

    async def _approve(self, amount: int) -> None:
        await approve(self._house, self._deployment, self._account, amount, "a seat's deposit")


def weight_of(amount: int, rules: JuryRules) -> int:
    """How much a deposit weighs in draws.

    Raises:
        ConfigurationError: it is not 1 to 16 times the committee's unit.
    """
    weight, rest = divmod(amount, rules.unit)
    if rest or not 0 < weight <= MAX_UNITS:
        unit, most = rules.unit / 10**DECIMALS, MAX_UNITS * rules.unit / 10**DECIMALS
        raise ConfigurationError(
            f"a deposit for the bench is a multiple of {unit:g}, at most {most:g}; got "
            f"{amount / 10**DECIMALS:g}"
        )
    return weight


async def approve(
    house: JuryHouse, deployment: Deployment, account: EvmAddress, amount: int, purpose: str
) -> None:
    """Let the committee take so many units of an account.

    Raises:
        InsufficientFunds: the account has not so much; says what is missing.
        SettlementError: the chain refuses or is away.
    """
    # as long as it takes: a case or a seat waits for it
    coins = Coins(house.ledger, house.desk, contract_of(deployment, COIN), account, seconds=None)
    await coins.require(amount, purpose, "send {missing} to that address")
    what = "letting the committee take bonds and deposits"
    await coins.allow(house.contract.address, amount, what)
