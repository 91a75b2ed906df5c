"""An EVM in this process, below transactions and blocks.

Nobody signs, pays or mines here, so what is under test is the contract alone. Gas and real
transactions are measured by `bench.gas` and by the tests of ledgers. `UNISONO_EVM` says what runs
contracts: py-evm unless it is set, `translated` for what is some thirty times as fast, `both` for a
comparison of every call.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from eth_abi.abi import decode, encode
from eth_hash.auto import keccak

from tests.settlement.engines import ENGINES, Engine, Outcome
from unisono.settlement.artifacts import Artifact, contract_address
from unisono.settlement.eip712 import address_bytes, checksummed
from unisono.settlement.ledger.contract import Contract as Interface
from unisono.settlement.ledger.ledger import Log, TxHash
from unisono.types import EvmAddress

GAS = 30_000_000
CHAIN_ID = 31_337
START = 1_700_000_000
ENGINE = ENGINES[os.environ.get("UNISONO_EVM") or "py-evm"]


class Reverted(Exception):
    """A call was undone. The text is the contract's reason, empty if it gave none."""


class Evm:
    """The state of a chain with a clock that is moved by hand."""

    def __init__(self, chain_id: int = CHAIN_ID, engine: type[Engine] | None = None) -> None:
        self._chain = (engine or ENGINE)(chain_id, START)
        self._nonces: dict[EvmAddress, int] = {}
        self._known: dict[tuple[EvmAddress, bytes], bytes] = {}
        """Answers of views, as long as nothing changed: tests look at the same again and again."""
        self.done: Outcome
        """The last call, views apart."""

    @property
    def chain_id(self) -> int:
        return self._chain.chain_id

    def set_chain_id(self, chain_id: int) -> None:
        """What a chain's split does to one of its halves."""
        self._known.clear()
        self._chain.chain_id = chain_id

    @property
    def time(self) -> int:
        """Of the block that calls are in."""
        return self._chain.time

    def pass_time(self, seconds: int) -> None:
        """Later calls are in a block `seconds` later."""
        self._known.clear()
        self._chain.time += seconds

    @property
    def block(self) -> int:
        """Number of the block that calls are in."""
        return self._chain.block

    def mine(self, *headers: bytes) -> None:
        """Later calls are in the block after these, which are given by their headers (RLP)."""
        self._known.clear()
        newest_first = (keccak(x) for x in reversed(headers))
        self._chain.hashes = [*newest_first, *self._chain.hashes][:256]
        self._chain.block += len(headers)

    def snapshot(self) -> Any:
        """What `restore` brings back."""
        chain = self._chain
        return chain.snapshot(), chain.time, chain.block, chain.hashes, dict(self._nonces)

    def restore(self, kept: Any) -> None:
        """Undo all since a snapshot, which is used up by it."""
        self._known.clear()
        chain = self._chain
        snapshot, chain.time, chain.block, chain.hashes, self._nonces = kept
        chain.restore(snapshot)

    def code(self, contract: EvmAddress) -> bytes:
        """What a contract consists of."""
        return self._chain.code(address_bytes(contract))

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
        made, origin = address_bytes(address), address_bytes(deployer)
        self.done = self._chain.create(origin, made, code, GAS)
        _output(self.done)
        self._known.clear()
        self._nonces[deployer] = self._nonces.get(deployer, 0) + 1
        return Contract(self, address, artifact)

    def store(self, contract: EvmAddress, slot: bytes, value: int) -> None:
        """Overwrite a word of a contract's storage: for states that take too long to reach."""
        self._chain.store(address_bytes(contract), int.from_bytes(slot, "big"), value)
        self._known.clear()

    def call(self, sender: EvmAddress, to: EvmAddress, data: bytes) -> bytes:
        """Send `data`; returns what the contract returned.

        Raises:
            Reverted: the call was undone.
        """
        self.done = self._chain.call(address_bytes(sender), address_bytes(to), data, GAS)
        answer = _output(self.done)
        self._known.clear()
        return answer

    def look(self, to: EvmAddress, data: bytes) -> bytes:
        """Call a function that changes nothing, as nobody.

        Raises:
            Reverted: the call was undone.
        """
        if (to, data) not in self._known:
            done = self._chain.call(address_bytes(NOBODY), address_bytes(to), data, GAS)
            self._known[to, data] = _output(done)
        return self._known[to, data]


class Contract:
    """A deployed contract, its functions by name."""

    def __init__(self, evm: Evm, address: EvmAddress, artifact: Artifact) -> None:
        self.evm, self.address = evm, address
        self._interface = Interface(address, artifact.abi)
        self._functions: dict[str, tuple[bytes, list[str], list[str]]] = {}
        self._views: set[str] = set()
        for entry in artifact.abi:
            if entry["type"] == "function":
                inputs = [_type_of(x) for x in entry["inputs"]]
                outputs = [_type_of(x) for x in entry["outputs"]]
                selector = keccak(f"{entry['name']}({','.join(inputs)})".encode())[:4]
                self._functions[entry["name"]] = selector, inputs, outputs
                if entry["stateMutability"] in ("view", "pure"):
                    self._views.add(entry["name"])

    def send(self, sender: EvmAddress, function: str, *arguments: object) -> Any:
        """Call a function as `sender`; addresses in results are in lower case.

        Raises:
            Reverted: the contract refused.
        """
        raw = self.evm.call(sender, self.address, self.encoded(function, *arguments))
        return self._decoded(function, raw)

    def encoded(self, function: str, *arguments: object) -> bytes:
        """The data of a call."""
        selector, inputs, _ = self._functions[function]
        return selector + encode(inputs, arguments)

    def view(self, function: str, *arguments: object) -> Any:
        """Call a function that changes nothing, as nobody."""
        assert function in self._views
        raw = self.evm.look(self.address, self.encoded(function, *arguments))
        return self._decoded(function, raw)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """What the last call logged as this contract's events: names and fields."""
        found: list[tuple[str, dict[str, Any]]] = []
        for address, topics, data in self.evm.done.get_log_entries():
            words = tuple(topic.to_bytes(32, "big") for topic in topics)
            log = Log(checksummed(address), words, data, 0, TxHash(""), 0)
            event = self._interface.event(log)
            if event is not None:
                found.append(event)
        return found

    def _decoded(self, function: str, raw: bytes) -> Any:
        outputs = self._functions[function][2]
        values = _decode(tuple(outputs), raw)
        return values[0] if len(outputs) == 1 else values


NOBODY = EvmAddress("0x" + "0" * 40)


def account(number: int) -> EvmAddress:
    """An address for tests, which no key is known of."""
    return checksummed(number.to_bytes(20, "big"))


def _type_of(entry: dict[str, Any]) -> str:
    if not entry["type"].startswith("tuple"):
        return entry["type"]
    inner = ",".join(_type_of(x) for x in entry["components"])
    return f"({inner}){entry['type'].removeprefix('tuple')}"


def _output(done: Outcome) -> bytes:
    if not done.good:
        raise Reverted(_reason(done.output) if done.reverted else "")
    return done.output


_decode = lru_cache(1 << 14)(decode)
"""Tests see the same answers again and again."""


def _reason(output: bytes) -> str:
    if output[:4] == bytes.fromhex("08c379a0"):
        return str(decode(["string"], output[4:])[0])
    return output.hex()
