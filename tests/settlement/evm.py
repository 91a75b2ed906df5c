"""An EVM in this process, below transactions and blocks: some hundred calls of a contract a second.

Nobody signs, pays or mines here, so what is under test is the contract alone. Gas and real
transactions are measured by `bench.gas` and by the tests of ledgers.
"""

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
from eth_abi.abi import decode, encode
from eth_hash.auto import keccak

from unisono.settlement.artifacts import Artifact, contract_address
from unisono.settlement.eip712 import address_bytes, checksummed
from unisono.types import EvmAddress

GAS = 30_000_000
CHAIN_ID = 31_337
START = 1_700_000_000


class Reverted(Exception):
    """A call was undone. The text is the contract's reason, empty if it gave none."""


class Evm:
    """The state of a chain with a clock that is moved by hand."""

    def __init__(self, chain_id: int = CHAIN_ID) -> None:
        self.time = START
        self._context = ExecutionContext(
            bytes(20), self.time, 1, 0, bytes(32), 10**9, (), chain_id, 0, 0
        )
        self._state = PragueState(AtomicDB(), self._context, BLANK_ROOT_HASH)
        self._nonces: dict[EvmAddress, int] = {}
        self._hashes: list[bytes] = []
        self.done: Any = None
        """The last call, with its logs and gas."""

    @property
    def chain_id(self) -> int:
        return self._context.chain_id

    def set_chain_id(self, chain_id: int) -> None:
        """What a chain's split does to one of its halves."""
        self._context._chain_id = chain_id

    def pass_time(self, seconds: int) -> None:
        """Later calls are in a block `seconds` later."""
        self.time += seconds
        self._context._timestamp = self.time

    @property
    def block(self) -> int:
        """Number of the block that calls are in."""
        return self._context.block_number

    def mine(self, *headers: bytes) -> None:
        """Later calls are in the block after these, which are given by their headers (RLP)."""
        self._hashes = [*(keccak(x) for x in reversed(headers)), *self._hashes][:256]
        self._context._prev_hashes = self._hashes
        self._context._block_number += len(headers)

    def snapshot(self) -> tuple[Any, int, dict[EvmAddress, int], int, list[bytes]]:
        """What `restore` brings back."""
        nonces, block = dict(self._nonces), self._context.block_number
        return self._state.snapshot(), self.time, nonces, block, self._hashes

    def restore(self, kept: tuple[Any, int, dict[EvmAddress, int], int, list[bytes]]) -> None:
        """Undo all since a snapshot, which is used up by it."""
        snapshot, time, nonces, self._context._block_number, self._hashes = kept
        self._context._prev_hashes = self._hashes
        self._state.revert(snapshot)
        self._nonces = nonces
        self.pass_time(time - self.time)

    def next_address(self, deployer: EvmAddress, ahead: int = 0) -> EvmAddress:
        """Of the contract that the deployer makes next, or `ahead` contracts later."""
        return contract_address(deployer, self._nonces.get(deployer, 0) + ahead)

    def deploy(self, artifact: Artifact, deployer: EvmAddress, *arguments: object) -> Contract:
        """Create a contract.

        Raises:
            Reverted: its constructor refused.
        """
        address = self.next_address(deployer)
        inputs = next((x["inputs"] for x in artifact.abi if x["type"] == "constructor"), [])
        code = artifact.creation + encode([_type_of(x) for x in inputs], arguments)
        self._run(deployer, CREATE_CONTRACT_ADDRESS, b"", code, address)
        self._nonces[deployer] = self._nonces.get(deployer, 0) + 1
        return Contract(self, address, artifact)

    def store(self, contract: EvmAddress, slot: bytes, value: int) -> None:
        """Overwrite a word of a contract's storage: for states that take too long to reach."""
        self._state.set_storage(address_bytes(contract), int.from_bytes(slot, "big"), value)

    def call(self, sender: EvmAddress, to: EvmAddress, data: bytes) -> bytes:
        """Send `data`; returns what the contract returned.

        Raises:
            Reverted: the call was undone.
        """
        code = self._state.get_code(address_bytes(to))
        return self._run(sender, address_bytes(to), data, code, None)

    def _run(
        self, sender: EvmAddress, to: bytes, data: bytes, code: bytes, create: EvmAddress | None
    ) -> bytes:
        made = None if create is None else address_bytes(create)
        origin = address_bytes(sender)
        message = Message(GAS, to, origin, 0, data, code, create_address=made)
        context = CancunTransactionContext(gas_price=0, origin=origin)
        apply = PragueComputation.apply_message if made is None else None
        apply = apply or PragueComputation.apply_create_message
        done = apply(self._state, message, context)
        self.done = done
        self._state.clear_transient_storage()
        if done.is_error:
            raise Reverted(_reason(done.output) if isinstance(done.error, Revert) else "")
        return done.output


class Contract:
    """A deployed contract, its functions by name."""

    def __init__(self, evm: Evm, address: EvmAddress, artifact: Artifact) -> None:
        self.evm, self.address = evm, address
        self._functions: dict[str, tuple[bytes, list[str], list[str]]] = {}
        for entry in artifact.abi:
            if entry["type"] == "function":
                inputs = [_type_of(x) for x in entry["inputs"]]
                outputs = [_type_of(x) for x in entry["outputs"]]
                selector = keccak(f"{entry['name']}({','.join(inputs)})".encode())[:4]
                self._functions[entry["name"]] = selector, inputs, outputs

    def send(self, sender: EvmAddress, function: str, *arguments: object) -> Any:
        """Call a function as `sender`; addresses in results are in lower case.

        Raises:
            Reverted: the contract refused.
        """
        raw = self.evm.call(sender, self.address, self.encoded(function, *arguments))
        outputs = self._functions[function][2]
        values = decode(outputs, raw)
        return values[0] if len(outputs) == 1 else values

    def encoded(self, function: str, *arguments: object) -> bytes:
        """The data of a call."""
        selector, inputs, _ = self._functions[function]
        return selector + encode(inputs, arguments)

    def view(self, function: str, *arguments: object) -> Any:
        """Call a function as nobody."""
        return self.send(NOBODY, function, *arguments)


NOBODY = EvmAddress("0x" + "0" * 40)


def account(number: int) -> EvmAddress:
    """An address for tests, which no key is known of."""
    return checksummed(number.to_bytes(20, "big"))


def _type_of(entry: dict[str, Any]) -> str:
    if not entry["type"].startswith("tuple"):
        return entry["type"]
    inner = ",".join(_type_of(x) for x in entry["components"])
    return f"({inner}){entry['type'].removeprefix('tuple')}"


def _reason(output: bytes) -> str:
    if output[:4] == bytes.fromhex("08c379a0"):
        return str(decode(["string"], output[4:])[0])
    return output.hex()
