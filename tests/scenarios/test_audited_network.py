"""A network of processes in which one node cheats: committees find it, and it gets no more work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from tests.conftest import TinyModels
from tests.gateway.running import until
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.local import LocalNode, start_node
from unisono.compose.node_settings import NodeSettings
from unisono.types import LayerRange, NodeId, PeerAddress
from unisono.verification.receipt import Receipt, from_json
from unisono.wire.verification_messages import MILLION

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

EPOCH = 2
HONEST = 5
PATIENCE = 90.0
"""Seconds, on a machine with other work too."""


class City:
    """Two gateways in this process, nodes in others."""

    def __init__(self, fronts: list[Front], clients: list[httpx.AsyncClient]) -> None:
        self.fronts, self.clients = fronts, clients
        self.crooked = NodeId("")
        self.receipts: list[str] = []

    async def ask(self, client: int, seed: int) -> NodeId:
        """Who computed an answer of one of the gateways."""
        model = self.fronts[client].model
        assert model is not None
        body = {
            "model": model.name,
            "prompt": "The quick brown fox",
            "seed": seed,
            "temperature": 1.0,
            "max_tokens": 8,
        }
        response = await self.clients[client].post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        name = response.headers["x-unisono-receipt"]
        if client == 0:
            self.receipts.append(name)
        return (await self.receipt(client, name)).hops[0].node

    async def receipt(self, client: int, name: str) -> Receipt:
        return from_json((await self.clients[client].get(f"/v1/receipts/{name}")).content)

    async def network(self, client: int) -> dict[str, Any]:
        return (await self.clients[client].get("/v1/network")).json()

    async def until_convicted(self, client: int, ask: bool) -> dict[str, Any]:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        seed = 1000
        while asyncio.get_running_loop().time() < deadline:
            if ask:
                await asyncio.gather(*(self.ask(client, seed + i) for i in range(8)))
                seed += 8
            seen = await self.network(client)
            if seen["convicted"]:
                return seen
            await asyncio.sleep(0.5)
        raise AssertionError(f"nobody was convicted; audits: {await self.audits()}")

    async def audits(self) -> list[Any]:
        return [(await self.receipt(0, name)).audits for name in self.receipts]


async def crooked(settings: NodeSettings) -> tuple[asyncio.subprocess.Process, PeerAddress]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.scenarios.crooked_node",
        msgspec.json.encode(settings).decode(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode().split()
    assert line[0] == "ready"
    return process, PeerAddress.parse(line[1])


def serving(front: Front) -> list[NodeId]:
    return [r.node for r in front.members.records() if r.model]


@asynccontextmanager
async def city(models: TinyModels) -> AsyncIterator[City]:
    model, cache = models.gemma.id, str(models.store.root)
    shared: dict[str, Any] = {"model": model, "transport": "tcp", "cache": cache}
    first = Front(FrontSettings(**shared, port=0, audit_rate=MILLION, epoch_seconds=EPOCH))
    fronts, nodes = [first], list[LocalNode]()
    clients: list[httpx.AsyncClient] = []
    cheat: asyncio.subprocess.Process | None = None
    try:
        door = await first.bind()
        settings = NodeSettings(
            **shared,
            join=str(door),
            layers=LayerRange(0, models.gemma.layer_count),
            kv_bytes=16 << 20,
            threads=1,
            epoch_seconds=EPOCH,
        )
        nodes += [start_node(settings) for _ in range(HONEST)]
        second = Front(
            FrontSettings(**shared, port=0, join=str(door), audit_rate=0, epoch_seconds=EPOCH)
        )
        fronts.append(second)
        await asyncio.gather(*(node.ready() for node in nodes))
        cheat, address = await crooked(settings)
        for front in fronts:
            server = await front.start()
            clients.append(httpx.AsyncClient(base_url=server.url, timeout=60))
        it = City(fronts, clients)
        it.crooked = address.node
        await until(lambda: all(len(serving(front)) > HONEST for front in fronts))
        yield it
    finally:
        for client in clients:
            await client.aclose()
        if cheat is not None:
            cheat.kill()
            await cheat.wait()
        await asyncio.gather(*(node.stop() for node in nodes))
        for front in reversed(fronts):
            await front.close()


async def test_a_node_with_other_weights_is_convicted_everywhere_and_gets_no_more_work(
    tiny_models: TinyModels,
) -> None:
    async with city(tiny_models) as it:
        seen = await it.until_convicted(0, ask=True)
        assert [c["node"] for c in seen["convicted"]] == [it.crooked]
        assert seen["convicted"][0]["fault"] == "rows_out"
        assert {n["node"] for n in seen["data"] if n["convicted"]} == {it.crooked}
        elsewhere = await it.until_convicted(1, ask=False)
        assert [c["node"] for c in elsewhere["convicted"]] == [it.crooked]
        for client in (0, 1):
            served = await asyncio.gather(*(it.ask(client, seed) for seed in range(12)))
            assert it.crooked not in served
        notes = [note for found in await it.audits() if found for note in found]
        assert {n.node for n in notes if n.verdict == "INVALID"} == {it.crooked}
        assert any(n.verdict == "VALID" and n.votes == 3 for n in notes)
        metrics = (await it.clients[0].get("/metrics")).text
        assert 'unisono_gateway_audits_total{verdict="INVALID"}' in metrics
        assert "unisono_gateway_convicted_nodes 1.0" in metrics
