"""The chain's state in py-evm, below transactions and blocks: the reference of what an EVM does."""

from __future__ import annotations

from typing import Any

from eth.constants import BLANK_ROOT_HASH, CREATE_CONTRACT_ADDRESS
from eth.db.atomic import AtomicDB
from eth.exceptions import Revert
from eth.vm.execution_context import ExecutionContext
from eth.vm.forks.cancun.transaction_context import CancunTransactionContext
from eth.vm.forks.prague.computation import PragueComputation
from eth.vm.forks.prague.state import PragueState
from eth.vm.message import Message

from tests.settlement.outcome import Outcome

_context: Any = ExecutionContext
_message: Any = Message


class PyEvm:
    """As `World`, only slower."""

    def __init__(self, chain_id: int, time: int) -> None:
        self._context = _context(bytes(20), time, 1, 0, bytes(32), 10**9, (), chain_id, 0, 0)
        self._state: Any = PragueState(AtomicDB(), self._context, BLANK_ROOT_HASH)

    @property
    def chain_id(self) -> int:
        return self._context.chain_id

    @chain_id.setter
    def chain_id(self, value: int) -> None:
        self._context._chain_id = value

    @property
    def time(self) -> int:
        return self._context.timestamp

    @time.setter
    def time(self, value: int) -> None:
        self._context._timestamp = value

    @property
    def block(self) -> int:
        return self._context.block_number

    @block.setter
    def block(self, value: int) -> None:
        self._context._block_number = value

    @property
    def hashes(self) -> list[bytes]:
        """Of the blocks before, newest first."""
        return list(self._context.prev_hashes)

    @hashes.setter
    def hashes(self, value: list[bytes]) -> None:
        self._context._prev_hashes = value

    def snapshot(self) -> Any:
        """What `restore` goes back to, once."""
        return self._state.snapshot()

    def restore(self, kept: Any) -> None:
        """Go back to a snapshot."""
        self._state.revert(kept)

    def code(self, address: bytes) -> bytes:
        """Of a contract."""
        return self._state.get_code(address)

    def store(self, address: bytes, slot: int, value: int) -> None:
        """Overwrite a word."""
        self._state.set_storage(address, slot, value)

    def call(self, sender: bytes, to: bytes, data: bytes, gas: int) -> Outcome:
        """Send data to a contract."""
        message = _message(gas, to, sender, 0, data, self.code(to))
        return self._run(PragueComputation.apply_message, message, sender)

    def create(self, sender: bytes, at: bytes, code: bytes, gas: int) -> Outcome:
        """Make a contract at an address."""
        message = _message(gas, CREATE_CONTRACT_ADDRESS, sender, 0, b"", code, create_address=at)
        return self._run(PragueComputation.apply_create_message, message, sender)

    def _run(self, apply: Any, message: Any, origin: Any) -> Outcome:
        done = apply(self._state, message, CancunTransactionContext(gas_price=0, origin=origin))
        self._state.clear_transient_storage()
        reverted = done.is_error and isinstance(done.error, Revert)
        used, refund = done.get_gas_used(), done.get_gas_refund()
        return Outcome(
            done.output, not done.is_error, reverted, used, refund, done.get_log_entries()
        )
