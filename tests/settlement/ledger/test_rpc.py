"""What a chain's endpoint answers is read as strictly as what a peer sends."""

from __future__ import annotations

import gzip
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.clock import SystemClock
from unisono.errors import ConfigurationError, LedgerUnreachable, TransactionRefused
from unisono.settlement.ledger.ledger import Call, TxHash
from unisono.settlement.ledger.revert import Reverted
from unisono.settlement.ledger.rpc import ATTEMPTS, MAX_RESPONSE, RpcLedger
from unisono.settlement.signature import SettlementKey

ACCOUNT = SettlementKey(b"\x61" * 32).address
HASH = TxHash("0x" + "ab" * 32)


class Hurried(SystemClock):
    """Waits for nothing and counts."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def streamed(status: int, content: bytes, **headers: str) -> httpx.Response:
    """A response whose body comes over a wire."""
    return httpx.Response(status, stream=httpx.ByteStream(content), headers=headers)


def answering(result: Any = None, **more: Any) -> RpcLedger:
    """A ledger whose endpoint always answers the same."""

    def respond(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        body = {"jsonrpc": "2.0", "id": asked["id"], **(more or {"result": result})}
        return streamed(200, json.dumps(body).encode())

    return RpcLedger("http://chain", transport=httpx.MockTransport(respond), clock=Hurried())


RECEIPT = {
    "transactionHash": HASH,
    "blockNumber": "0x5",
    "blockHash": "0x" + "cd" * 32,
    "status": "0x1",
    "gasUsed": "0x5208",
    "logs": [],
}


async def test_a_receipt_is_read_whole() -> None:
    receipt = await answering({**RECEIPT, "unknown": 1}).receipt(HASH)
    assert receipt is not None
    assert (receipt.block, receipt.succeeded, receipt.gas_used) == (5, True, 21_000)
    assert await answering(None).receipt(HASH) is None
    assert (
        await answering({**RECEIPT, "blockNumber": None, "blockHash": None}).receipt(HASH) is None
    )


@pytest.mark.parametrize(
    "change",
    [
        {"transactionHash": "0x" + "00" * 32},
        {"blockNumber": 5},
        {"blockNumber": "five"},
        {"blockHash": "0x12"},
        {"status": None},
        {"gasUsed": "0x" + "f" * 65},
        {"logs": [{}]},
        {"logs": [1] * 10},
        {"contractAddress": "0x1234"},
    ],
)
async def test_a_receipt_that_is_none_is_strange(change: dict[str, Any]) -> None:
    with pytest.raises(LedgerUnreachable, match="does not answer like a chain"):
        await answering({**RECEIPT, **change}).receipt(HASH)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c, max_size=3)))
async def test_no_answer_does_harm(result: Any) -> None:
    ledger = answering(result)
    questions: list[Callable[[], Awaitable[object]]] = [
        ledger.chain_id,
        ledger.head,
        lambda: ledger.balance(ACCOUNT),
        lambda: ledger.call(Call(ACCOUNT, b"")),
        lambda: ledger.logs((ACCOUNT,), 0, 1),
    ]
    for question in questions:
        try:
            value = await question()
        except LedgerUnreachable:
            continue
        assert isinstance(value, int | bytes | tuple)


async def test_a_revert_carries_its_reason_wherever_the_node_puts_it() -> None:
    data = "0x08c379a0" + f"{32:064x}{5:064x}" + b"early".hex().ljust(64, "0")
    for error in (
        {"code": 3, "message": "execution reverted", "data": data},
        {"code": -32000, "message": "x", "data": {"data": data}},
    ):
        with pytest.raises(Reverted, match="refused: early"):
            await answering(error=error).estimate_gas(Call(ACCOUNT, b""))
    with pytest.raises(TransactionRefused, match="insufficient funds") as refused:
        await answering(error={"code": -32000, "message": "insufficient funds"}).send(b"")
    assert not refused.value.known
    with pytest.raises(TransactionRefused) as known:
        await answering(error={"code": -32000, "message": "already known"}).send(b"")
    assert known.value.known


async def test_questions_are_asked_again_with_pauses_and_transactions_are_not() -> None:
    asked: list[str] = []

    def fail(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["method"])
        raise httpx.ConnectError("refused", request=request)

    clock = Hurried()
    ledger = RpcLedger(
        "http://user:secret@chain:1234/key", transport=httpx.MockTransport(fail), clock=clock
    )
    with pytest.raises(LedgerUnreachable, match="http://chain:1234 does not answer") as error:
        await ledger.head()
    assert len(asked) == ATTEMPTS
    assert clock.slept == sorted(clock.slept)
    assert len(clock.slept) == ATTEMPTS - 1
    with pytest.raises(LedgerUnreachable):
        await ledger.send(b"")
    assert asked.count("eth_sendRawTransaction") == 1
    for text in (str(error.value), repr(ledger)):
        assert "secret" not in text
        assert "key" not in text


@pytest.mark.parametrize(
    "response",
    [
        streamed(200, b"<html>"),
        streamed(502, b"bad gateway"),
        streamed(200, b'{"id": 99, "result": "0x1"}'),
        streamed(200, b'{"id": 1, "result": "' + b"a" * MAX_RESPONSE + b'"}'),
        streamed(200, gzip.compress(b'{"id": 1, "result": "0x1"}'), **{"content-encoding": "gzip"}),
        streamed(302, b"", location="http://elsewhere"),
    ],
)
async def test_what_is_no_answer_is_strange(response: httpx.Response) -> None:
    transport = httpx.MockTransport(lambda request: response)
    ledger = RpcLedger("http://chain", transport=transport, clock=Hurried())
    with pytest.raises(LedgerUnreachable, match="does not answer like a chain"):
        await ledger.send(b"")


@pytest.mark.parametrize("url", ["", "chain:8545", "ftp://chain", "http://", "http://[::"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="chain's address"):
        RpcLedger(url)
