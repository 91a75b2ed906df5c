"""Compiled contracts as they are committed: running needs no compiler."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import msgspec
from eth_hash.auto import keccak

from unisono.errors import ConfigurationError
from unisono.settlement.eip712 import address_bytes, checksummed
from unisono.types import EvmAddress

ARTIFACTS = resources.files("unisono.settlement") / "artifacts"
RUNTIME_LIMIT = 24_576
"""Most bytes of code that a chain takes for one contract (EIP-170)."""


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One contract, as `unisono.settlement.build` wrote it."""

    contract: str
    compiler: str
    evm: str
    """The oldest version of the EVM that runs it."""
    runtime_bytes: int
    abi: list[dict[str, Any]]
    bytecode: str
    """What a creating transaction sends before the encoded arguments of the constructor: hex."""

    @property
    def creation(self) -> bytes:
        """`bytecode` as bytes."""
        return bytes.fromhex(self.bytecode)


@cache
def artifact(contract: str) -> Artifact:
    """The committed artifact of a contract, by the name of its source without `.vy`.

    Raises:
        ConfigurationError: there is none, or it cannot be read.
    """
    file = ARTIFACTS / f"{contract}.json"
    if contract not in artifact_names():
        raise ConfigurationError(
            f"there is no compiled contract '{contract}': known are {', '.join(artifact_names())}"
        )
    try:
        return msgspec.json.decode(file.read_bytes(), type=Artifact)
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"the artifact of '{contract}' cannot be read ({error}): install Unisono again, or run "
            "python -m unisono.settlement.build"
        ) from error


@cache
def artifact_names() -> tuple[str, ...]:
    """Every contract that has an artifact, sorted."""
    files = [x.name for x in ARTIFACTS.iterdir() if x.name.endswith(".json")]
    return tuple(sorted(name.removesuffix(".json") for name in files))


def contract_address(deployer: EvmAddress, nonce: int) -> EvmAddress:
    """Where the contract that a deployer's transaction number `nonce` creates will be.

    Contracts that name each other in their constructors are deployed by such addresses.
    """
    number = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    # RLP of (address, nonce): a byte below 0x80 is itself, others follow 0x80 + size.
    coded = number if 0 < nonce < 0x80 else bytes((0x80 + len(number),)) + number
    items = b"\x94" + address_bytes(deployer) + coded
    return checksummed(keccak(bytes((0xC0 + len(items),)) + items)[12:])
