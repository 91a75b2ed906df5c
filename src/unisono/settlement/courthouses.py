"""The court of a deployment: its contracts, and the rules that it was made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eth_abi.abi import encode
from eth_hash.auto import keccak

from unisono.clock import Clock
from unisono.settlement.artifacts import artifact
from unisono.settlement.disputes import Courthouse, Desk
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.deployment import Deployment
from unisono.settlement.ledger.ledger import Call, Ledger
from unisono.types import EvmAddress


@dataclass(frozen=True, slots=True)
class CourtRules:
    """The contract's struct; amounts in units of the coin, shares in 1/10,000."""

    bond: int
    games: int
    penalty: int
    move_seconds: int
    epoch_seconds: int
    claim_seconds: int
    to_challenger: int
    to_payer: int
    to_defender: int

    def bond_of(self, number: int) -> int:
        """What the game costs that is the so-manieth open one about a claim."""
        return self.bond * number * max(number, self.games) // self.games


@dataclass(frozen=True, slots=True)
class Dossier:
    """The contract's struct about a claim and its signer."""

    games: int
    """That are open."""
    locked: int
    convicted: bool
    first: EvmAddress


def contract_of(deployment: Deployment, name: str) -> Contract:
    """A contract of a deployment.

    Raises:
        ConfigurationError: it has none of this name.
    """
    artifact_name = "stablecoin" if name == "coin" else name
    return Contract(deployment.address(artifact_name), artifact(artifact_name).abi)


def courthouse(ledger: Ledger, desk: Desk, deployment: Deployment, clock: Clock) -> Courthouse:
    """The court as one account uses it.

    Raises:
        ConfigurationError: the deployment has no court.
    """
    court, judge = contract_of(deployment, "court"), contract_of(deployment, "judge")
    return Courthouse(ledger, desk, court, judge, clock)


async def court_rules(ledger: Ledger, deployment: Deployment) -> CourtRules:
    """What can never change about a court.

    Raises:
        LedgerUnreachable: the chain does not answer.
    """
    court = contract_of(deployment, "court")
    found: Any = await read(ledger, court, "rules")
    fields = found[0] if len(found) == 1 else found
    return CourtRules(*fields)


async def dossier_of(
    ledger: Ledger, deployment: Deployment, claim: bytes, signer: EvmAddress
) -> Dossier:
    """What a court has of a claim, by its digest, and its signer.

    Raises:
        LedgerUnreachable: the chain does not answer.
    """
    key = keccak(encode(("bytes32", "address"), (claim, signer)))
    found: Any = await read(ledger, contract_of(deployment, "court"), "dossiers", key)
    return Dossier(*(found[0] if len(found) == 1 else found))


async def read(ledger: Ledger, contract: Contract, function: str, *arguments: object) -> Any:
    """What a view of a contract returns.

    Raises:
        LedgerUnreachable: the chain does not answer.
    """
    data = contract.encode(function, *arguments)
    return contract.decode(function, await ledger.call(Call(contract.address, data)))
