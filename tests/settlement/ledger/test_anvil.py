"""What only a chain with a pool and reorganisations shows."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from unisono.settlement.artifacts import artifact
from unisono.settlement.ledger.anvil import Anvil
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.delivery import OutboxSettings
from unisono.settlement.ledger.fees import GWEI, FeeRule
from unisono.settlement.ledger.intents import Intent, State
from unisono.settlement.ledger.ledger import Call
from unisono.settlement.ledger.outbox import Outbox
from unisono.settlement.ledger.rpc import RpcLedger
from unisono.settlement.signature import SettlementKey

pytestmark = pytest.mark.anvil
KEY = SettlementKey(b"\x21" * 32)


@pytest.fixture
async def chain() -> AsyncGenerator[RpcLedger]:
    """An anvil that makes blocks only when it is told to."""
    async with Anvil("--no-mining") as process:
        ledger = RpcLedger(process.url)
        await ledger.fund(KEY.address)
        yield ledger
        await ledger.close()


async def opened(chain: RpcLedger, folder: Path, fees: FeeRule | None = None) -> Outbox:
    settings = OutboxSettings(confirmations=2, fees=fees or FeeRule())
    return await Outbox.open(folder / "o.sqlite", chain, KEY, settings=settings, locks=folder)


async def mine(chain: RpcLedger, count: int = 1) -> None:
    await chain.ask("anvil_mine", hex(count))


async def made_coin(chain: RpcLedger, outbox: Outbox) -> Contract:
    coin = artifact("stablecoin")
    name = await outbox.submit(Intent(None, coin.creation))
    await outbox.step()
    await mine(chain, 3)
    await outbox.step()
    contract = (await outbox.final(name, 10)).contract
    assert contract is not None
    return Contract(contract, coin.abi)


async def balance(chain: RpcLedger, coin: Contract) -> int:
    data = await chain.call(Call(coin.address, coin.encode("balanceOf", KEY.address)))
    return coin.decode("balanceOf", data)


async def test_after_a_reorganisation_everything_is_sent_again_and_happens_once(
    chain: RpcLedger, tmp_path: Path
) -> None:
    outbox = await opened(chain, tmp_path)
    coin = await made_coin(chain, outbox)
    names = [
        await outbox.submit(Intent(coin.address, coin.encode("mint", KEY.address, 10**n)))
        for n in range(3)
    ]
    await outbox.step()
    await mine(chain)
    await outbox.step()
    assert [(await outbox.entry(n)).state for n in names] == [State.mined] * 3
    assert await balance(chain, coin) == 111
    lost = (await outbox.entry(names[0])).receipt
    await chain.ask("anvil_reorg", 1, [])
    assert await balance(chain, coin) == 0
    await outbox.step()
    assert [(await outbox.entry(n)).state for n in names] == [State.sent] * 3
    await mine(chain, 3)
    await outbox.step()
    assert [(await outbox.entry(n)).state for n in names] == [State.final] * 3
    assert await balance(chain, coin) == 111
    now = (await outbox.entry(names[0])).receipt
    assert lost is not None
    assert now is not None
    assert lost.block_hash != now.block_hash
    await outbox.close()


async def test_a_restart_between_reorganisation_and_block_changes_nothing(
    chain: RpcLedger, tmp_path: Path
) -> None:
    outbox = await opened(chain, tmp_path)
    coin = await made_coin(chain, outbox)
    name = await outbox.submit(Intent(coin.address, coin.encode("mint", KEY.address, 7)))
    await outbox.step()
    await mine(chain)
    await outbox.step()
    await outbox.close()
    await chain.ask("anvil_reorg", 1, [])
    again = await opened(chain, tmp_path)
    await again.step()
    await mine(chain, 3)
    await again.step()
    assert (await again.final(name, 10)).succeeded
    assert await balance(chain, coin) == 7
    await again.close()


async def test_a_stuck_transaction_is_replaced_by_a_dearer_one(
    chain: RpcLedger, tmp_path: Path
) -> None:
    outbox = await opened(chain, tmp_path, FeeRule(wait_seconds=0.0))
    coin = await made_coin(chain, outbox)
    name = await outbox.submit(Intent(coin.address, coin.encode("mint", KEY.address, 7)))
    await outbox.step()
    (first,) = (await outbox.entry(name)).attempts
    await chain.ask("anvil_setNextBlockBaseFeePerGas", hex(first.fee.most + GWEI))
    await mine(chain)  # without it: the base fee is above its offer
    await outbox.step()
    attempts = (await outbox.entry(name)).attempts
    assert attempts[0] == first
    assert len(attempts) == 2
    await mine(chain, 3)
    await outbox.step()
    receipt = await outbox.final(name, 10)
    assert receipt.transaction == attempts[1].hash
    assert await balance(chain, coin) == 7
    await outbox.close()


async def test_a_transaction_that_the_pool_forgot_is_sent_again(
    chain: RpcLedger, tmp_path: Path
) -> None:
    outbox = await opened(chain, tmp_path, FeeRule(wait_seconds=0.0, bumps=0))
    coin = await made_coin(chain, outbox)
    name = await outbox.submit(Intent(coin.address, coin.encode("mint", KEY.address, 7)))
    await outbox.step()
    await chain.ask("anvil_dropTransaction", (await outbox.entry(name)).attempts[0].hash)
    await outbox.step()
    await mine(chain, 3)
    await outbox.step()
    assert (await outbox.final(name, 10)).succeeded
    assert await balance(chain, coin) == 7
    await outbox.close()
