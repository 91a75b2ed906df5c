"""The same behaviour on every chain: the embedded one and anvil."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from unisono.errors import ConfigurationError, InsufficientFunds, TransactionRefused
from unisono.settlement.artifacts import artifact
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.delivery import OutboxSettings
from unisono.settlement.ledger.deploy import COIN, Plan, deploy
from unisono.settlement.ledger.deployment import (
    Deployed,
    Deployment,
    check_deployment,
    load_deployment,
)
from unisono.settlement.ledger.fees import GWEI, Fee
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Call, ChainReceipt, TxHash
from unisono.settlement.ledger.network import open_network
from unisono.settlement.ledger.outbox import Outbox, stop
from unisono.settlement.ledger.revert import Reverted
from unisono.settlement.ledger.rpc import RpcLedger
from unisono.settlement.ledger.transaction import signed_attempt
from unisono.settlement.signature import SettlementKey

SOON = 60.0


@pytest.fixture
def key() -> SettlementKey:
    return SettlementKey.generate()


@pytest.fixture
async def outbox(ledger: RpcLedger, key: SettlementKey, tmp_path: Path) -> AsyncGenerator[Outbox]:
    """A working outbox of an account that can pay."""
    await ledger.fund(key.address)
    box = await Outbox.open(
        tmp_path / "outbox.sqlite",
        ledger,
        key,
        settings=OutboxSettings(poll_seconds=0.05),
        locks=tmp_path,
    )
    worker = asyncio.create_task(box.run())
    yield box
    await stop(worker)
    await box.close()


async def made_coin(outbox: Outbox) -> tuple[Contract, ChainReceipt]:
    coin = artifact("stablecoin")
    receipt = await outbox.perform(Intent(None, coin.creation, purpose="the coin"), SOON)
    assert receipt.contract is not None
    return Contract(receipt.contract, coin.abi), receipt


async def test_a_contract_is_created_called_and_heard(
    ledger: RpcLedger, outbox: Outbox, key: SettlementKey
) -> None:
    coin, receipt = await made_coin(outbox)
    assert receipt.succeeded
    assert await ledger.code(coin.address)
    mint = Intent(coin.address, coin.encode("mint", key.address, 1_350_000), purpose="minting")
    minted = await outbox.perform(mint, SOON)
    data = await ledger.call(Call(coin.address, coin.encode("balanceOf", key.address)))
    assert coin.decode("balanceOf", data) == 1_350_000
    (log,) = await ledger.logs((coin.address,), 0, minted.block, coin.topic("Transfer"))
    assert log in minted.logs
    assert log.transaction == minted.transaction
    name, fields = coin.event(log) or ("", {})
    assert name == "Transfer"
    assert fields["receiver"] == key.address
    assert fields["value"] == 1_350_000
    assert await ledger.logs((coin.address,), receipt.block, receipt.block) == ()


async def test_a_revert_says_its_reason(ledger: RpcLedger, outbox: Outbox) -> None:
    coin, _ = await made_coin(outbox)
    stranger = SettlementKey.generate().address
    message = Call(coin.address, coin.encode("mint", stranger, 1), sender=stranger)
    with pytest.raises(Reverted, match="only the minter makes coins"):
        await ledger.call(message)
    with pytest.raises(Reverted, match="only the minter makes coins"):
        await ledger.estimate_gas(message)


async def test_an_intent_that_would_revert_is_refused_with_the_reason(
    ledger: RpcLedger, outbox: Outbox, key: SettlementKey
) -> None:
    coin, _ = await made_coin(outbox)
    before = await ledger.nonce(key.address)
    send = Intent(coin.address, coin.encode("transfer", coin.address, 5), purpose="a payment")
    with pytest.raises(TransactionRefused, match=r"a payment: .*refused"):
        await outbox.perform(send, SOON)
    assert await ledger.nonce(key.address) == before


async def test_many_intents_happen_once_each_and_in_order(
    ledger: RpcLedger, outbox: Outbox, key: SettlementKey
) -> None:
    coin, _ = await made_coin(outbox)
    names = [
        await outbox.submit(
            Intent(coin.address, coin.encode("mint", key.address, 10**n), purpose=f"coin {n}")
        )
        for n in range(8)
    ]
    receipts = [await outbox.final(name, SOON) for name in names]
    assert [r.block for r in receipts] == sorted(r.block for r in receipts)
    data = await ledger.call(Call(coin.address, coin.encode("balanceOf", key.address)))
    assert coin.decode("balanceOf", data) == 11_111_111


async def test_an_account_without_money_says_what_is_missing(
    ledger: RpcLedger, tmp_path: Path
) -> None:
    poor = SettlementKey.generate()
    box = await Outbox.open(None, ledger, poor, locks=tmp_path)
    worker = asyncio.create_task(box.run())
    pay = Intent(poor.address, purpose="a gift").paying(10**18)
    with pytest.raises(InsufficientFunds, match=r"balance of 0x.* 0\.00, needed .*a gift: send"):
        await box.perform(pay, SOON)
    await stop(worker)
    await box.close()


async def test_a_transaction_counts_on_its_own_chain_with_the_next_nonce_only(
    ledger: RpcLedger, key: SettlementKey
) -> None:
    await ledger.fund(key.address)
    chain = await ledger.chain_id()

    def raw(chain_id: int, nonce: int) -> bytes:
        fee = Fee(5 * GWEI, GWEI)
        intent = Intent(key.address)
        return signed_attempt(key, intent, chain_id=chain_id, nonce=nonce, gas=30_000, fee=fee).raw

    with pytest.raises(TransactionRefused):
        await ledger.send(raw(chain + 1, 0))
    sent = await ledger.send(raw(chain, 0))
    async with asyncio.timeout(SOON):  # anvil answers before its block is made
        while (receipt := await ledger.receipt(sent)) is None:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)
    assert receipt.gas_used == 21_000
    with pytest.raises(TransactionRefused):
        await ledger.send(raw(chain, 0))
    with pytest.raises(TransactionRefused):
        await ledger.send(b"\x02" + raw(chain, 1)[2:])
    assert await ledger.nonce(key.address) == 1
    assert await ledger.nonce(key.address, receipt.block - 1) == 0
    assert await ledger.receipt(TxHash("0x" + "ab" * 32)) is None


async def test_block_time_follows_the_clock(ledger: RpcLedger, outbox: Outbox) -> None:
    from unisono.clock import SystemClock

    await made_coin(outbox)
    head = await ledger.head()
    assert abs(head.timestamp - SystemClock().now()) < 30
    assert await ledger.block(head.number) == head
    assert await ledger.block(head.number + 10) is None


async def test_a_network_is_deployed_checked_and_recognized(
    ledger: RpcLedger, outbox: Outbox, key: SettlementKey, tmp_path: Path
) -> None:
    chosen = {name: artifact(name) for name in ("stablecoin", "registry", "channels")}
    plan = Plan(key.address, await ledger.nonce(key.address), artifacts=chosen)
    found = await deploy(outbox, ledger, plan)
    path = tmp_path / "network.json"
    path.write_bytes(found.encode())
    deployment = load_deployment(path)
    assert deployment == found
    await check_deployment(deployment, ledger)
    channels = Contract(deployment.address("channels"), chosen["channels"].abi)
    token = await ledger.call(Call(channels.address, channels.encode("token")))
    assert channels.decode("token", token) == deployment.address(COIN)

    network = await open_network(str(ledger._url), path)  # pyright: ignore
    assert network.contract("channels").address == channels.address
    assert network.outbox_settings().confirmations == 0
    await network.close()

    def changed(**contract: Deployed) -> Deployment:
        both = {**deployment.contracts, **contract}
        return Deployment(deployment.chain_id, 0, 0, both)

    other = deployment.contracts[COIN]
    with pytest.raises(ConfigurationError, match=r"'channels'.*is not the one"):
        await check_deployment(
            changed(channels=Deployed(other.address, deployment.contracts["registry"].code_hash)),
            ledger,
        )
    with pytest.raises(ConfigurationError, match="no contract at"):
        await check_deployment(changed(more=Deployed(key.address, other.code_hash)), ledger)
    path.write_bytes(Deployment(1, 0, 0, {}).encode())
    with pytest.raises(ConfigurationError, match="the chain that answers is"):
        await open_network(str(ledger._url), path)  # pyright: ignore
