"""Puts a network's contracts onto a chain, and writes down where they are.

A constructor's arguments are found by their names: other contracts, the coin, and the terms of the
network. Contracts that name each other know each other's addresses before they exist, since an
address follows from the deployer and its nonce.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eth_hash.auto import keccak

from unisono.clock import Clock, SystemClock
from unisono.errors import ConfigurationError, SettlementError, TransactionRefused
from unisono.settlement.artifacts import Artifact, artifact, artifact_names, contract_address
from unisono.settlement.ledger.contract import encode_arguments
from unisono.settlement.ledger.deployment import Deployed, Deployment, check_deployment
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Ledger
from unisono.settlement.ledger.outbox import Outbox
from unisono.settlement.tables import CONTRACTS as TABLES
from unisono.settlement.tables import table_deployment
from unisono.types import EvmAddress
from unisono.wire.claims import EPOCH_SECONDS

DAY = 86_400
COIN = "stablecoin"
JUDGES = ("court", "committee")
"""Contracts that may slash; those that have an artifact become judges of the registry."""
ORDER = (
    *(COIN, *TABLES),
    *("steps_rows", "steps_attention", "steps_choice", "judge"),
    *("registry", "channels", *JUDGES),
)
TERMS: Mapping[str, int] = {
    "delay": 14 * DAY,
    "window": DAY,
    "bond": 10_000_000,
    "games": 16,
    "penalty": 100_000_000,
    "move_seconds": DAY // 4,
    "epoch_seconds": EPOCH_SECONDS,
    "claim_seconds": 7 * DAY,
    "cases": 4,
    "unit": 50_000_000,
    "fee": 500_000,
    "fine": 1_000_000,
    "draw_blocks": 4,
    "commit_seconds": DAY // 12,
    "reveal_seconds": DAY // 24,
    "contest_seconds": DAY,
    "to_challenger": 5_000,
    "to_payer": 3_000,
    "to_defender": 5_000,
}
"""What cannot be changed once the contracts are there, by the names of constructors' arguments:
`delay` is from unbonding to withdrawal, `window` from the start of a channel's close to its end,
amounts are in the coin's smallest unit, shares in 1/10,000; the others are the court's and the
committee's rules."""
_OTHER_NAMES = {
    "coin": COIN,
    "token": COIN,
    "rows": "steps_rows",
    "attention": "steps_attention",
    "choice": "steps_choice",
}
_DEPLOY_SECONDS = 600.0

Report = Callable[[int, int, str], None]
"""Called with (done, in all, what)."""


class Plan:
    """Which contracts are deployed, in which order, and where they will be."""

    def __init__(
        self,
        deployer: EvmAddress,
        nonce: int,
        *,
        terms: Mapping[str, int] = TERMS,
        coin: EvmAddress | None = None,
        artifacts: Mapping[str, Artifact] | None = None,
    ) -> None:
        """
        Args:
            deployer: whose transactions create them.
            nonce: of the first of these.
            terms: see `TERMS`.
            coin: the ERC-20 that the network settles in; None deploys the test coin.
            artifacts: in place of the committed ones.
        """
        if artifacts is None:
            artifacts = {name: artifact(name) for name in artifact_names()}
        self._artifacts, self._terms = artifacts, terms
        self.names = tuple(
            name
            for name in (*ORDER, *sorted(set(artifacts) - set(ORDER)))
            if (name in artifacts or name in TABLES) and not (name == COIN and coin)
        )
        places = {
            name: contract_address(deployer, nonce + index) for index, name in enumerate(self.names)
        }
        self.addresses: dict[str, EvmAddress] = {**({COIN: coin} if coin else {}), **places}

    def creation(self, name: str) -> bytes:
        """The data of the transaction that creates a contract.

        Raises:
            ConfigurationError: its constructor takes something that nobody knows.
        """
        if name in TABLES:
            return table_deployment(name)
        found = self._artifacts[name]
        constructor = next((i for i in found.abi if i.get("type") == "constructor"), None)
        inputs: list[dict[str, Any]] = constructor["inputs"] if constructor else []
        arguments = tuple(self._argument(name, field) for field in inputs)
        return found.creation + encode_arguments(inputs, arguments, f"the constructor of {name}")

    def _argument(self, contract: str, field: dict[str, Any]) -> object:
        if field["type"] == "tuple":
            return tuple(self._argument(contract, part) for part in field["components"])
        name: str = field["name"].removeprefix("of_")
        if name == "judges":
            return [self.addresses[judge] for judge in JUDGES if judge in self.addresses]
        place = self.addresses.get(_OTHER_NAMES.get(name, name))
        if field["type"] == "address" and place is not None:
            return place
        term = self._terms.get(name)
        if term is None:
            raise ConfigurationError(
                f"nothing is known of '{name}', which the constructor of {contract} takes; known "
                f"are {', '.join(sorted(self.addresses))} and the terms of the network"
            )
        return term


async def deploy(
    outbox: Outbox,
    ledger: Ledger,
    plan: Plan,
    *,
    confirmations: int = 0,
    report: Report = lambda done, total, name: None,
    clock: Clock | None = None,
) -> Deployment:
    """Create all contracts of a plan, and wait until they are final.

    Args:
        outbox: of the deployer, whose `run` runs and which does nothing else meanwhile.
        ledger: the chain.
        plan: made with the deployer's next nonce.
        confirmations: blocks on top that make a transaction final on this chain.

    Raises:
        InsufficientFunds: the deployer cannot pay the gas.
        SettlementError: a contract cannot be created, or not in time.
    """
    clock = clock or SystemClock()
    first = last = None
    deployed: dict[str, Deployed] = {}
    for done, name in enumerate(plan.names):
        report(done, len(plan.names), name)
        intent = Intent(None, plan.creation(name), purpose=f"creating the contract '{name}'")
        try:
            receipt = await outbox.perform(intent, _DEPLOY_SECONDS)
        except TransactionRefused as error:
            raise SettlementError(f"{error}; contracts made so far are left unused") from error
        if receipt.contract != plan.addresses[name]:
            raise SettlementError(
                f"'{name}' became {receipt.contract}, not {plan.addresses[name]}: the deployer's "
                "key was used elsewhere meanwhile; deploy again with a key that nobody else uses"
            )
        first, last = first if first is not None else receipt.block, receipt.block
    report(len(plan.names), len(plan.names), "")
    chain_id = await ledger.chain_id()
    while last is not None and (await ledger.head()).number - last < confirmations:
        await clock.sleep(1.0)
    for name, address in plan.addresses.items():
        code = await ledger.code(address)
        if not code:
            raise SettlementError(f"there is no contract at {address}, where '{name}' should be")
        deployed[name] = Deployed(address, keccak(code).hex())
    found = Deployment(chain_id, first or 0, confirmations, deployed)
    await check_deployment(found, ledger)
    return found
