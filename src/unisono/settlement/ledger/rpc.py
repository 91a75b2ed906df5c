"""Any chain that speaks Ethereum's JSON-RPC, as a `Ledger`.

What the other side sends is as untrusted as a peer's bytes: its size is bounded, and every field
that is used must have its exact form. web3.py does neither, so this client is our own.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypeVar, cast

import httpx
import msgspec
from eth_hash.auto import keccak

from unisono.clock import Clock, SystemClock
from unisono.errors import ConfigurationError, LedgerUnreachable, TransactionRefused
from unisono.settlement.eip712 import checksummed
from unisono.settlement.ledger.header import HeaderFields
from unisono.settlement.ledger.ledger import BlockHash, Call, ChainReceipt, Head, Log, TxHash
from unisono.settlement.ledger.revert import Reverted
from unisono.types import EvmAddress

MAX_RESPONSE = 16 << 20
TIMEOUT_SECONDS = 20.0
"""Without a byte."""
WHOLE_SECONDS = 60.0
"""For a whole answer."""
ATTEMPTS = 3
"""Of requests that change nothing. A transaction is handed over once: its owner tries again."""
BACK_OFF_SECONDS = 0.25
_REASON = 300
_PRIVATE = ("unisono/", "anvil/")
_COIN = 10**18

_Hash = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{64}$")]
_Account = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{40}$")]
_Quantity = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{1,64}$")]
_Data = Annotated[str, msgspec.Meta(pattern="^0x([0-9a-fA-F]{2})*$")]
Form = TypeVar("Form")


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""
    data: Any = None


class _Response(msgspec.Struct):
    id: int | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _Error | None = None


class _Block(msgspec.Struct, rename="camel"):
    number: _Quantity
    hash: _Hash
    timestamp: _Quantity
    gas_limit: _Quantity
    base_fee_per_gas: _Quantity = "0x0"


class _Log(msgspec.Struct, rename="camel"):
    address: _Account
    topics: Annotated[list[_Hash], msgspec.Meta(max_length=4)]
    data: _Data
    block_number: _Quantity
    transaction_hash: _Hash
    log_index: _Quantity


class _Receipt(msgspec.Struct, rename="camel"):
    transaction_hash: _Hash
    block_number: _Quantity | None
    block_hash: _Hash | None
    status: _Quantity
    gas_used: _Quantity
    logs: Annotated[list[_Log], msgspec.Meta(max_length=10_000)]
    effective_gas_price: _Quantity = "0x0"
    contract_address: _Account | None = None


class RpcLedger:
    """A connection to one endpoint."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: `http://` or `https://`; it may hold a key, and is not shown in errors.
            clock: what waits between attempts.
            transport: in place of a socket, for tests.

        Raises:
            ConfigurationError: it is no such address.
        """
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise ConfigurationError(f"the chain's address is no URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigurationError(
                "the chain's address must be http://HOST:PORT or https://…, such as the "
                "one that `unisono chain serve` prints"
            )
        self._url = parsed
        self._clock = clock or SystemClock()
        self._number = 0
        self._client = httpx.AsyncClient(
            timeout=TIMEOUT_SECONDS, transport=transport, follow_redirects=False, trust_env=False
        )

    @property
    def name(self) -> str:
        """The endpoint without path and password, which may hold a key."""
        port = f":{self._url.port}" if self._url.port else ""
        return f"{self._url.scheme}://{self._url.host}{port}"

    def __repr__(self) -> str:
        return f"RpcLedger({self.name})"

    async def chain_id(self) -> int:
        """The number that signatures are bound to."""
        return await self._quantity("eth_chainId")

    async def head(self) -> Head:
        """The newest block."""
        block = await self._get(_Block, "eth_getBlockByNumber", "latest", False)
        return _head(block)

    async def block(self, number: int) -> Head | None:
        """The canonical block of this number, or None if there is none yet."""
        block = await self._get(_Block | None, "eth_getBlockByNumber", hex(number), False)
        return None if block is None else _head(block)

    async def header(self, number: int) -> bytes | None:
        """The header of the canonical block of this number as it is hashed (RLP), or None."""
        block = await self._get(HeaderFields | None, "eth_getBlockByNumber", hex(number), False)
        if block is None:
            return None
        header = block.encoded()
        if keccak(header) != _bytes(block.hash):
            raise self._strange(f"the header of block {number} has another form than is known")
        return header

    async def nonce(self, account: EvmAddress, block: int | None = None) -> int:
        """How many transactions of the account the chain holds, up to a block."""
        return await self._quantity("eth_getTransactionCount", account, _tag(block))

    async def balance(self, account: EvmAddress) -> int:
        """Wei of the chain's own coin."""
        return await self._quantity("eth_getBalance", account, "latest")

    async def code(self, address: EvmAddress) -> bytes:
        """The contract's runtime code; empty where none is."""
        return _bytes(await self._get(_Data, "eth_getCode", address, "latest"))

    async def call(self, call: Call) -> bytes:
        """What the contract would return."""
        return _bytes(await self._get(_Data, "eth_call", _message(call), "latest"))

    async def estimate_gas(self, call: Call) -> int:
        """Gas that the call would use."""
        return await self._quantity("eth_estimateGas", _message(call))

    async def tip(self) -> int:
        """Wei per gas on top of the base fee that the chain suggests."""
        return await self._quantity("eth_maxPriorityFeePerGas")

    async def send(self, raw: bytes) -> TxHash:
        """Hand over a signed transaction."""
        sent = await self._get(_Hash, "eth_sendRawTransaction", "0x" + raw.hex(), attempts=1)
        return TxHash(sent.lower())

    async def receipt(self, transaction: TxHash) -> ChainReceipt | None:
        """The receipt, or None while no canonical block has the transaction."""
        found = await self._get(_Receipt | None, "eth_getTransactionReceipt", transaction)
        if found is None or found.block_number is None or found.block_hash is None:
            return None
        if found.transaction_hash.lower() != transaction:
            raise self._strange("a receipt of another transaction")
        created = found.contract_address
        return ChainReceipt(
            transaction=transaction,
            block=int(found.block_number, 16),
            block_hash=BlockHash(found.block_hash.lower()),
            succeeded=int(found.status, 16) == 1,
            gas_used=int(found.gas_used, 16),
            gas_price=int(found.effective_gas_price, 16),
            contract=None if created is None else checksummed(_bytes(created)),
            logs=tuple(_log(log) for log in found.logs),
        )

    async def logs(
        self, addresses: tuple[EvmAddress, ...], first: int, last: int, topic: bytes | None = None
    ) -> tuple[Log, ...]:
        """Events of these contracts in blocks `first` to `last`, both included."""
        wanted: dict[str, Any] = {
            "address": list(addresses),
            "fromBlock": hex(first),
            "toBlock": hex(last),
        }
        if topic is not None:
            wanted["topics"] = ["0x" + topic.hex()]
        found = await self._get(list[_Log], "eth_getLogs", wanted)
        return tuple(_log(log) for log in found)

    async def grant(self, account: EvmAddress) -> TxHash:
        """One coin for gas, of a chain that gives it away: embedded chains do.

        Raises:
            TransactionRefused: this chain does not.
        """
        given = await self._get(_Hash, "unisono_grant", account, attempts=1)
        return TxHash(given.lower())

    async def is_private(self) -> bool:
        """Whether this is a chain for one machine or for developers, by what it calls itself."""
        name = await self._get(str, "web3_clientVersion")
        return name.lower().startswith(_PRIVATE)

    async def fund(self, account: EvmAddress) -> None:
        """Let an account of a private chain have a coin for gas, if it has less than half of one.

        Raises:
            TransactionRefused: the chain gives nothing away.
        """
        if await self.balance(account) >= _COIN // 2:
            return
        try:
            await self.grant(account)
        except TransactionRefused:
            await self.ask("anvil_setBalance", account, hex(_COIN))

    async def ask(self, method: str, *parameters: object) -> object:
        """Any other method's result, unread: for tests and for chains of developers."""
        return await self._get(object, method, *parameters, attempts=1)

    async def close(self) -> None:
        """Give back connections."""
        await self._client.aclose()

    async def _quantity(self, method: str, *parameters: object) -> int:
        return int(await self._get(_Quantity, method, *parameters), 16)

    async def _get(
        self, form: Any, method: str, *parameters: object, attempts: int = ATTEMPTS
    ) -> Any:
        for attempt in range(attempts):
            try:
                response = await self._post(method, parameters)
                break
            except LedgerUnreachable:
                if attempt + 1 == attempts:
                    raise
                await self._clock.sleep(BACK_OFF_SECONDS * 4**attempt)
        else:
            raise AssertionError("attempts is at least 1")
        if response.error is not None:
            raise _refusal(response.error)
        try:
            return msgspec.json.decode(response.result, type=form)
        except msgspec.ValidationError as error:
            raise self._strange(f"{method}: {error}") from error

    async def _post(self, method: str, parameters: tuple[object, ...]) -> _Response:
        self._number += 1
        number = self._number
        body = msgspec.json.encode(
            {"jsonrpc": "2.0", "id": number, "method": method, "params": list(parameters)}
        )
        # Not compressed, so that the bound on what arrives is the bound on what is held.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        try:
            async with (
                asyncio.timeout(WHOLE_SECONDS),
                self._client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                data = bytearray()
                async for chunk in answer.aiter_raw():
                    data += chunk
                    if len(data) > MAX_RESPONSE:
                        raise self._strange(f"more than {MAX_RESPONSE:,} bytes")
                status = answer.status_code
        except (httpx.HTTPError, TimeoutError) as error:
            raise LedgerUnreachable(
                f"the chain at {self.name} does not answer ({type(error).__name__}): is it "
                "running, and is the address right?"
            ) from error
        try:
            response = msgspec.json.decode(data, type=_Response)
        except msgspec.DecodeError as error:
            raise self._strange(f"HTTP {status} and no JSON-RPC") from error
        if response.id not in (number, None) or (status != 200 and response.error is None):
            raise self._strange(f"HTTP {status}, answer {response.id} to request {number}")
        return response

    def _strange(self, what: str) -> LedgerUnreachable:
        return LedgerUnreachable(
            f"{self.name} does not answer like a chain: {what[:_REASON]}; is it a JSON-RPC "
            "endpoint of an Ethereum-like chain?"
        )


async def connected(
    url: str, *, wait_seconds: float = 10.0, clock: Clock | None = None
) -> RpcLedger:
    """A ledger that answers, waiting a while for one that only starts.

    Raises:
        ConfigurationError: the URL is none.
        LedgerUnreachable: it does not answer in time.
    """
    clock = clock or SystemClock()
    ledger = RpcLedger(url, clock=clock)
    until = clock.monotonic() + wait_seconds
    try:
        while True:
            try:
                await ledger.chain_id()
                return ledger
            except LedgerUnreachable:
                if clock.monotonic() >= until:
                    raise
                await clock.sleep(0.1)
    except (LedgerUnreachable, TransactionRefused, asyncio.CancelledError):
        await ledger.close()
        raise


def _refusal(error: _Error) -> TransactionRefused:
    text = "".join(c for c in error.message if c.isprintable())[:_REASON]
    given: Any = error.data
    if isinstance(given, dict):  # some nodes nest the revert's data
        given = cast("dict[str, Any]", given).get("data")
    if isinstance(given, str) and len(given) <= 1 << 16:
        try:
            return Reverted(_bytes(msgspec.convert(given, _Data)))
        except msgspec.ValidationError:
            pass
    if error.code == 3 or "revert" in text:
        return Reverted(b"") if not text else TransactionRefused(f"the contract refused: {text}")
    known = any(words in text.lower() for words in ("already known", "already imported"))
    return TransactionRefused(f"the chain refused: {text or error.code}", known=known)


def _head(block: _Block) -> Head:
    return Head(
        number=int(block.number, 16),
        hash=BlockHash(block.hash.lower()),
        timestamp=int(block.timestamp, 16),
        base_fee=int(block.base_fee_per_gas, 16),
        gas_limit=int(block.gas_limit, 16),
    )


def _log(log: _Log) -> Log:
    return Log(
        address=checksummed(_bytes(log.address)),
        topics=tuple(_bytes(topic) for topic in log.topics),
        data=_bytes(log.data),
        block=int(log.block_number, 16),
        transaction=TxHash(log.transaction_hash.lower()),
        index=int(log.log_index, 16),
    )


def _message(call: Call) -> dict[str, str]:
    message = {"data": "0x" + call.data.hex(), "value": hex(call.value)}
    if call.to is not None:
        message["to"] = call.to
    if call.sender is not None:
        message["from"] = call.sender
    return message


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def _tag(block: int | None) -> str:
    return "latest" if block is None else hex(block)
