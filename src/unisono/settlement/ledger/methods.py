"""The methods of Ethereum's JSON-RPC that the embedded chain answers, and no others.

Parameters come from other processes: each is read strictly and bounded before the chain sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from eth.abc import BlockHeaderAPI

from unisono.errors import RequestError
from unisono.settlement.ledger.embedded import EmbeddedChain
from unisono.settlement.ledger.views import (
    block_view,
    data,
    log_views,
    quantity,
    receipt_view,
    transaction_view,
)

Method = Callable[[EmbeddedChain, "Parameters"], Any]
LOG_BLOCKS = 10_000
"""So many blocks one `eth_getLogs` may ask for."""
MAX_LOGS = 10_000
TIP = 10**9
_MAX_DATA = 1 << 20
_SPECIAL = ("latest", "pending", "safe", "finalized", "earliest")


class Parameters:
    """The `params` of one request, read one after the other."""

    def __init__(self, values: object) -> None:
        if values is None:
            values = []
        if not isinstance(values, list) or len(cast("list[object]", values)) > 8:
            raise RequestError("params must be a list of at most 8 values")
        self._values = cast("list[object]", values)
        self._next = 0

    def take(self, *, optional: bool = False) -> object:
        """The next value; None if it is missing and may be."""
        if self._next >= len(self._values):
            if optional:
                return None
            raise RequestError(f"parameter {self._next + 1} is missing")
        self._next += 1
        return self._values[self._next - 1]

    def bytes_of(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        return read_data(self.take(), size, size)

    def header(self, chain: EmbeddedChain) -> BlockHeaderAPI:
        """The block that a tag or number names; the newest if it is left out.

        Raises:
            RequestError: the chain has no such block.
        """
        tag = self.take(optional=True)
        header = named_header(chain, "latest" if tag is None else tag)
        if header is None:
            raise RequestError(f"there is no block {tag!r} yet")
        return header


def read_data(value: object, least: int = 0, most: int = _MAX_DATA) -> bytes:
    """`0x` and an even number of hex digits.

    Raises:
        RequestError: it is something else, or has too few or too many bytes.
    """
    if isinstance(value, str) and value[:2] == "0x" and len(value) <= 2 + 2 * most:
        try:
            found = bytes.fromhex(value[2:])
        except ValueError:
            found = b""
        if 2 * len(found) + 2 == len(value) and least <= len(found):
            return found
    size = f"{least}" if least == most else f"{least} to {most}"
    raise RequestError(f"expected 0x and the hex digits of {size} bytes")


def read_quantity(value: object, bits: int = 256) -> int:
    """`0x` and hex digits of an unsigned integer.

    Raises:
        RequestError: it is something else, or has more bits.
    """
    if isinstance(value, str) and value[:2] == "0x" and 3 <= len(value) <= 2 + bits // 4:
        digits = value[2:]
        if not set(digits) - set("0123456789abcdefABCDEF"):
            return int(digits, 16)
    raise RequestError(f"expected 0x and a number of at most {bits} bits in hex digits")


def named_header(chain: EmbeddedChain, tag: object) -> BlockHeaderAPI | None:
    """The block of a tag or number, or None if there is none yet."""
    if tag == "earliest":
        return chain.header(0)
    if tag in _SPECIAL:
        return chain.head()
    return chain.header(read_quantity(tag, 64))


class Message:
    """The first parameter of `eth_call` and `eth_estimateGas`."""

    _known = frozenset(
        name
        for names in (
            ("from", "to", "data", "input", "value", "gas", "nonce", "type", "chainId"),
            ("gasPrice", "maxFeePerGas", "maxPriorityFeePerGas", "accessList"),
        )
        for name in names
    )

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict) or set(cast("dict[str, object]", value)) - self._known:
            raise RequestError(f"a message is an object with some of {sorted(self._known)}")
        fields = cast("dict[str, object]", value)
        empty, sender, to = "0x", fields.get("from"), fields.get("to")
        self.sender = bytes(20) if sender is None else read_data(sender, 20, 20)
        self.to = b"" if to in (None, empty) else read_data(to, 20, 20)
        self.data = read_data(fields.get("input") or fields.get("data") or empty)
        self.value = read_quantity(fields.get("value") or "0x0")
        gas = fields.get("gas")
        self.gas = None if gas is None else read_quantity(gas, 64)


def _call(chain: EmbeddedChain, parameters: Parameters) -> str:
    message = Message(parameters.take())
    at = parameters.header(chain)
    output = chain.call(message.sender, message.to, message.data, message.value, at, message.gas)
    return data(output)


def _estimate_gas(chain: EmbeddedChain, parameters: Parameters) -> str:
    message = Message(parameters.take())
    at = parameters.header(chain)
    gas = chain.estimate_gas(message.sender, message.to, message.data, message.value, at)
    return quantity(gas)


def _block_by_number(chain: EmbeddedChain, parameters: Parameters) -> Any:
    header = named_header(chain, parameters.take())
    full = parameters.take(optional=True) is True
    return None if header is None else block_view(chain.block(header), full=full)


def _block_by_hash(chain: EmbeddedChain, parameters: Parameters) -> Any:
    number = chain.number_of(parameters.bytes_of(32))
    full = parameters.take(optional=True) is True
    header = None if number is None else chain.header(number)
    return None if header is None else block_view(chain.block(header), full=full)


def _balance(chain: EmbeddedChain, parameters: Parameters) -> str:
    account = parameters.bytes_of(20)
    return quantity(chain.balance(account, parameters.header(chain)))


def _nonce(chain: EmbeddedChain, parameters: Parameters) -> str:
    account = parameters.bytes_of(20)
    return quantity(chain.nonce(account, parameters.header(chain)))


def _code(chain: EmbeddedChain, parameters: Parameters) -> str:
    account = parameters.bytes_of(20)
    return data(chain.code(account, parameters.header(chain)))


def _storage(chain: EmbeddedChain, parameters: Parameters) -> str:
    account = parameters.bytes_of(20)
    slot = read_quantity(parameters.take())
    return data(chain.storage(account, slot, parameters.header(chain)).to_bytes(32))


def _transaction(chain: EmbeddedChain, parameters: Parameters) -> Any:
    place = chain.place(parameters.bytes_of(32))
    header = None if place is None else chain.header(place[0])
    if place is None or header is None:
        return None
    return transaction_view(chain.block(header), place[1])


def _receipt(chain: EmbeddedChain, parameters: Parameters) -> Any:
    place = chain.place(parameters.bytes_of(32))
    header = None if place is None else chain.header(place[0])
    if place is None or header is None:
        return None
    block = chain.block(header)
    return receipt_view(block, chain.receipts(block), place[1])


def _fee_history(chain: EmbeddedChain, parameters: Parameters) -> Any:
    count = parameters.take()
    count = count if isinstance(count, int) else read_quantity(count, 16)
    last = parameters.header(chain).block_number
    first = max(0, last - min(count, 1024) + 1)
    headers = [h for n in range(first, last + 1) if (h := chain.header(n)) is not None]
    fees = [*(h.base_fee_per_gas or 0 for h in headers), chain.next_base_fee()]
    return {
        "oldestBlock": quantity(first),
        "baseFeePerGas": [quantity(fee) for fee in fees],
        "gasUsedRatio": [h.gas_used / h.gas_limit for h in headers],
        "reward": [],
    }


def _logs(chain: EmbeddedChain, parameters: Parameters) -> list[Any]:
    given = parameters.take()
    if not isinstance(given, dict):
        raise RequestError("a filter is an object")
    fields = cast("dict[str, object]", given)
    first = named_header(chain, fields.get("fromBlock", "latest"))
    last = named_header(chain, fields.get("toBlock", "latest")) or chain.head()
    if first is None:
        return []
    if last.block_number - first.block_number >= LOG_BLOCKS:
        raise RequestError(f"a filter spans at most {LOG_BLOCKS:,} blocks: ask piece by piece")
    addresses = _alternatives(fields.get("address"), 20)
    wanted = _topics(fields.get("topics"))
    found: list[Any] = []
    for number in range(first.block_number, last.block_number + 1):
        header = chain.header(number)
        if header is None or not header.bloom:
            continue
        block = chain.block(header)
        receipts = chain.receipts(block)
        for index in range(len(block.transactions)):
            found += [
                log for log in log_views(block, receipts, index) if _matches(log, addresses, wanted)
            ]
        if len(found) > MAX_LOGS:
            raise RequestError(f"more than {MAX_LOGS:,} events match: ask for fewer blocks")
    return found


def _topics(given: object) -> list[frozenset[str] | None]:
    if given is None:
        return []
    if not isinstance(given, list) or len(cast("list[object]", given)) > 4:
        raise RequestError("topics are a list of at most 4")
    return [_alternatives(topic, 32) for topic in cast("list[object]", given)]


def _alternatives(value: object, size: int) -> frozenset[str] | None:
    """One value, several, or None for any."""
    if value is None:
        return None
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    if len(values) > 64:
        raise RequestError("at most 64 alternatives")
    return frozenset(read_data(item, size, size).hex() for item in values)


def _matches(
    log: dict[str, Any], addresses: frozenset[str] | None, wanted: list[frozenset[str] | None]
) -> bool:
    if addresses is not None and log["address"][2:].lower() not in addresses:
        return False
    topics = log["topics"]
    return len(topics) >= len(wanted) and all(
        some is None or topic[2:] in some for topic, some in zip(topics, wanted, strict=False)
    )


METHODS: dict[str, Method] = {
    "web3_clientVersion": lambda chain, p: "unisono/embedded",
    "net_version": lambda chain, p: str(chain.chain_id),
    "eth_chainId": lambda chain, p: quantity(chain.chain_id),
    "eth_syncing": lambda chain, p: False,
    "eth_accounts": lambda chain, p: [],
    "eth_blockNumber": lambda chain, p: quantity(chain.head().block_number),
    "eth_gasPrice": lambda chain, p: quantity(chain.next_base_fee() + TIP),
    "eth_maxPriorityFeePerGas": lambda chain, p: quantity(TIP),
    "eth_feeHistory": _fee_history,
    "eth_getBlockByNumber": _block_by_number,
    "eth_getBlockByHash": _block_by_hash,
    "eth_getBalance": _balance,
    "eth_getTransactionCount": _nonce,
    "eth_getCode": _code,
    "eth_getStorageAt": _storage,
    "eth_getTransactionByHash": _transaction,
    "eth_getTransactionReceipt": _receipt,
    "eth_call": _call,
    "eth_estimateGas": _estimate_gas,
    "eth_getLogs": _logs,
}
"""What only reads. `eth_sendRawTransaction` and `unisono_grant` belong to the server: they wait
for a block."""
