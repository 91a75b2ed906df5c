"""A network's contracts on its chain, connected and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unisono.clock import Clock
from unisono.settlement.artifacts import artifact
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.delivery import OutboxSettings
from unisono.settlement.ledger.deployment import Deployment, check_deployment, load_deployment
from unisono.settlement.ledger.rpc import RpcLedger, connected


@dataclass(frozen=True, slots=True)
class ChainNetwork:
    """What `--chain-rpc URL --deployment FILE` stand for."""

    ledger: RpcLedger
    deployment: Deployment

    def contract(self, name: str) -> Contract:
        """A contract of the network with the interface of its committed artifact.

        Raises:
            ConfigurationError: the deployment or the artifacts do not have it.
        """
        return Contract(self.deployment.address(name), artifact(name).abi)

    def outbox_settings(self, *, poll_seconds: float = 1.0) -> OutboxSettings:
        """Settings of an outbox that waits for as many blocks as the network agreed on."""
        return OutboxSettings(self.deployment.confirmations, poll_seconds)

    async def close(self) -> None:
        """Give back connections."""
        await self.ledger.close()


async def open_network(
    url: str,
    deployment: Path | str,
    *,
    wait_seconds: float = 10.0,
    clock: Clock | None = None,
) -> ChainNetwork:
    """Connect to a chain, waiting a while for one that only starts, and check that a network's
    contracts are on it.

    Raises:
        ConfigurationError: the URL or the file is none, or the chain is another.
        LedgerUnreachable: the chain does not answer.
    """
    found = load_deployment(deployment)
    ledger = await connected(url, wait_seconds=wait_seconds, clock=clock)
    try:
        await check_deployment(found, ledger)
    except BaseException:
        await ledger.close()
        raise
    return ChainNetwork(ledger, found)
