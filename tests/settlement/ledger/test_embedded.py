"""The embedded chain: what is confirmed stays, time passes, and strangers get nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web3 import AsyncWeb3

from tests.settlement.ledger.conftest import CHAIN_ID
from unisono.clock import VirtualClock
from unisono.errors import ConfigurationError, TransactionRefused
from unisono.settlement.artifacts import artifact, contract_address
from unisono.settlement.eip712 import address_bytes
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.embedded import GRANT, EmbeddedChain
from unisono.settlement.ledger.fees import GWEI, Fee
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.revert import Reverted, revert_reason
from unisono.settlement.ledger.rpc import RpcLedger
from unisono.settlement.ledger.rpc_server import LEAD_SECONDS, MAX_BATCH, RpcServer
from unisono.settlement.ledger.transaction import signed_attempt
from unisono.settlement.signature import SettlementKey

KEY = SettlementKey(b"\x31" * 32)
ME = address_bytes(KEY.address)
COIN = artifact("stablecoin")


def raw(chain: EmbeddedChain, intent: Intent, nonce: int, gas: int = 2_000_000) -> bytes:
    fee = Fee(10 * GWEI, GWEI)
    return signed_attempt(KEY, intent, chain_id=chain.chain_id, nonce=nonce, gas=gas, fee=fee).raw


def with_coin(chain: EmbeddedChain) -> Contract:
    assert isinstance(chain.mine([chain.grant(ME)])[0], bytes)
    assert isinstance(chain.mine([raw(chain, Intent(None, COIN.creation), 0)])[0], bytes)
    return Contract(contract_address(KEY.address, 0), COIN.abi)


def test_a_chain_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "chain.sqlite"
    chain = EmbeddedChain(path, chain_id=CHAIN_ID)
    coin = with_coin(chain)
    minted = chain.mine([raw(chain, Intent(coin.address, coin.encode("mint", KEY.address, 9)), 1)])
    assert isinstance(minted[0], bytes)
    head = chain.head()
    chain.close()
    again = EmbeddedChain(path)
    assert again.chain_id == CHAIN_ID
    assert again.head().hash == head.hash
    assert again.place(minted[0]) == (3, 0)
    data = again.call(ME, address_bytes(coin.address), coin.encode("totalSupply"), 0, again.head())
    assert coin.decode("totalSupply", data) == 9
    assert isinstance(again.mine([raw(again, Intent(KEY.address), 2)])[0], bytes)
    again.close()
    assert path.stat().st_mode & 0o077 == 0


def test_a_chain_has_one_process_and_one_number(tmp_path: Path) -> None:
    path = tmp_path / "chain.sqlite"
    chain = EmbeddedChain(path, chain_id=CHAIN_ID)
    with pytest.raises(ConfigurationError, match="another process runs the chain"):
        EmbeddedChain(path)
    chain.close()
    with pytest.raises(ConfigurationError, match=f"holds the chain {CHAIN_ID}, not 5"):
        EmbeddedChain(path, chain_id=5)
    other = tmp_path / "text"
    other.write_text("this is no database, whatever it is called, and it is long enough")
    with pytest.raises(ConfigurationError, match="cannot keep a chain"):
        EmbeddedChain(other)


def test_a_block_that_cannot_be_written_never_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    chain = EmbeddedChain(tmp_path / "chain.sqlite")
    chain.mine([chain.grant(ME)])
    head = chain.head().hash

    def full(self: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("unisono.settlement.ledger.store.ChainStore.commit", full)
        with pytest.raises(sqlite3.OperationalError):
            chain.mine([raw(chain, Intent(KEY.address), 0)])
    assert chain.head().hash == head
    assert chain.nonce(ME, chain.head()) == 0
    assert isinstance(chain.mine([raw(chain, Intent(KEY.address), 0)])[0], bytes)
    chain.close()


async def test_time_follows_the_clock_also_in_calls(tmp_path: Path) -> None:
    clock = VirtualClock()
    chain = EmbeddedChain(None, clock=clock)
    chain.mine([chain.grant(ME)])
    assert chain.head().timestamp == int(clock.now()) + 1  # after genesis
    await clock.advance(500)
    chain.mine([chain.grant(ME)])
    assert chain.head().timestamp == int(clock.now())
    await clock.advance(3600)
    assert chain.context(chain.head()).timestamp == int(clock.now())
    for _ in range(5):
        chain.mine([chain.grant(ME)])
    assert chain.lead == 4
    chain.close()


async def test_blocks_never_run_far_ahead_of_the_clock(tmp_path: Path) -> None:
    clock = VirtualClock()
    chain = EmbeddedChain(None, clock=clock)
    server = RpcServer(chain, clock=clock)
    await server.start()
    for _ in range(int(LEAD_SECONDS) + 1):
        await server.grant(ME)
    waiting = [asyncio.create_task(server.grant(ME)) for _ in range(2)]
    done, _ = await asyncio.wait(waiting, timeout=0.2)
    assert not done
    await clock.advance(3)
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert chain.lead <= LEAD_SECONDS + 1
    await server.close()


def test_a_full_block_leaves_the_rest_for_the_next_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unisono.settlement.ledger.embedded.BLOCK_TRANSACTIONS", 4)
    chain = EmbeddedChain(None)
    chain.mine([chain.grant(ME)])
    raws = [raw(chain, Intent(KEY.address), n, gas=21_000) for n in range(7)]
    outcomes = chain.mine(raws)
    assert all(isinstance(o, bytes) for o in outcomes[:4])
    assert outcomes[4:] == [None] * 3
    assert all(isinstance(o, bytes) for o in chain.mine(raws[4:]))


def test_a_transaction_that_no_longer_fits_a_block_keeps_those_behind_it_waiting() -> None:
    chain = EmbeddedChain(None)
    chain.mine([chain.grant(ME)])
    burn = Intent(None, b"\xfe")  # INVALID: uses all gas
    thirsty = raw(chain, burn, 0, gas=16_000_000), raw(chain, burn, 1, gas=16_000_000)
    small = raw(chain, Intent(KEY.address), 2, gas=21_000)
    first, second, third = chain.mine([*thirsty, small])
    assert isinstance(first, bytes)
    assert (second, third) == (None, None)
    assert all(isinstance(o, bytes) for o in chain.mine([thirsty[1], small]))


def test_what_is_not_valid_is_refused_by_name_and_changes_nothing() -> None:
    chain = EmbeddedChain(None)
    chain.mine([chain.grant(ME)])
    head = chain.head().hash
    cases: dict[str, bytes] = {
        "nonce too high": raw(chain, Intent(KEY.address), 1),
        "is signed for chain": signed_attempt(
            KEY, Intent(KEY.address), chain_id=1, nonce=0, gas=21_000, fee=Fee(GWEI, GWEI)
        ).raw,
        "a block has": raw(chain, Intent(KEY.address), 0, gas=40_000_000),
        "not valid": raw(chain, Intent(KEY.address).paying(2 * GRANT), 0),
        "not a signed transaction": b"\x02\x80",
        "types 0, 1 and 2": b"\x03" + bytes(50),
        "at most": bytes(1 << 18),
    }
    outcomes = chain.mine(list(cases.values()))
    for words, outcome in zip(cases, outcomes, strict=True):
        assert isinstance(outcome, TransactionRefused)
        assert words in str(outcome)
    assert chain.head().hash == head
    good = raw(chain, Intent(KEY.address), 0)
    assert isinstance(chain.mine([good])[0], bytes)
    again = chain.mine([good])[0]
    assert isinstance(again, TransactionRefused)
    assert again.known


@given(st.binary(max_size=300))
def test_no_bytes_harm_the_chain(data: bytes) -> None:
    outcome = CHAIN.mine([data])[0]
    assert isinstance(outcome, TransactionRefused)


CHAIN = EmbeddedChain(None)


def test_an_estimate_is_enough_and_no_more() -> None:
    chain = EmbeddedChain(None)
    coin = with_coin(chain)
    mint = Intent(coin.address, coin.encode("mint", KEY.address, 9))
    gas = chain.estimate_gas(ME, address_bytes(coin.address), mint.data, 0, chain.head())
    assert isinstance(chain.mine([raw(chain, mint, 1, gas)])[0], bytes)
    block = chain.block(chain.head())
    used = chain.receipts(block)[0].gas_used
    assert used <= gas <= used * 65 // 64 + 1
    with pytest.raises(Reverted, match="only the minter"):
        chain.estimate_gas(bytes(20), address_bytes(coin.address), mint.data, 0, chain.head())


async def test_randomness_of_a_block_is_fixed_before_it_runs() -> None:
    chain = EmbeddedChain(None)
    seen = {chain.next_header().mix_hash for _ in range(3)}
    assert len(seen) == 3
    # PREVRANDAO, PUSH1 1, MSTORE, PUSH1 33, PUSH0, RETURN as a constructor: the code is the value
    # behind a zero, since no code may begin with 0xef (EIP-3541)
    chain.mine([chain.grant(ME)])
    chain.mine([raw(chain, Intent(None, bytes.fromhex("4460015260215ff3")), 0)])
    code = chain.code(address_bytes(contract_address(KEY.address, 0)), chain.head())
    assert code == b"\0" + chain.head().mix_hash


async def test_another_client_understands_the_chain(embedded: RpcLedger) -> None:
    sent = await embedded.grant(KEY.address)
    web3 = AsyncWeb3(AsyncWeb3.AsyncHTTPProvider(str(embedded._url)))  # pyright: ignore
    assert await web3.eth.chain_id == CHAIN_ID
    assert await web3.eth.get_balance(KEY.address) == GRANT
    receipt = await web3.eth.get_transaction_receipt(sent)
    block: Any = await web3.eth.get_block("latest", full_transactions=True)
    assert receipt["blockHash"] == block["hash"]
    assert block["transactions"][0]["to"] == KEY.address
    assert (await web3.eth.fee_history(2, "latest"))["oldestBlock"] == 0
    by_hash = await web3.eth.get_block(block["hash"])
    assert by_hash["number"] == block["number"]
    assert (await web3.eth.get_transaction(sent))["value"] == GRANT
    await web3.provider.disconnect()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"headers": {"origin": "https://example.org"}}, 403),
        ({"headers": {"host": "example.org"}}, 403),
        ({"headers": {"content-type": "text/plain"}}, 415),
        ({"content": b" " * (3 << 20)}, 413),
        ({"method": "GET"}, 404),
    ],
)
async def test_web_pages_and_floods_are_turned_away(
    embedded: RpcLedger, change: dict[str, Any], status: int
) -> None:
    body = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}'
    request: dict[str, Any] = {"method": "POST", "content": body, **change}
    request["headers"] = {"content-type": "application/json", **change.get("headers", {})}
    async with httpx.AsyncClient() as client:
        answer = await client.request(url=str(embedded._url), **request)  # pyright: ignore
    assert answer.status_code == status


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"[]",
        b"nonsense",
        b'"text"',
        b'{"method": 5}',
        b'{"id": {}, "method": "eth_chainId"}',
        b'{"method": "eth_getBalance"}',
        b'{"method": "eth_getBalance", "params": {"a": 1}}',
        b'{"method": "eth_getBalance", "params": ["0x12", "latest"]}',
        b'{"method": "eth_getBalance", "params": ["0x' + b"a" * 40 + b'", "0xfffffff"]}',
        b'{"method": "eth_call", "params": [{"to": "0x"}, "soon"]}',
        b'{"method": "eth_call", "params": [{"sudo": "0x"}]}',
        b'{"method": "eth_call", "params": [{"data": "0x5"}]}',
        b'{"method": "eth_call", "params": [{"value": "0x' + b"f" * 65 + b'"}]}',
        b'{"method": "eth_getLogs", "params": [{"topics": [1,2,3,4,5]}]}',
        b'{"method": "eth_getLogs", "params": [{"topics": [{}]}]}',
        b'{"method": "eth_feeHistory", "params": ["many"]}',
        b'{"method": "eth_sendRawTransaction", "params": ["0x"]}',
        b'{"method": "eth_sendRawTransaction", "params": ["0x02"]}',
        b'{"method": "eth_sendTransaction", "params": [{}]}',
        b'{"method": "evm_revert", "params": ["0x1"]}',
    ],
)
async def test_a_bad_request_gets_an_error_and_nothing_else(
    embedded: RpcLedger, request_: bytes
) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            str(embedded._url),  # pyright: ignore
            content=request_,
            headers={"content-type": "application/json"},
        )
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] < 0
    assert await embedded.chain_id() == CHAIN_ID


async def test_a_batch_is_answered_in_order_and_bounded(embedded: RpcLedger) -> None:
    one = {"jsonrpc": "2.0", "method": "eth_chainId"}
    async with httpx.AsyncClient() as client:
        url = str(embedded._url)  # pyright: ignore
        answer = await client.post(url, json=[{**one, "id": n} for n in range(5)])
        assert [a["id"] for a in answer.json()] == [0, 1, 2, 3, 4]
        long = await client.post(url, json=[one] * (MAX_BATCH + 1))
        assert "error" in long.json()


@given(st.binary(max_size=200))
def test_any_revert_data_becomes_words(data: bytes) -> None:
    for prefix in (b"", bytes.fromhex("08c379a0"), bytes.fromhex("4e487b71")):
        text = revert_reason(prefix + data)
        assert text.isprintable()
        assert 0 < len(text) <= 600 or not data
