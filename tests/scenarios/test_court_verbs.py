"""A dispute on a chain from the command line: a network of real processes in which one node has a
wrong weight, and somebody who holds a receipt."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.conftest import TinyModels
from tests.scenarios.paid import PaidNetwork, Part, paid_network
from unisono.compose.chain_settings import ChainSettings
from unisono.compose.wallet import onlooker
from unisono.settlement.eip712 import parse_address
from unisono.settlement.ledger.deployment import load_deployment
from unisono.settlement.stakes import Registry, StakeRecord
from unisono.types import EvmAddress
from unisono.wire.identity import Identity

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MOVE_SECONDS = 60
BOND, PENALTY, STAKE = 10_000_000, 100_000_000, 150_000_000
HONEST, CROOKED = 0, 1
PASSPHRASE = "open sesame"


class Challenger:
    """Somebody with an account in a keystore, and the gateway's key."""

    def __init__(self, network: PaidNetwork, account: str, passphrase: Path) -> None:
        self.network, self.account = network, parse_address(account)
        self.money = [*network.place, "--account", account, "--passphrase-file", str(passphrase)]
        self.key = ["--key", str(network.folder / "gateway.key")]

    async def dispute(self, receipt: str, *more: str | Path, code: int) -> str:
        """`unisono dispute RECEIPT --on-chain`."""
        words = ("dispute", receipt, "--on-chain", *self.money, *more)
        return await self.network.run_verb(*words, code=code)

    async def outcome(self, receipt: str, *more: str | Path) -> dict[str, Any]:
        """The JSON of a game that ended."""
        return json.loads(await self.dispute(receipt, *self.key, *more, "--json", code=1))

    async def coins(self) -> int:
        """What is on the account."""
        return await coins_of(self.network, self.account)


async def coins_of(network: PaidNetwork, account: EvmAddress) -> int:
    """What an account has."""
    settings = ChainSettings(network.chain.url, str(network.chain.deployment_file))
    async with onlooker(settings, network.gateway.identity) as (_, _, channels):
        return await channels.balance(account)


async def stake_of(network: PaidNetwork, part: Part) -> StakeRecord:
    """What a node has staked."""
    file = network.chain.deployment_file
    settings = ChainSettings(network.chain.url, str(file))
    async with onlooker(settings, part.identity) as (operator, ledger, _):
        registry = Registry(ledger, load_deployment(file))
        return await registry.record(part.identity.node_id, operator)


async def receipt_of(network: PaidNetwork, prompt: str) -> str:
    """The URL of an answer's receipt."""
    client = OpenAI(base_url=f"{network.url}/v1", api_key="none", max_retries=0)

    def ask() -> str:
        create = client.completions.with_raw_response.create
        answer = create(model=network.model.name, prompt=prompt, max_tokens=6, seed=4)
        return str(answer.headers["x-unisono-receipt"])

    url = f"{network.url}/v1/receipts/{await asyncio.to_thread(ask)}"
    async with httpx.AsyncClient() as http:
        for _ in range(100):  # the claims come behind the answer
            if (await http.get(url)).status_code == 200:
                return url
            await asyncio.sleep(0.1)
    raise AssertionError("no receipt")


async def challenger_of(network: PaidNetwork) -> Challenger:
    """Somebody new, with coins."""
    passphrase = network.folder / "passphrase"
    passphrase.write_text(PASSPHRASE)
    passphrase.chmod(0o600)
    made = ("keys", "new", "--passphrase-file", passphrase, "--json")
    return Challenger(network, json.loads(await network.run_verb(*made))["address"], passphrase)


async def test_a_receipt_is_disputed_from_the_command_line(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    async with paid_network(
        tmp_path,
        tiny_models.gemma,
        tiny_models.store,
        stake=STAKE // 1_000_000,
        crooked=CROOKED,
        terms={"move_seconds": MOVE_SECONDS},
    ) as network:
        url = await receipt_of(network, "The sea is")
        challenger = await challenger_of(network)
        await _refused(network, challenger, url)
        await network.chain.endow(network.minter, challenger.account)
        await _guilty(network, challenger, url)
        await _honest(network, challenger, url)
        await _interrupted(network, challenger)


async def _refused(network: PaidNetwork, challenger: Challenger, url: str) -> None:
    """Nothing is begun, and one line says why."""
    folder, key = network.folder, challenger.key
    stranger = folder / "stranger.key"
    Identity.load_or_create(str(stranger))
    wrong = folder / "wrong"
    wrong.write_text("not it")
    wrong.chmod(0o600)
    (folder / "bad.json").write_text("{}")
    for words, said in (
        ((f"{url}0", *key), "There is no receipt"),
        ((url, *key), "0.00, needed 10.00 for the bond of a challenge"),
        ((url, "--key", folder / "none.key"), "there is no key in"),
        ((url, "--key", stranger, "--claim", "new.json"), "give that gateway's key with --key"),
        ((url, *key, "--passphrase-file", wrong), "the passphrase does not open"),
        ((url, *key, "--claim", "bad.json"), "holds no claim for a chain"),
    ):
        answer = await challenger.dispute(*map(str, words), code=2)
        assert answer.startswith("error: ")
        assert answer.count("\n") == 1
        assert said in answer, answer
    busy = ("dispute", url, "--on-chain", *network.place, *key)
    assert "account of its own (--account)" in await network.run_verb(*busy, code=2)


async def _guilty(network: PaidNetwork, challenger: Challenger, url: str) -> None:
    """The wrong weight costs its node the penalty, to the unit."""
    payer = network.account(network.gateway)
    before = await challenger.coins(), await coins_of(network, payer)
    claim = network.folder / "of-the-payer.json"
    told = await challenger.outcome(url, "--payer", payer, "--claim", claim)
    assert told["challenger_won"]
    assert (told["amount"], told["was_over"]) == (PENALTY, False)
    assert (told["collected"], told["refunded"]) == (BOND + PENALTY // 2, PENALTY * 3 // 10)
    assert await challenger.coins() == before[0] + PENALTY // 2
    assert await coins_of(network, payer) == before[1] + PENALTY * 3 // 10
    assert (await stake_of(network, network.nodes[CROOKED])).stake == STAKE - PENALTY
    again = await challenger.outcome(url, "--claim", claim)
    assert (again["was_over"], again["collected"], again["game"]) == (True, 0, told["game"])
    other = await challenger_of(network)
    await network.chain.endow(network.minter, other.account)
    assert "convicted of this claim already" in await other.dispute(url, "--claim", claim, code=2)


async def _honest(network: PaidNetwork, challenger: Challenger, url: str) -> None:
    """A false challenge costs the bond, of which the node gets its half by itself."""
    node = network.nodes[HONEST]
    operator = network.account(node)
    had, earned = await challenger.coins(), await coins_of(network, operator)
    told = await challenger.dispute(url, *challenger.key, "--hop", str(HONEST), code=1)
    assert "LOST: the bond of 10.000000 is gone; the node was right" in told
    assert await challenger.coins() == had - BOND
    assert (await stake_of(network, node)).stake == STAKE
    for _ in range(200):
        if await coins_of(network, operator) == earned + BOND // 2:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(network.log(node))


async def _interrupted(network: PaidNetwork, challenger: Challenger) -> None:
    """A challenger that is killed goes on with the same command."""
    url = await receipt_of(network, "Once upon a time")
    had = await challenger.coins()
    words = ("dispute", url, "--on-chain", *challenger.money, *challenger.key, "--hop", str(HONEST))
    process = await network.start_verb(*words)
    while not (await stake_of(network, network.nodes[HONEST])).locked:
        assert process.returncode is None
        await asyncio.sleep(0.1)
    process.kill()
    await process.communicate()
    assert await challenger.coins() == had - BOND
    told = await challenger.outcome(url, "--hop", str(HONEST))
    assert (told["challenger_won"], told["was_over"]) == (False, False)
    assert await challenger.coins() == had - BOND
