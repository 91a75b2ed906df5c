"""The embedded chain for the processes of this machine: JSON-RPC over HTTP on loopback.

Whoever can open a socket here can read the chain and send what is signed; nothing is signed for
anybody. Web pages cannot: a request must be JSON by its type, carry no Origin, and name loopback.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

import msgspec

from unisono.clock import Clock, SystemClock
from unisono.errors import ConfigurationError, RequestError, SettlementError, TransactionRefused
from unisono.settlement.ledger.embedded import MAX_TRANSACTION_BYTES, EmbeddedChain
from unisono.settlement.ledger.loopback import LoopbackServer
from unisono.settlement.ledger.methods import METHODS, Parameters, read_data
from unisono.settlement.ledger.revert import Reverted

MAX_BODY = 2 << 20
MAX_BATCH = 100
MAX_WAITING = 1024
LEAD_SECONDS = 15.0
"""Blocks may run ahead of the clock by so much; then transactions share one block per second."""


class _Request(msgspec.Struct):
    method: str
    id: int | str | None = None
    params: Any = None
    jsonrpc: str = "2.0"


class RpcServer:
    """Serves one chain until `close`. One thread works on the chain, blocks are made in turn."""

    def __init__(self, chain: EmbeddedChain, *, clock: Clock | None = None) -> None:
        self._chain = chain
        self._clock = clock or SystemClock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chain")
        self._waiting: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        self._arrived = asyncio.Event()
        self._mining: asyncio.Task[None] | None = None
        self._granting = asyncio.Lock()
        self._http = LoopbackServer(self.answer, max_body=MAX_BODY)

    @property
    def url(self) -> str:
        """Where processes of this machine reach it."""
        return self._http.url

    async def start(self, port: int = 0) -> None:
        """Listen on 127.0.0.1; port 0 is a free one.

        Raises:
            ConfigurationError: the port is taken.
        """
        await self._http.start(port)
        self._mining = asyncio.create_task(self._mine())

    async def wait(self) -> None:
        """Until making blocks fails.

        Raises:
            ConfigurationError: the chain's file cannot be written any more.
        """
        if self._mining is not None:
            await self._mining

    async def close(self) -> None:
        """Stop serving and close the chain; what was not confirmed is refused."""
        await self._http.close()
        if self._mining is not None:
            self._mining.cancel()
            with suppress(asyncio.CancelledError, ConfigurationError):
                await self._mining
        await asyncio.get_running_loop().run_in_executor(self._thread, self._chain.close)
        self._thread.shutdown()

    async def answer(self, body: bytes) -> bytes:
        """The JSON-RPC answer to a request or a batch of at most 100."""
        try:
            parsed = msgspec.json.decode(body)
        except msgspec.DecodeError:
            return _encode(_error(None, -32700, "the request is not JSON"))
        if isinstance(parsed, list):
            batch = cast("list[object]", parsed)
            if not 0 < len(batch) <= MAX_BATCH:
                return _encode(_error(None, -32600, f"a batch has 1 to {MAX_BATCH} requests"))
            return _encode([await self._one(item) for item in batch])
        return _encode(await self._one(parsed))

    async def _one(self, item: object) -> dict[str, Any]:
        try:
            request = msgspec.convert(item, _Request)
        except msgspec.ValidationError as error:
            return _error(None, -32600, f"not a JSON-RPC request: {error}")
        try:
            result = await self._result(request)
        except Reverted as error:
            return _error(request.id, 3, str(error), "0x" + error.data.hex())
        except RequestError as error:
            return _error(request.id, -32602, str(error))
        except SettlementError as error:
            return _error(request.id, -32000, str(error))
        return {"jsonrpc": "2.0", "id": request.id, "result": result}

    async def _result(self, request: _Request) -> Any:
        parameters = Parameters(request.params)
        if request.method == "eth_sendRawTransaction":
            raw = read_data(parameters.take(), 1, MAX_TRANSACTION_BYTES)
            return "0x" + (await self.send(raw)).hex()
        if request.method == "unisono_grant":
            account = parameters.bytes_of(20)
            return "0x" + (await self.grant(account)).hex()
        method = METHODS.get(request.method)
        if method is None:
            raise RequestError(
                f"this chain has no method '{request.method[:60]}'; it has "
                f"{', '.join(sorted([*METHODS, 'eth_sendRawTransaction', 'unisono_grant']))}"
            )
        return await self._on_chain(lambda: method(self._chain, parameters))

    async def grant(self, account: bytes) -> bytes:
        """Give an account one coin for gas; the hash of the transaction.

        Raises:
            TransactionRefused: too many wait, or the chain stops.
        """
        async with self._granting:  # one after the other, for the treasury's nonces
            raw = await self._on_chain(lambda: self._chain.grant(account))
            return await self.send(raw)

    async def send(self, raw: bytes) -> bytes:
        """Put a signed transaction into a block; its hash once that is durable.

        Raises:
            TransactionRefused: the chain does not take it, too many wait, or the chain stops.
        """
        if self._mining is None or self._mining.done():
            raise TransactionRefused("the chain makes no blocks any more: restart it")
        if len(self._waiting) >= MAX_WAITING:
            raise TransactionRefused("too many transactions wait: send this one again later")
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((raw, future))
        self._arrived.set()
        return await future

    async def _mine(self) -> None:
        try:
            while True:
                await self._arrived.wait()
                ahead = await self._on_chain(lambda: self._chain.lead)
                if ahead > LEAD_SECONDS:
                    await self._clock.sleep(ahead - LEAD_SECONDS)
                await self._make_block()
        finally:
            while self._waiting:
                _, future = self._waiting.popleft()
                if not future.done():
                    future.set_exception(TransactionRefused("the chain stops: send this again"))

    async def _make_block(self) -> None:
        batch = list(self._waiting)
        try:
            outcomes = await self._on_chain(lambda: self._chain.mine([raw for raw, _ in batch]))
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"the chain's file cannot be written: {error}; is its disk full?"
            ) from error
        later: list[tuple[bytes, asyncio.Future[bytes]]] = []
        for entry, outcome in zip(batch, outcomes, strict=True):
            self._waiting.popleft()
            _, future = entry
            if outcome is None:
                later.append(entry)
            elif future.done():  # its client went away
                continue
            elif isinstance(outcome, bytes):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
        self._waiting.extendleft(reversed(later))
        if not self._waiting:
            self._arrived.clear()

    async def _on_chain(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _error(
    request: int | str | None, code: int, message: str, revert: str | None = None
) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if revert is not None:
        error["data"] = revert
    return {"jsonrpc": "2.0", "id": request, "error": error}


def _encode(value: object) -> bytes:
    return msgspec.json.encode(value)
