"""kill -9 of the chain and of the worker at random moments: nothing confirmed is lost, nothing
happens twice."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.settlement.ledger.payer import KEY
from unisono.errors import LedgerUnreachable, TransactionRefused
from unisono.settlement.artifacts import artifact
from unisono.settlement.ledger.anvil import Anvil
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.fees import GWEI, Fee
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Call, TxHash
from unisono.settlement.ledger.outbox import Outbox, stop
from unisono.settlement.ledger.rpc import RpcLedger, connected
from unisono.settlement.ledger.transaction import signed_attempt

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
KILLS = 20
COUNT = 70
ALL = (10**COUNT - 1) // 9


@asynccontextmanager
async def chain_process(store: Path) -> AsyncGenerator[tuple[Process, str]]:
    """`unisono chain serve` on a free port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "unisono", "chain", "serve", "--port", "0", "--store", str(store)),
        stdout=PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("chain_rpc"), line
        yield process, line.split()[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def pay(ledger: RpcLedger, nonce: int) -> TxHash:
    """One transaction, its hash when the chain has confirmed it."""
    intent, fee = Intent(KEY.address), Fee(100 * GWEI, GWEI)
    chain = await ledger.chain_id()
    attempt = signed_attempt(KEY, intent, chain_id=chain, nonce=nonce, gas=21_000, fee=fee)
    return await ledger.send(attempt.raw)


async def test_what_the_chain_confirmed_survives_its_death(tmp_path: Path) -> None:
    store = tmp_path / "chain.sqlite"
    rng = random.Random(6)
    confirmed: dict[int, TxHash] = {}
    for kill in range(KILLS):
        async with chain_process(store) as (process, url):
            ledger = await connected(url)
            await ledger.fund(KEY.address)
            nonce = await ledger.nonce(KEY.address)
            # A transaction without an answer may have happened or not, one with an answer has.
            assert len(confirmed) <= nonce <= len(confirmed) + kill
            for sent in confirmed.values():
                receipt = await ledger.receipt(sent)
                assert receipt is not None
                assert receipt.succeeded
            deadline = asyncio.get_running_loop().time() + rng.uniform(0.0, 0.4)
            killer = asyncio.get_running_loop().call_at(
                deadline, process.send_signal, signal.SIGKILL
            )
            try:
                while True:
                    confirmed[nonce] = await pay(ledger, nonce)
                    nonce += 1
            except LedgerUnreachable:
                killer.cancel()
            await ledger.close()
    assert len(confirmed) > KILLS
    async with chain_process(store) as (_, url):
        ledger = await connected(url)
        head = await ledger.head()
        for number in range(head.number + 1):
            assert await ledger.block(number) is not None
        for sent in confirmed.values():
            assert await ledger.receipt(sent) is not None
        await ledger.close()


async def made_coin(ledger: RpcLedger, folder: Path) -> Contract:
    await ledger.fund(KEY.address)
    outbox = await Outbox.open(None, ledger, KEY, locks=folder)
    worker = asyncio.create_task(outbox.run())
    coin = artifact("stablecoin")
    receipt = await outbox.perform(Intent(None, coin.creation), 60)
    await stop(worker)
    await outbox.close()
    assert receipt.contract is not None
    return Contract(receipt.contract, coin.abi)


async def minted(ledger: RpcLedger, coin: Contract) -> int:
    data = await ledger.call(Call(coin.address, coin.encode("balanceOf", KEY.address)))
    return coin.decode("balanceOf", data)


async def killed_often(folder: Path, url: str, coin: Contract) -> int:
    """Run the payer to its end, killing it on the way; how often it was killed."""
    rng = random.Random(7)
    kills, said = 0, ""
    while not said.endswith(f"done {COUNT}\n"):
        payer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.settlement.ledger.payer"),
            *(str(folder), url, coin.address, str(COUNT)),
            stdout=PIPE,
        )
        assert payer.stdout is not None
        assert (await payer.stdout.readline()) == b"working\n"
        if kills < KILLS:
            await asyncio.sleep(rng.uniform(0.0, 0.12))
            if payer.returncode is None:
                payer.kill()
                kills += 1
        said = (await payer.stdout.read()).decode()
        await payer.wait()
    return kills


async def test_a_worker_that_dies_pays_everything_once(tmp_path: Path) -> None:
    async with chain_process(tmp_path / "chain.sqlite") as (_, url):
        ledger = await connected(url)
        coin = await made_coin(ledger, tmp_path)
        kills = await killed_often(tmp_path, url, coin)
        assert kills > KILLS // 4  # a fast machine is done sooner
        assert await minted(ledger, coin) == ALL
        assert await ledger.nonce(KEY.address) == COUNT + 1
        await ledger.close()


@pytest.mark.anvil
async def test_a_worker_that_dies_pays_everything_once_on_anvil(tmp_path: Path) -> None:
    async with Anvil("--block-time", "0.1") as process:
        ledger = await connected(process.url)
        coin = await made_coin(ledger, tmp_path)
        kills = await killed_often(tmp_path, process.url, coin)
        assert kills > KILLS // 4  # a fast machine is done sooner
        assert await minted(ledger, coin) == ALL
        await ledger.close()


async def test_a_worker_outlives_the_deaths_of_its_chain(tmp_path: Path) -> None:
    store = tmp_path / "chain.sqlite"
    rng = random.Random(8)
    async with chain_process(store) as (_, url):
        ledger = await connected(url)
        coin = await made_coin(ledger, tmp_path)
        await ledger.close()
    done, deaths = False, 0
    while not done:
        async with chain_process(store) as (process, url):
            payer = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.settlement.ledger.payer"),
                *(str(tmp_path), url, coin.address, str(COUNT)),
                stdout=PIPE,
            )
            assert payer.stdout is not None
            line = await payer.stdout.readline()
            if deaths < KILLS // 2 and line == b"working\n":
                await asyncio.sleep(rng.uniform(0.0, 0.3))
                process.kill()
                payer.kill()
                deaths += 1
            else:
                done = (await payer.stdout.read()).decode().endswith(f"done {COUNT}\n")
            await payer.wait()
    async with chain_process(store) as (_, url):
        ledger = await connected(url)
        assert await minted(ledger, coin) == ALL
        with pytest.raises(TransactionRefused):
            await pay(ledger, 0)
        await ledger.close()
