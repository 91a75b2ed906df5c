"""Contracts deployed in an `Evm`, and people with coins."""

from __future__ import annotations

from dataclasses import dataclass

from tests.settlement.evm import Contract, Evm, account
from unisono.settlement.artifacts import Artifact, artifact
from unisono.settlement.signature import SettlementKey
from unisono.settlement.vouchers import channels_domain, voucher_digest
from unisono.types import EvmAddress

DEPLOYER = account(1)
CLOSE_SECONDS = 3_600
UNBOND_SECONDS = 7_200
RICH = 10**30
"""Coins that everybody has in the beginning."""


@dataclass(frozen=True)
class Deployed:
    """A chain with a coin and the contracts that use it."""

    evm: Evm
    coin: Contract
    registry: Contract
    channels: Contract

    def fund(self, *people: EvmAddress) -> None:
        """Give people coins, which the contracts may take."""
        for person in people:
            self.coin.send(DEPLOYER, "mint", person, RICH)
            for contract in (self.registry, self.channels):
                self.coin.send(person, "approve", contract.address, 2**256 - 1)

    def balance(self, owner: EvmAddress) -> int:
        """Coins of an address."""
        return self.coin.view("balanceOf", owner)

    def signed(
        self, key: SettlementKey, payee: EvmAddress, epoch: int, cumulative: int
    ) -> tuple[object, ...]:
        """Arguments of `redeem` for a voucher that `key` signed, however senseless."""
        domain = channels_domain(self.evm.chain_id, self.channels.address)
        signature = key.sign(voucher_digest(domain, key.address, payee, epoch, cumulative))
        v, r, s = signature[64], signature[:32], signature[32:64]
        return key.address, payee, epoch, cumulative, v, r, s


def deployed(coin: Artifact | None = None, judges: tuple[EvmAddress, ...] = ()) -> Deployed:
    """All contracts on a new chain, with the test dollar unless another coin is given."""
    evm = Evm()
    made = evm.deploy(coin or artifact("stablecoin"), DEPLOYER)
    registry = evm.deploy(
        artifact("registry"), DEPLOYER, made.address, UNBOND_SECONDS, list(judges)
    )
    channels = evm.deploy(artifact("channels"), DEPLOYER, made.address, CLOSE_SECONDS)
    return Deployed(evm, made, registry, channels)
