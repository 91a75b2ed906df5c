"""Money among real processes: to the last unit, and whatever is killed."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from tests.conftest import TinyModels
from tests.scenarios.paid import PaidNetwork, Part, Totals, paid_network
from unisono.compose.local_chain import ALLOWANCE
from unisono.types import EvmAddress
from unisono.verification.receipt import from_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("UNISONO_KILLS", "12"))
REQUESTS = 100
LONG = 240


async def settled(network: PaidNetwork) -> Totals:
    """All processes but the chain ended in order; the nodes have redeemed."""
    for node in network.nodes:
        await network.stop(node)
    await network.stop(network.gateway)
    return await network.totals()


def conserved(network: PaidNetwork, totals: Totals) -> dict[EvmAddress, int]:
    """No unit was lost or made, and none paid twice; returns what each payee was promised."""
    assert totals.minted == ALLOWANCE == totals.everywhere
    promised = {p.payee: a.promised for p, a in network.books(network.gateway, "payer").items()}
    for node in network.nodes:
        payee = network.account(node)
        paid = totals.redeemed.get(payee, [])
        assert all(amount > 0 for amount in paid)
        assert sum(paid) == totals.payees[payee] <= promised[payee]
        (account,) = network.books(node, "payee").values()
        # its last voucher is paid in full, and none that the payer did not sign
        assert totals.payees[payee] == account.promised
        assert account.charged <= account.promised
    return promised


async def test_a_hundred_paid_requests_add_up_to_the_last_unit(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    async with paid_network(tmp_path, tiny_models.gemma, tiny_models.store) as network:
        client = OpenAI(base_url=f"{network.url}/v1", api_key="none", max_retries=0)

        def ask(number: int) -> str:
            answer = client.completions.with_raw_response.create(
                model=network.model.name,
                prompt="The sea is " + "very " * (number % 7),
                max_tokens=1 + number % 23,
                seed=number,
            )
            return str(answer.headers["x-unisono-receipt"])

        names: list[str] = []
        for first in range(0, REQUESTS, 4):
            several = range(first, min(first + 4, REQUESTS))
            names += await asyncio.gather(*(asyncio.to_thread(ask, n) for n in several))
        due = dict.fromkeys(range(len(network.nodes)), 0)
        async with httpx.AsyncClient(base_url=network.url) as http:
            for name in names:
                receipt = from_json((await http.get(f"/v1/receipts/{name}")).content)
                assert receipt.attempts == 1
                for number, claim in enumerate(receipt.hops):
                    assert claim.node == network.nodes[number].identity.node_id
                    tokens = len(receipt.tokens)
                    due[number] += network.price(number, len(receipt.request.prompt), tokens)
        for _ in range(100):
            told = (await network.payments())["channels"]
            if not any(channel["reserved"] for channel in told):
                break
            await asyncio.sleep(0.05)
        charged = {channel["payee"]: channel["charged"] for channel in told}
        assert charged == {network.account(n): due[i] for i, n in enumerate(network.nodes)}
        totals = await settled(network)
        conserved(network, totals)
        for place, account in network.books(network.gateway, "payer").items():
            assert account.charged == charged[place.payee]
            assert totals.payees[place.payee] == account.promised


async def test_nothing_is_lost_or_paid_twice_whatever_is_killed(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    draw = random.Random(int(os.environ.get("UNISONO_SEED", "1")))
    async with paid_network(tmp_path, tiny_models.gemma, tiny_models.store) as network:
        prompt = list(range(5, 45))
        delivered: list[int] = [await network.stream(prompt, LONG)]
        assert delivered == [LONG]
        victims: list[Part | None] = [network.gateway, *network.nodes, None]
        broken = 0
        for number in range(KILLS):
            victim = victims[number % len(victims)]
            answering = asyncio.create_task(network.stream(prompt, LONG))
            await asyncio.sleep(draw.uniform(0.0, 1.2))
            await network.kill(victim)
            delivered.append(await answering)
            broken += delivered[-1] < LONG
            if victim is not None:
                await network.launch(victim)
            await network.ready()
        delivered.append(await network.stream(prompt, LONG))
        assert delivered[-1] == LONG
        totals = await settled(network)
        conserved(network, totals)
        worst = 0
        for number, node in enumerate(network.nodes):
            payee = network.account(node)
            books = network.books(network.gateway, "payer").items()
            (charged,) = (a.charged for p, a in books if p.payee == payee)
            got = sum(network.price(number, len(prompt), n) for n in delivered if n)
            nothing = sum(1 for n in delivered if not n)
            window = network.price(number, 0, network.window)
            # of an answer of which nothing came, the prompt may be read and paid as well
            bound = broken * window + nothing * network.price(number, len(prompt), 0)
            assert got <= charged + broken
            assert charged - got <= bound, (delivered, charged, got)
            worst = max(worst, charged - got)
        print(f"{KILLS} kills, {broken} answers cut short, at most {worst} units lost per hop")


async def test_a_gateway_goes_by_the_registry_about_stakes(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    async with paid_network(tmp_path, tiny_models.gemma, tiny_models.store, stake=4) as network:
        totals = await network.totals()
        assert set(totals.payees.values()) == {ALLOWANCE - 4_000_000}
        await network.kill(network.gateway)
        for least, status in ((4, 200), (5, 402)):
            await network.launch(network.gateway, "--least-stake", str(least))
            await network.ready()
            body = {"model": network.model.name, "prompt": [7, 8, 9], "max_tokens": 4}
            async with httpx.AsyncClient(base_url=network.url, timeout=30) as http:
                for _ in range(50):  # until the stakes are read
                    answer = await http.post("/v1/completions", json=body)
                    if answer.status_code == status:
                        break
                    await asyncio.sleep(0.1)
            assert answer.status_code == status, answer.text
            await network.kill(network.gateway)
        assert answer.json()["error"]["code"] == "offer_missing"
        assert "a stake of 5.00 per hop" in answer.json()["error"]["message"]
