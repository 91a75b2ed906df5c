"""Real vouchers on a real chain: the embedded one in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.conftest import TinyModels
from tests.scenarios.network import TinyNetwork, request_for
from tests.scenarios.test_payments import IN, OUT, PaidWorker, price
from unisono.clock import SystemClock
from unisono.compose.chain_settings import ChainSettings, SellerSettings
from unisono.compose.local_chain import ALLOWANCE, LocalChain
from unisono.compose.wallet import Wallet, settlement_key
from unisono.errors import ConfigurationError, KeyRefused
from unisono.routing.swarm import Swarm
from unisono.settlement.artifacts import artifact
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.deploy import COIN
from unisono.settlement.ledger.keys import Keystore
from unisono.settlement.ledger.ledger import Call
from unisono.settlement.ledger.rpc import connected
from unisono.settlement.payments.till import Till
from unisono.types import LayerRange
from unisono.wire.identity import Identity

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Locks of accounts are not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNISONO_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    made = LocalChain(tmp_path_factory.mktemp("chain"))
    await made.start()
    try:
        await made.deploy(settlement_key(ChainSettings("", ""), PAYER))
        yield made
    finally:
        await made.close()


PAYER = Identity.from_seed(b"\x07" * 32)


def settings(chain: LocalChain, folder: Path | None = None, **more: Any) -> ChainSettings:
    state = None if folder is None else str(folder)
    return ChainSettings(chain.url, str(chain.deployment_file), state, **more)


async def held(wallet: Wallet, owner: str) -> int:
    coin = Contract(wallet.deployment.address(COIN), artifact(COIN).abi)
    data = await wallet.ledger.call(Call(coin.address, coin.encode("balanceOf", owner)))
    return coin.decode("balanceOf", data)


@pytest.mark.asyncio(loop_scope="module")
async def test_answers_are_paid_on_a_chain_to_the_last_unit(
    chain: LocalChain, tiny_models: TinyModels, tmp_path: Path
) -> None:
    model, clock = tiny_models.llama, SystemClock()
    async with AsyncExitStack() as stack:
        payer = await Wallet.open(settings(chain, tmp_path / "payer"), PAYER, clock)
        stack.push_async_callback(payer.close)
        await chain.endow(payer.key, payer.key.address)
        assert await held(payer, payer.key.address) == ALLOWANCE
        network = TinyNetwork(model)
        await network.transport.bind()
        stack.push_async_callback(network.close)
        purse = payer.purse(50_000)
        network.swarm = Swarm(
            network.transport,
            network.gateway.node_id,
            network.members,
            {model.id: model.layer_count},
            clock,
            purse=purse,
        )
        half = model.layer_count // 2
        tills: list[Till] = []
        for number, (start, stop) in enumerate(((0, half), (half, model.layer_count))):
            folder = tmp_path / f"node-{number}"
            wallet = await Wallet.open(settings(chain, folder), Identity.generate(), clock)
            stack.push_async_callback(wallet.close)
            till = wallet.till(SellerSettings(IN, OUT, window=4), model.layer_count)
            tills.append(till)

            class Kind(PaidWorker):
                def __init__(self, *arguments: Any, **more: Any) -> None:
                    super().__init__(*arguments, till=tills[-1], **more)
                    self.till = tills[-1]

            await network.add(LayerRange(start, stop), worker=Kind)
        requests = [request_for(model, max_tokens=5 + i) for i in range(8)]
        for request in requests:
            answered = await network.answer(request)
            assert len(answered.tokens) == request.max_tokens
        paid = 0
        for till, layers in zip(tills, (half, model.layer_count - half), strict=True):
            due = sum(price(model, layers, len(r.prompt), r.max_tokens) for r in requests)
            account = purse._payees[till.terms.payee].account
            assert account.charged == due
            assert await till.redeem() == account.promised
            assert await held(payer, till.terms.payee) == account.promised
            assert await till.redeem() == 0
            paid += account.promised
        locked = await held(payer, payer.channels.domain.contract)
        left = await held(payer, payer.key.address)
        assert locked + left + paid == ALLOWANCE
        assert locked == 2 * 50_000 - paid


@pytest.mark.asyncio(loop_scope="module")
async def test_a_killed_chain_comes_back_with_all_it_confirmed(
    chain: LocalChain, tmp_path: Path
) -> None:
    payer = await Wallet.open(settings(chain, tmp_path / "a"), PAYER, SystemClock())
    try:
        await chain.endow(payer.key, payer.key.address)
        payee = settlement_key(settings(chain), Identity.generate()).address
        for number in range(1, 6):
            before = chain.pid
            assert before is not None
            await payer.channels.deposit(payee, 1000)
            os.kill(before, signal.SIGKILL)
            await (await connected(chain.url, wait_seconds=30)).close()
            state = await payer.channels.state(payer.key.address, payee)
            assert state.deposit == 1000 * number
            assert chain.pid != before
    finally:
        await payer.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_what_does_not_fit_is_said(chain: LocalChain, tmp_path: Path) -> None:
    clock = SystemClock()
    wrong = tmp_path / "none.json"
    with pytest.raises(ConfigurationError, match=r"none\.json"):
        await Wallet.open(ChainSettings(chain.url, str(wrong)), PAYER, clock)
    wrong.write_bytes(chain.deployment_file.read_bytes().replace(b'"chain_id": ', b'"chain_id": 1'))
    with pytest.raises(ConfigurationError, match="is on chain 1"):
        await Wallet.open(ChainSettings(chain.url, str(wrong)), PAYER, clock)
    empty = settings(chain, keystore=str(tmp_path / "keys"))
    with pytest.raises(KeyRefused, match="unisono keys new"):
        await Wallet.open(empty, PAYER, clock)
    Keystore(tmp_path / "keys", strength=2).new("words")
    with pytest.raises(ConfigurationError, match="passphrase"):
        await Wallet.open(empty, PAYER, clock)
    with pytest.raises(ConfigurationError, match="another process works"):
        await _twice(chain, tmp_path / "c")


async def _twice(chain: LocalChain, folder: Path) -> None:
    first = await Wallet.open(settings(chain, folder), PAYER, SystemClock())
    try:
        await Wallet.open(settings(chain, folder), PAYER, SystemClock())
    finally:
        await first.close()


async def test_the_chain_ends_with_whoever_started_it(tmp_path: Path) -> None:
    program = f"""
import asyncio
from pathlib import Path
from unisono.compose.local_chain import LocalChain
async def main():
    chain = LocalChain(Path({str(tmp_path)!r}))
    await chain.start()
    print(chain.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    chain_pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    for _ in range(200):
        try:
            os.kill(chain_pid, 0)
        except ProcessLookupError:
            return
        stat = Path(f"/proc/{chain_pid}/stat")
        if stat.exists() and stat.read_text().split()[2] == "Z":
            return  # ended, and waits for init
        await asyncio.sleep(0.05)
    raise AssertionError("the chain outlives its parent")
