"""Gas of every call that the contracts take from outside, on py-evm and on anvil (Prague).

    python -m bench.gas

Each figure is `gasUsed` of a mined transaction, so the 21,000 of a transaction and the price of
its calldata are in it. Without anvil (`make test-anvil` fetches it) its column stays empty. A row
with a limit that is exceeded ends the program with status 1. Contracts' deployments are rows too.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eth_account import Account
from eth_tester import EthereumTester, PyEVMBackend
from web3 import EthereumTesterProvider, HTTPProvider, Web3

from bench.gas_committee import committee
from bench.gas_court import court
from bench.machine import publish
from unisono.settlement.artifacts import artifact
from unisono.settlement.ledger.anvil import find_anvil
from unisono.settlement.signature import SettlementKey
from unisono.settlement.vouchers import channels_domain, sign_voucher

HARDFORK = "prague"
LIMIT = 30_000_000
WINDOW = 3_600
NODE, HALF = b"\x11" * 32, b"\x22" * 32
RICH = 10**15
REDEEM_LIMIT = 60_000
"""Most gas of redeeming a voucher after a payee's first."""


class Chain:
    """A chain on this machine, used through mined transactions only."""

    def __init__(self, name: str, web3: Web3) -> None:
        self.name, self.web3 = name, web3
        self.rows: dict[str, tuple[int, int | None]] = {}
        """What was done → its gas, and the most that it may be."""
        self.key = SettlementKey(b"\x42" * 32)
        """Deploys, and has coins."""
        self.fund(self.key)

    def fund(self, *keys: SettlementKey) -> None:
        """Give keys what pays for gas."""
        for key in keys:
            rich = self.web3.eth.accounts[0]
            sent = {"from": rich, "to": key.address, "value": 10**18}
            self.web3.eth.wait_for_transaction_receipt(self.web3.eth.send_transaction(sent))

    def send(self, key: SettlementKey, data: bytes, to: str | None = None) -> Any:
        """The receipt of a transaction.

        Raises:
            RuntimeError: it was undone.
        """
        fields: dict[str, Any] = {
            "nonce": self.web3.eth.get_transaction_count(key.address),
            "data": data,
            "gas": LIMIT,
            "maxFeePerGas": 3 * 10**9,
            "maxPriorityFeePerGas": 10**9,
            "chainId": self.web3.eth.chain_id,
            **({"to": to} if to else {}),
        }
        raw = Account.from_key(key.secret()).sign_transaction(fields).raw_transaction
        receipt = self.web3.eth.wait_for_transaction_receipt(
            self.web3.eth.send_raw_transaction(raw), poll_latency=0.01
        )
        if receipt["status"] != 1:
            raise RuntimeError(f"a transaction was undone on {self.name}")
        return receipt

    def deploy(self, name: str, *arguments: object) -> Any:
        """A contract, by its committed artifact."""
        found = artifact(name)
        factory: Any = self.web3.eth.contract(abi=found.abi, bytecode=found.creation)
        data: str = factory.constructor(*arguments).data_in_transaction
        receipt = self.send(self.key, bytes.fromhex(data[2:]))
        self.note(f"deploy {name} ({found.runtime_bytes:,} bytes)", receipt["gasUsed"])
        return self.web3.eth.contract(receipt["contractAddress"], abi=found.abi)

    def call(
        self,
        what: str | None,
        key: SettlementKey,
        contract: Any,
        function: str,
        *arguments: object,
        limit: int | None = None,
    ) -> None:
        """Send a call, and note its gas under `what` if that is given."""
        data = bytes.fromhex(contract.encode_abi(function, list(arguments))[2:])
        receipt = self.send(key, data, contract.address)
        if what is not None:
            self.note(what, receipt["gasUsed"], limit)

    def note(self, what: str, gas: int, limit: int | None = None) -> None:
        """Keep a figure."""
        self.rows[what] = gas, limit

    def pass_time(self, seconds: int) -> None:
        """Later blocks are `seconds` later."""
        if self.name == "anvil":
            provider: Any = self.web3.provider
            provider.make_request("evm_increaseTime", [seconds])
            provider.make_request("evm_mine", [])
        else:
            tester: Any = self.web3.provider
            now = self.web3.eth.get_block("latest")["timestamp"]
            tester.ethereum_tester.time_travel(now + seconds)


def money(chain: Chain) -> None:
    """Registry, channels, and the test coin."""
    payer, payee, operator = (SettlementKey(bytes((i,)) * 32) for i in (0x51, 0x52, 0x55))
    others = [SettlementKey(bytes((0x60 + i,)) * 32) for i in range(16)]
    chain.fund(payer, payee, operator, *others)
    coin = chain.deploy("stablecoin")
    # A judge in this measurement is a plain key; in a network it is the court.
    registry = chain.deploy("registry", coin.address, WINDOW, [chain.key.address])
    channels = chain.deploy("channels", coin.address, WINDOW)
    for key in (payer, operator, *others):
        chain.call("mint", chain.key, coin, "mint", key.address, RICH)
    chain.call("transfer of the coin alone", payer, coin, "transfer", others[0].address, 1)
    for key in (payer, operator, *others):
        for contract in (registry, channels):
            chain.call("approve", key, coin, "approve", contract.address, 2**256 - 1)
    _channels(chain, channels, payer, payee, others)
    _registry(chain, registry, operator)


def _channels(
    chain: Chain, channels: Any, payer: SettlementKey, payee: SettlementKey, others: list[Any]
) -> None:
    domain = channels_domain(chain.web3.eth.chain_id, channels.address)

    def voucher(key: SettlementKey, cumulative: int, epoch: int = 0) -> list[Any]:
        signed = sign_voucher(key, domain, payee.address, epoch, cumulative).signature
        return [key.address, epoch, cumulative, signed[64], signed[:32], signed[32:64]]

    def redeem(what: str, cumulative: int, limit: int | None = None) -> None:
        first, *rest = voucher(payer, cumulative)
        chain.call(what, payee, channels, "redeem", first, payee.address, *rest, limit=limit)

    chain.call("deposit, the first", payer, channels, "deposit", payee.address, 10**9)
    chain.call("deposit, a top-up", payer, channels, "deposit", payee.address, 10**9)
    redeem("redeem, the payee's first coins", 1_000_000)
    redeem("redeem, any later", 2_345_678, REDEEM_LIMIT)
    for key in others:
        chain.call(None, key, channels, "deposit", payee.address, 10**9)
    for count in (1, 4, 16):
        batch = [voucher(key, 1_000_000 + count) for key in others[:count]]
        name = f"redeem_batch of {count}"
        chain.call(name, payee, channels, "redeem_batch", payee.address, batch)
    chain.call("start_close", payer, channels, "start_close", payee.address)
    chain.pass_time(WINDOW)
    addresses = payer.address, payee.address
    chain.call("finish_close", payer, channels, "finish_close", *addresses)
    chain.call("deposit into a closed channel", payer, channels, "deposit", payee.address, 10**9)
    chain.call("release", payee, channels, "release", payer.address)


def _registry(chain: Chain, registry: Any, operator: SettlementKey) -> None:
    judge, winner, payer = chain.key, SettlementKey(b"\x53" * 32), SettlementKey(b"\x54" * 32)
    record = NODE, operator.address
    chain.call("register", operator, registry, "register", NODE, HALF, HALF)
    chain.call("stake, the first", operator, registry, "stake", NODE, 10**9)
    chain.call("stake, more", operator, registry, "stake", NODE, 10**9)
    chain.call("lock (by a judge)", judge, registry, "lock", *record, 10**8)
    chain.call("unlock (by a judge)", judge, registry, "unlock", *record, 10**7)
    shares = 10**7, winner.address, 5 * 10**6, payer.address, 3 * 10**6
    chain.call("slash (by a judge), the first", judge, registry, "slash", *record, *shares)
    chain.call("slash (by a judge), any later", judge, registry, "slash", *record, *shares)
    chain.call("collect", judge, registry, "collect", winner.address)
    chain.call("unbond", operator, registry, "unbond", NODE, 10**9)
    chain.pass_time(WINDOW)
    chain.call("withdraw", operator, registry, "withdraw", NODE)
    parameters = bytes(range(256)) * 7
    roots = (HALF, HALF, HALF)
    name = "publish (1,792 bytes of parameters)"
    chain.call(name, judge, registry, "publish", *roots, parameters)


PARTS: list[Callable[[Chain], None]] = [money, court, committee]
"""What is measured, each on a chain where the others ran before."""


@contextmanager
def _py_evm() -> Iterator[Chain]:
    backend = PyEVMBackend.from_mnemonic(
        "test test test test test test test test test test test junk",
        genesis_state_overrides={"balance": 10**24},
    )
    yield Chain("py-evm", Web3(EthereumTesterProvider(EthereumTester(backend))))


@contextmanager
def _anvil() -> Iterator[Chain]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [str(find_anvil()), "--port", port, "--hardfork", HARDFORK, "--silent"]
    process = subprocess.Popen(command)
    web3 = Web3(HTTPProvider(f"http://127.0.0.1:{port}"))
    try:
        until = time.monotonic() + 20
        while not web3.is_connected() and time.monotonic() < until:
            time.sleep(0.05)
        yield Chain("anvil", web3)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    chains = [_py_evm, *([_anvil] if find_anvil() else [])]
    rows: dict[str, dict[str, object]] = {}
    over: list[str] = []
    for start in chains:
        with start() as chain:
            for part in PARTS:
                part(chain)
            for what, (gas, limit) in chain.rows.items():
                row = rows.setdefault(what, {"call": what})
                row[f"gas on {chain.name}"] = gas
                row["limit"] = limit or ""
                if limit is not None and gas > limit:
                    over.append(f"{what}: {gas:,} gas on {chain.name}, at most {limit:,}")
    publish("gas", list(rows.values()), hardfork=HARDFORK)
    if over:
        raise SystemExit("\n".join(over))


if __name__ == "__main__":
    main()
