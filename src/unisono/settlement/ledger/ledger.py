"""What settlement needs of a chain, whichever chain it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType, Protocol

from unisono.types import EvmAddress

TxHash = NewType("TxHash", str)
"""`0x` and 64 hex digits, lowercase."""

BlockHash = NewType("BlockHash", str)
"""`0x` and 64 hex digits, lowercase."""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest block, or another one."""

    number: int
    hash: BlockHash
    timestamp: int
    """Seconds since the Unix epoch."""
    base_fee: int
    """Wei per gas."""
    gas_limit: int


@dataclass(frozen=True, slots=True)
class Log:
    """One event of a transaction."""

    address: EvmAddress
    topics: tuple[bytes, ...]
    data: bytes
    block: int
    transaction: TxHash
    index: int


@dataclass(frozen=True, slots=True)
class ChainReceipt:
    """What became of a transaction that is in a block."""

    transaction: TxHash
    block: int
    block_hash: BlockHash
    succeeded: bool
    gas_used: int
    gas_price: int
    """Wei per gas that were paid."""
    contract: EvmAddress | None
    """The contract that the transaction created, if it did."""
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A message to a contract, sent or only tried; `to` None creates a contract."""

    to: EvmAddress | None
    data: bytes
    value: int = 0
    sender: EvmAddress | None = None


class Ledger(Protocol):
    """A chain. Every method raises `LedgerUnreachable` when the chain does not answer or
    answers what no chain answers, and `TransactionRefused` when it says no."""

    async def chain_id(self) -> int:
        """The number that signatures are bound to."""
        ...

    async def head(self) -> Head:
        """The newest block."""
        ...

    async def block(self, number: int) -> Head | None:
        """The canonical block of this number, or None if there is none yet."""
        ...

    async def nonce(self, account: EvmAddress, block: int | None = None) -> int:
        """How many transactions of the account the chain holds, up to a block."""
        ...

    async def balance(self, account: EvmAddress) -> int:
        """Wei of the chain's own coin."""
        ...

    async def code(self, address: EvmAddress) -> bytes:
        """The contract's runtime code; empty where none is."""
        ...

    async def call(self, call: Call) -> bytes:
        """What the contract would return.

        Raises:
            TransactionRefused: it reverts; the reason is in the message.
        """
        ...

    async def estimate_gas(self, call: Call) -> int:
        """Gas that the call would use.

        Raises:
            TransactionRefused: it reverts; the reason is in the message.
        """
        ...

    async def tip(self) -> int:
        """Wei per gas on top of the base fee that the chain suggests."""
        ...

    async def send(self, raw: bytes) -> TxHash:
        """Hand over a signed transaction.

        Raises:
            TransactionRefused: it will not be taken; `known` is set if it was before.
        """
        ...

    async def receipt(self, transaction: TxHash) -> ChainReceipt | None:
        """The receipt, or None while no canonical block has the transaction."""
        ...

    async def logs(
        self, addresses: tuple[EvmAddress, ...], first: int, last: int, topic: bytes | None = None
    ) -> tuple[Log, ...]:
        """Events of these contracts in blocks `first` to `last`, both included."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
