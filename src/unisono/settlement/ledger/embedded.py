"""A chain of our own: py-evm over one SQLite file, for a machine or a private network.

It has no peers and no miners: the process that owns the file makes a block whenever there are
transactions. Rules are those of Prague. Time follows the clock, and what is confirmed stays.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eth.abc import BlockAPI, BlockHeaderAPI, ReceiptAPI, SignedTransactionAPI
from eth.chains.base import MiningChain
from eth.constants import BLANK_ROOT_HASH, POST_MERGE_DIFFICULTY, POST_MERGE_NONCE, ZERO_ADDRESS
from eth.db.atomic import AtomicDB
from eth.exceptions import HeaderNotFound, PyEVMError, Revert, VMError
from eth.exceptions import TransactionNotFound as NoSuchTransaction
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_keys.datatypes import PrivateKey
from eth_utils.exceptions import ValidationError
from rlp.exceptions import (  # pyright: ignore[reportMissingTypeStubs]
    DecodingError,
    DeserializationError,
)

from unisono.clock import Clock, SystemClock
from unisono.errors import ConfigurationError, TransactionRefused
from unisono.settlement.ledger.revert import Reverted
from unisono.settlement.ledger.store import ChainStore

if TYPE_CHECKING:
    from eth.abc import VirtualMachineAPI

DEFAULT_CHAIN_ID = 8_453_817
"""Registered by nobody; two private networks may draw their own."""
GAS_LIMIT = 30_000_000
BASE_FEE = 1_000_000_000
BLOCK_TRANSACTIONS = 64
MAX_TRANSACTION_BYTES = 128 * 1024
GRANT = 10**18
"""Wei that `grant` gives: one coin, good for thousands of transactions."""
_TREASURY = 10**27
_TYPES = (1, 2)
_LIST = 0xC0  # the first byte of an RLP list: a transaction of type 0
_ESTIMATE_STEP = 64  # an estimate is at most 1/64 above what is needed


class _Chain(MiningChain):
    vm_configuration = ((0, PragueVM),)  # type: ignore[assignment]
    chain_id = 0

    def create_header_from_parent(
        self, parent_header: BlockHeaderAPI, **header_params: Any
    ) -> BlockHeaderAPI:
        # py-evm would let the limit drift towards what is used.
        return super().create_header_from_parent(
            parent_header, **{**header_params, "gas_limit": parent_header.gas_limit}
        )


@dataclass(slots=True)
class _Draft:
    """A block that is being made."""

    vm: VirtualMachineAPI
    header: BlockHeaderAPI
    transactions: list[SignedTransactionAPI] = field(default_factory=list[SignedTransactionAPI])
    receipts: list[ReceiptAPI] = field(default_factory=list[ReceiptAPI])


class EmbeddedChain:
    """The chain in one file. Not safe for several threads at once: `RpcServer` gives it one."""

    def __init__(
        self,
        path: Path | str | None,
        *,
        chain_id: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Open the chain in `path` or begin a new one; None keeps it in memory.

        Args:
            path: the SQLite file.
            chain_id: the number of a new chain; an existing one must have it, if given.
            clock: what block times follow.

        Raises:
            ConfigurationError: the file cannot be used, or holds a chain of another number.
        """
        self._clock = clock or SystemClock()
        self._store = ChainStore(path)
        try:
            found = self._store.fact("chain_id")
            self.chain_id = int(found) if found is not None else chain_id or DEFAULT_CHAIN_ID
            if chain_id is not None and chain_id != self.chain_id:
                raise ConfigurationError(
                    f"{path} holds the chain {self.chain_id}, not {chain_id}: "
                    "leave the number out, or name another file"
                )
            if not 0 < self.chain_id < 1 << 53:
                raise ConfigurationError("a chain id is a number between 1 and 2^53")
            kind = type("EmbeddedChain", (_Chain,), {"chain_id": self.chain_id})
            self._treasury = PrivateKey(self._store.fact("treasury_key") or secrets.token_bytes(32))
            if found is None:
                self._begin(kind)
            self._chain: _Chain = kind(AtomicDB(self._store))
        except BaseException:
            self._store.close()
            raise

    def _begin(self, kind: type[_Chain]) -> None:
        parameters: dict[str, Any] = {
            "coinbase": ZERO_ADDRESS,
            "difficulty": POST_MERGE_DIFFICULTY,
            "extra_data": b"",
            "gas_limit": GAS_LIMIT,
            "mix_hash": secrets.token_bytes(32),
            "nonce": POST_MERGE_NONCE,
            "receipt_root": BLANK_ROOT_HASH,
            "transaction_root": BLANK_ROOT_HASH,
            "timestamp": int(self._clock.now()),
        }
        account: Any = {"balance": _TREASURY, "nonce": 0, "code": b"", "storage": {}}
        owner: Any = self._treasury.public_key.to_canonical_address()
        kind.from_genesis(AtomicDB(self._store), parameters, {owner: account})
        # With the genesis block, in one step: a file has a whole chain or none.
        self._store.set_facts(
            {"chain_id": b"%d" % self.chain_id, "treasury_key": self._treasury.to_bytes()}
        )

    # Blocks

    @property
    def lead(self) -> float:
        """Seconds that the newest block is ahead of the clock: blocks of one second must differ."""
        return self.head().timestamp - self._clock.now()

    def head(self) -> BlockHeaderAPI:
        """The newest block's header."""
        return self._chain.get_canonical_head()

    def header(self, number: int) -> BlockHeaderAPI | None:
        """The header of a block, or None if there is none yet."""
        try:
            return self._chain.get_canonical_block_header_by_number(number)  # type: ignore[arg-type]
        except HeaderNotFound:
            return None

    def block(self, header: BlockHeaderAPI) -> BlockAPI:
        """A block with its transactions."""
        return self._chain.get_block_by_header(header)

    def number_of(self, block_hash: bytes) -> int | None:
        """The number of the canonical block of this hash."""
        try:
            header = self._chain.get_block_header_by_hash(block_hash)  # type: ignore[arg-type]
        except HeaderNotFound:
            return None
        return header.block_number

    def receipts(self, block: BlockAPI) -> tuple[ReceiptAPI, ...]:
        """The receipts of a block, in its order."""
        return block.get_receipts(self._chain.chaindb)

    def place(self, transaction: bytes) -> tuple[int, int] | None:
        """(block, index) of the transaction of this hash, by py-evm's index; else None."""
        try:
            return self._chain.get_canonical_transaction_index(transaction)  # type: ignore[arg-type]
        except NoSuchTransaction:
            return None

    def next_header(self) -> BlockHeaderAPI:
        """The header of a block that would be made now: time moves on, randomness is fresh."""
        parent = self.head()
        header = self._chain.create_header_from_parent(parent)
        return header.copy(
            timestamp=max(parent.timestamp + 1, int(self._clock.now())),
            mix_hash=secrets.token_bytes(32),  # PREVRANDAO, fixed before anything runs
        )

    def next_base_fee(self) -> int:
        """Wei per gas that the next block burns."""
        return self.next_header().base_fee_per_gas or 0

    def mine(self, raws: Sequence[bytes]) -> list[bytes | TransactionRefused | None]:
        """Make one block of signed transactions, durably, before anybody hears of it.

        Returns:
            For each transaction its hash, why it was refused, or None if the block was full and
            it has to wait for the next one.

        Raises:
            sqlite3.Error: nothing could be written, and nothing happened.
        """
        outcomes: list[bytes | TransactionRefused | None] = []
        header = self.next_header()
        draft = _Draft(self._chain.get_vm(header), header)
        try:
            full = False
            for raw in raws:
                # Nobody overtakes: a later transaction of the same account must stay later.
                outcome = None if full else self._apply(draft, raw)
                full = outcome is None or len(draft.transactions) == BLOCK_TRANSACTIONS
                outcomes.append(outcome)
            if draft.transactions:
                self._persist(draft)
                self._store.commit()
        finally:
            self._store.discard()  # what was not committed
        return outcomes

    def _apply(self, draft: _Draft, raw: bytes) -> bytes | TransactionRefused | None:
        try:
            transaction = self.decode(raw)
        except TransactionRefused as refusal:
            return refusal
        if self.place(transaction.hash) is not None:
            return TransactionRefused("already known: the chain has this transaction", known=True)
        if transaction.gas > draft.header.gas_limit:
            return TransactionRefused(
                f"the transaction asks for {transaction.gas:,} gas; a block has "
                f"{draft.header.gas_limit:,}: ask for less"
            )
        if transaction.gas > draft.header.gas_limit - draft.header.gas_used:
            return None
        nonce = draft.vm.state.get_nonce(transaction.sender)
        if transaction.nonce != nonce:
            word = "low" if transaction.nonce < nonce else "high"
            return TransactionRefused(
                f"nonce too {word}: the account's next is {nonce}, "
                f"the transaction has {transaction.nonce}"
            )
        try:
            receipt, _ = draft.vm.apply_transaction(draft.header, transaction)
        except ValidationError as error:  # found before anything changed
            return TransactionRefused(f"the transaction is not valid: {error}")
        draft.header = draft.vm.add_receipt_to_header(draft.header, receipt)
        draft.transactions.append(transaction)
        draft.receipts.append(receipt)
        return transaction.hash

    def _persist(self, draft: _Draft) -> None:
        block = draft.vm.set_block_transactions_and_withdrawals(
            draft.vm.get_block(), draft.header, draft.transactions, draft.receipts
        )
        mined = draft.vm.mine_block(block, blob_gas_used=0).block
        self._chain.persist_block(mined)

    def decode(self, raw: bytes) -> SignedTransactionAPI:
        """A signed transaction that is for this chain.

        Raises:
            TransactionRefused: it is too large, malformed, of a kind that this chain does not
                take, or for another chain.
        """
        if len(raw) > MAX_TRANSACTION_BYTES:
            raise TransactionRefused(
                f"a transaction has at most {MAX_TRANSACTION_BYTES:,} bytes, not {len(raw):,}"
            )
        if not raw or (raw[0] < _LIST and raw[0] not in _TYPES):
            raise TransactionRefused(
                "this chain takes transactions of types 0, 1 and 2: without blobs or delegation"
            )
        try:
            builder = self._chain.get_vm().get_transaction_builder()
            transaction = builder.decode(raw)
            transaction.validate()
            transaction.sender  # recovers the signer  # noqa: B018
        except (
            PyEVMError,
            ValidationError,
            DecodingError,
            DeserializationError,
            ValueError,
            TypeError,
        ) as error:
            raise TransactionRefused(f"not a signed transaction: {error}") from error
        if transaction.chain_id != self.chain_id:
            raise TransactionRefused(
                f"the transaction is signed for chain {transaction.chain_id}; "
                f"this is chain {self.chain_id}"
            )
        return transaction

    def grant(self, account: bytes) -> bytes:
        """A signed transaction that gives an account one coin of this chain, for gas."""
        nonce = self._state(self.head()).get_nonce(
            self._treasury.public_key.to_canonical_address()  # type: ignore[arg-type]
        )
        builder: Any = self._chain.get_vm().get_transaction_builder()
        unsigned = builder.new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id,
            nonce=nonce,
            max_priority_fee_per_gas=0,
            max_fee_per_gas=2 * self.next_base_fee(),
            gas=100_000,
            to=account,
            value=GRANT,
            data=b"",
            access_list=(),
        )
        return unsigned.as_signed_transaction(self._treasury).encode()

    # State

    def _state(self, at: BlockHeaderAPI) -> Any:
        return self._chain.get_vm(at).state

    def nonce(self, account: bytes, at: BlockHeaderAPI) -> int:
        """How many transactions of the account the chain holds up to a block."""
        return self._state(at).get_nonce(account)

    def balance(self, account: bytes, at: BlockHeaderAPI) -> int:
        """Wei of the account after a block."""
        return self._state(at).get_balance(account)

    def code(self, account: bytes, at: BlockHeaderAPI) -> bytes:
        """Runtime code after a block."""
        return self._state(at).get_code(account)

    def storage(self, account: bytes, slot: int, at: BlockHeaderAPI) -> int:
        """One word of a contract's storage after a block."""
        return self._state(at).get_storage(account, slot)

    def context(self, at: BlockHeaderAPI) -> BlockHeaderAPI:
        """What a call sees: the block that would come now for the newest state, else the block."""
        header = self.next_header() if at.hash == self.head().hash else at
        return header.copy(base_fee_per_gas=0)

    def call(
        self,
        sender: bytes,
        to: bytes,
        data: bytes,
        value: int,
        at: BlockHeaderAPI,
        gas: int | None = None,
    ) -> bytes:
        """What a message would return, without paying and without effect.

        Raises:
            Reverted: the contract reverts.
            TransactionRefused: it cannot run at all.
        """
        header = self.context(at)
        computation = self._try(header, sender, to, data, value, gas or header.gas_limit)
        return bytes(computation.output)

    def estimate_gas(
        self, sender: bytes, to: bytes, data: bytes, value: int, at: BlockHeaderAPI
    ) -> int:
        """Gas that is enough for a message, at most 1/64 more than needed.

        Raises:
            Reverted: the contract reverts.
            TransactionRefused: it cannot run at all, or a block has too little gas.
        """
        header = self.context(at)
        tried = self._try(header, sender, to, data, value, header.gas_limit)
        low, high = header.gas_limit - tried.get_gas_remaining() - 1, header.gas_limit
        step = 1  # most need exactly what they used; else rise by doubling, then halve the gap
        while high - low > max(high // _ESTIMATE_STEP, 1):
            middle = min(low + step, (low + high) // 2)
            try:
                self._try(header, sender, to, data, value, middle)
            except (Reverted, TransactionRefused):
                low, step = middle, max(2 * step, middle // _ESTIMATE_STEP)
            else:
                high = middle
        return high

    def _try(
        self, header: BlockHeaderAPI, sender: bytes, to: bytes, data: bytes, value: int, gas: int
    ) -> Any:
        vm: VirtualMachineAPI = self._chain.get_vm(header)
        builder: Any = vm.get_transaction_builder()
        unsigned = builder.new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id,
            nonce=vm.state.get_nonce(sender),  # type: ignore[arg-type]
            max_priority_fee_per_gas=0,
            max_fee_per_gas=0,
            gas=min(gas, header.gas_limit),
            to=to,
            value=value,
            data=data,
            access_list=(),
        )
        message: Any = SpoofTransaction(unsigned, from_=sender)
        try:
            computation = vm.state.apply_transaction(message)
        except (ValidationError, VMError) as error:
            raise TransactionRefused(f"the message cannot run: {error}") from error
        if computation.is_error:
            error = computation.error
            if isinstance(error, Revert):
                raise Reverted(bytes(computation.output))
            raise TransactionRefused(f"the message fails: {type(error).__name__}: {error}")
        return computation

    def close(self) -> None:
        """Close the file; idempotent."""
        self._store.close()
