"""A chain in memory that does what a test says: loses transactions, reorganises, dies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from eth_account import Account
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes

from unisono.errors import LedgerUnreachable, TransactionRefused
from unisono.settlement.ledger.fees import GWEI
from unisono.settlement.ledger.ledger import BlockHash, Call, ChainReceipt, Head, Log, TxHash
from unisono.types import EvmAddress

CHAIN_ID = 77
COIN = 10**18


class Crash(BaseException):
    """The process dies here."""


@dataclass(frozen=True)
class Sent:
    """A transaction that reached the chain."""

    hash: TxHash
    sender: str
    nonce: int
    data: bytes
    gas: int
    most: int
    tip: int


@dataclass
class Block:
    hash: BlockHash
    transactions: list[Sent] = field(default_factory=list[Sent])


class ScriptedLedger:
    """A `Ledger` with one pool. Blocks come when the test calls `mine`."""

    def __init__(self) -> None:
        self.blocks = [Block(_hash(b"genesis"))]
        self.pool: dict[tuple[str, int], Sent] = {}
        self.base_fee = GWEI
        self.money = 1000 * COIN
        self.least_tip = 0
        self.away = False
        self.calls_left: int | None = None
        """So many more calls, then the process dies."""
        self.deaf = False
        """Takes transactions and forgets them."""
        self.seen = 0
        self._made = 0

    # What the test does

    def mine(self, count: int = 1) -> None:
        """Make blocks of what is in the pool, in the order of nonces."""
        for _ in range(count):
            self._made += 1
            block = Block(_hash(b"%d" % self._made))
            for key in sorted(self.pool):
                sent = self.pool[key]
                if (
                    sent.nonce
                    == self._nonce(sent.sender)
                    + sum(t.sender == sent.sender for t in block.transactions)
                    and sent.tip >= self.least_tip
                    and sent.most >= self.base_fee
                ):
                    block.transactions.append(sent)
                    del self.pool[key]
            self.blocks.append(block)

    def reorganise(self, depth: int, *, keep: bool) -> None:
        """Replace the last blocks by empty ones; their transactions return to the pool or not."""
        depth = min(depth, len(self.blocks) - 1)
        lost, self.blocks = self.blocks[-depth:], self.blocks[: len(self.blocks) - depth]
        for block in lost:
            for sent in block.transactions if keep else []:
                self.pool.setdefault((sent.sender, sent.nonce), sent)
        for _ in lost:
            self._made += 1
            self.blocks.append(Block(_hash(b"%d" % self._made)))

    def done(self) -> list[bytes]:
        """The data of all transactions in canonical blocks, in order."""
        return [t.data for block in self.blocks for t in block.transactions]

    # What the worker sees

    async def chain_id(self) -> int:
        self._call()
        return CHAIN_ID

    async def head(self) -> Head:
        self._call()
        return self._head(len(self.blocks) - 1)

    async def block(self, number: int) -> Head | None:
        self._call()
        return self._head(number) if number < len(self.blocks) else None

    async def nonce(self, account: EvmAddress, block: int | None = None) -> int:
        self._call()
        return self._nonce(account, block)

    async def balance(self, account: EvmAddress) -> int:
        self._call()
        return self.money

    async def code(self, address: EvmAddress) -> bytes:
        self._call()
        return b""

    async def call(self, call: Call) -> bytes:
        self._call()
        return b""

    async def estimate_gas(self, call: Call) -> int:
        self._call()
        if call.data.startswith(b"revert"):
            raise TransactionRefused("the contract refused: too early")
        return 50_000

    async def tip(self) -> int:
        self._call()
        return max(self.least_tip, 1)

    async def send(self, raw: bytes) -> TxHash:
        self._call()
        fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        sender = Account.recover_transaction(raw)
        sent = Sent(
            TxHash("0x" + bytes(_keccak(raw)).hex()),
            sender,
            int(fields["nonce"]),
            bytes(fields["data"]),
            int(fields["gas"]),
            int(fields["maxFeePerGas"]),
            int(fields["maxPriorityFeePerGas"]),
        )
        self.seen += 1
        key = (sender, sent.nonce)
        if sent.nonce < self._nonce(sender):
            raise TransactionRefused("the chain refused: nonce too low")
        if key in self.pool:
            before = self.pool[key]
            if before.hash == sent.hash:
                raise TransactionRefused("already known", known=True)
            if sent.most * 10 < before.most * 11 or sent.tip * 10 < before.tip * 11:
                raise TransactionRefused("the chain refused: replacement underpriced")
        if not self.deaf:
            self.pool[key] = sent
        self._call()  # it may die after the chain has it
        return sent.hash

    async def receipt(self, transaction: TxHash) -> ChainReceipt | None:
        self._call()
        for number, block in enumerate(self.blocks):
            for sent in block.transactions:
                if sent.hash == transaction:
                    good = not sent.data.startswith(b"fails")
                    return ChainReceipt(
                        transaction, number, block.hash, good, 40_000, GWEI, None, ()
                    )
        return None

    async def logs(
        self, addresses: tuple[EvmAddress, ...], first: int, last: int, topic: bytes | None = None
    ) -> tuple[Log, ...]:
        self._call()
        return ()

    async def close(self) -> None: ...

    def _call(self) -> None:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Crash
        if self.away:
            raise LedgerUnreachable("the chain does not answer")

    def _head(self, number: int) -> Head:
        return Head(number, self.blocks[number].hash, 12 * number, self.base_fee, 30_000_000)

    def _nonce(self, account: str, block: int | None = None) -> int:
        blocks = self.blocks if block is None else self.blocks[: block + 1]
        return sum(t.sender == account for b in blocks for t in b.transactions)


def _hash(data: bytes) -> BlockHash:
    return BlockHash("0x" + hashlib.sha256(data).hexdigest())


def _keccak(raw: bytes) -> bytes:
    from eth_hash.auto import keccak

    return keccak(raw)
