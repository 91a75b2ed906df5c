"""`unisono wallet` and `unisono stake` on a chain, as an operator uses them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.cli.program import answered, unisono
from unisono.clock import SystemClock
from unisono.compose.chain_settings import ChainSettings
from unisono.compose.local_chain import ALLOWANCE, LocalChain
from unisono.compose.wallet import Wallet
from unisono.settlement.ledger.keys import Keystore
from unisono.settlement.signature import SettlementKey
from unisono.wire.identity import Identity

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PASSPHRASE = "open sesame"
PAID = 1_234_567


def test_coins_go_into_channels_and_stakes_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNISONO_TEST_KEY_STRENGTH", "2")
    monkeypatch.setenv("UNISONO_PASSPHRASE", PASSPHRASE)
    asyncio.run(_use(tmp_path))


async def _use(folder: Path) -> None:
    chain = LocalChain(folder / "chain")
    await chain.start()
    try:
        owner = (await asyncio.to_thread(answered, "keys", "new"))["address"]
        deploy = ("chain", "deploy", "--chain-rpc", chain.url, "--out", chain.deployment_file)
        done = await asyncio.to_thread(unisono, *deploy, "--term", "window=1")
        assert done.returncode == 0, done.stderr
        minter = Keystore(folder / "state" / "keystore", strength=2).unlock(owner, PASSPHRASE)
        key = folder / "node.key"
        identity = Identity.load_or_create(str(key))
        place = ("--chain-rpc", chain.url, "--deployment", chain.deployment_file)
        mine = (*place, "--key", key)
        facts = await asyncio.to_thread(answered, "wallet", "show", *mine)
        assert (facts["coins"], facts["channels"]) == (0, [])
        await chain.endow(minter, facts["account"])
        # as a gateway would, that works with this account
        payee = SettlementKey.generate().address
        state = str(folder / "state" / "money")
        settings = ChainSettings(chain.url, str(chain.deployment_file), state)
        wallet = await Wallet.open(settings, identity, SystemClock())
        await wallet.channels.deposit(payee, PAID)
        shown = await asyncio.to_thread(answered, "wallet", "show", *mine)
        assert shown["coins"] == ALLOWANCE - PAID
        (channel,) = shown["channels"]
        assert (channel["other"], channel["deposit"], channel["pays"]) == (payee, PAID, True)
        busy = await asyncio.to_thread(unisono, "wallet", "close", payee, *mine)
        assert busy.returncode == 1
        assert "another process works for" in busy.stderr
        await wallet.close()
        await asyncio.to_thread(_close, payee, mine)
        shown = await asyncio.to_thread(answered, "wallet", "show", *mine)
        assert shown["coins"] == ALLOWANCE
        await asyncio.to_thread(_send, owner, mine, place)
        await asyncio.to_thread(_stake, mine)
        await asyncio.to_thread(_bench, mine)
    finally:
        await chain.close()


def _close(payee: str, mine: tuple[str | Path, ...]) -> None:
    early = unisono("wallet", "finish", payee, *mine)
    assert "is not being closed" in early.stderr
    nobody = unisono("wallet", "close", "0x" + "0" * 40, *mine)
    assert nobody.returncode == 1
    assert "there is no channel" in nobody.stderr
    closing = unisono("wallet", "close", payee, *mine)
    assert closing.returncode == 0, closing.stderr
    assert "1.234567" in closing.stdout
    until = time.monotonic() + 40  # a second, by a clock that bursts of blocks run ahead of
    while "may redeem for" in (done := unisono("wallet", "finish", payee, *mine)).stderr:
        assert time.monotonic() < until
    assert done.returncode == 0, done.stderr
    assert "1.234567 came back" in done.stdout


def _send(owner: str, mine: tuple[str | Path, ...], place: tuple[str | Path, ...]) -> None:
    for _ in range(2):  # the same again is sent again
        assert unisono("wallet", "send", owner, "2.5", *mine).returncode == 0
    assert answered("wallet", "show", *place)["coins"] == 5_000_000
    more = unisono("wallet", "send", owner, "1000", *mine)
    assert more.returncode == 1
    assert "needed 1,000.00" in more.stderr


def _stake(mine: tuple[str | Path, ...]) -> None:
    assert answered("stake", "show", *mine)["registered"] is False
    for total in (5, 10):
        added = answered("stake", "add", "5", *mine)
        assert added["registered"]
        assert added["stake"] == added["counts"] == total * 1_000_000
    much = unisono("stake", "unbond", "11", *mine)
    assert much.returncode == 1
    assert "the stake is 10" in much.stderr
    assert "nothing is unbonded" in unisono("stake", "withdraw", *mine).stderr
    left = answered("stake", "unbond", "3", *mine)
    assert (left["stake"], left["leaving"]) == (7_000_000, 3_000_000)
    wait = unisono("stake", "withdraw", *mine)
    assert wait.returncode == 1
    assert "is free in" in wait.stderr
    poor = unisono("stake", "add", "5000", *mine)
    assert poor.returncode == 1
    assert "needed 5,000.00 for the stake" in poor.stderr
    assert answered("stake", "show", *mine)["stake"] == 7_000_000


def test_a_key_that_is_not_there_is_said(tmp_path: Path) -> None:
    place = ("--deployment", "none.json", "--key", tmp_path / "none.key")
    done = unisono("stake", "show", *place)
    assert done.returncode == 1
    assert "there is no key in" in done.stderr
    assert not (tmp_path / "none.key").exists()


def _bench(mine: tuple[str | Path, ...]) -> None:
    nobody = unisono("stake", "leave", *mine)
    assert nobody.returncode == 1
    assert "not enrolled" in nobody.stderr
    odd = unisono("stake", "bench", "30", *mine)
    assert odd.returncode == 1
    assert "a multiple of 50, at most 800; got 30" in odd.stderr
    place = {"deposit": 100_000_000, "weight": 2, "left": 0, "seated": 0}
    for amount in ("100", "50"):  # a place that is there stays as it is
        taken = answered("stake", "bench", amount, *mine)
        assert taken["bench"] == place
    assert taken["committee"] == {"credited": 0, "fined": 0}
    assert "100.000000 deposited, sits in 0" in unisono("stake", "show", *mine).stdout
    left = answered("stake", "leave", *mine)
    assert left["bench"] == {**place, "weight": 2, "left": left["bench"]["left"]}
    assert left["bench"]["left"] > 0
    early = unisono("stake", "release", *mine)
    assert early.returncode == 1
    assert "a draw may be under way" in early.stderr
