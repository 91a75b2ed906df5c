"""Where the contracts of a network are: a file that operators share, and check before they use it.

{"version": 1, "chain_id": 8453817, "block": 12, "confirmations": 0,
 "contracts": {"token": {"address": "0x…", "code_hash": "…"}, …}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from eth_hash.auto import keccak

from unisono.errors import ConfigurationError
from unisono.settlement.eip712 import parse_address
from unisono.settlement.ledger.ledger import Ledger
from unisono.types import EvmAddress

VERSION = 1
_LARGEST = 1 << 20
MAX_CONFIRMATIONS = 10_000


class Deployed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One contract."""

    address: str
    code_hash: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    """Keccak-256 of its runtime code."""


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contracts of one network on one chain."""

    chain_id: Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]
    block: Annotated[int, msgspec.Meta(ge=0)]
    """The first block that has any of them: events are looked for from here on."""
    confirmations: Annotated[int, msgspec.Meta(ge=0, le=MAX_CONFIRMATIONS)]
    """So many blocks on top make a transaction final on this chain."""
    contracts: Annotated[dict[str, Deployed], msgspec.Meta(max_length=64)]
    version: int = VERSION

    def address(self, contract: str) -> EvmAddress:
        """Where a contract is.

        Raises:
            ConfigurationError: the file does not name it.
        """
        found = self.contracts.get(contract)
        if found is None:
            raise ConfigurationError(
                f"the deployment has no '{contract}', only {', '.join(sorted(self.contracts))}: "
                "deploy again with `unisono chain deploy`, or get the network's newer file"
            )
        return parse_address(found.address)

    def encode(self) -> bytes:
        """The file's contents."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def load_deployment(path: Path | str) -> Deployment:
    """Read a deployment file.

    Raises:
        ConfigurationError: it cannot be read, or is no deployment file of this version.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise msgspec.ValidationError(f"more than {_LARGEST:,} bytes")
        deployment = msgspec.json.decode(data, type=Deployment)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the deployment file {path}: {error.strerror}"
        ) from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"{path} is not a deployment file: {error}; `unisono chain deploy` writes one"
        ) from error
    if deployment.version != VERSION:
        raise ConfigurationError(
            f"{path} has version {deployment.version}; this program reads version {VERSION}: "
            "get a file of that version, or update the program"
        )
    for name, contract in deployment.contracts.items():
        try:
            parse_address(contract.address)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}, contract '{name}': {error}") from error
    return deployment


async def check_deployment(deployment: Deployment, ledger: Ledger) -> None:
    """Compare a deployment with what is on the chain: its number, and the code of each contract.

    Raises:
        ConfigurationError: they differ; says in what.
        LedgerUnreachable: the chain does not answer.
    """
    chain = await ledger.chain_id()
    if chain != deployment.chain_id:
        raise ConfigurationError(
            f"the deployment is on chain {deployment.chain_id}, and the chain that answers is "
            f"{chain}: give the address or the file of the other"
        )
    for name, contract in deployment.contracts.items():
        code = await ledger.code(parse_address(contract.address))
        if not code:
            raise ConfigurationError(
                f"there is no contract at {contract.address}, where '{name}' should be: was the "
                "chain begun anew? Deploy again, or get the network's newer file"
            )
        if keccak(code).hex() != contract.code_hash:
            raise ConfigurationError(
                f"the contract '{name}' at {contract.address} is not the one of the deployment "
                "file: do not use it before you know why"
            )
