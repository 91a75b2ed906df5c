"""Whole members with a tiny model, on virtual time: what is audited, found, and told to all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.conftest import TinyModels
from unisono.clock import VirtualClock
from unisono.compose.crooked import crooked_block
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.node import Node
from unisono.compose.node_settings import NodeSettings
from unisono.types import LayerRange, NodeId
from unisono.verification.audit_note import AuditNote
from unisono.verification.receipt import from_json
from unisono.wire.identity import Identity
from unisono.wire.transports.memory import MemoryNetwork
from unisono.wire.verification_messages import MILLION

EPOCH = 20
BLOCKS = (LayerRange(0, 3), LayerRange(3, 6))
STEP = 0.25
PATIENCE = 60.0
"""Real seconds."""


class Village:
    """Gateways and nodes of one network, and its time."""

    def __init__(self, models: TinyModels) -> None:
        self.clock = VirtualClock()
        self.hub = MemoryNetwork(self.clock)
        self.models = models
        self.fronts: list[Front] = []
        self.clients: list[httpx.AsyncClient] = []
        self.nodes: list[Node] = []
        self.running: list[asyncio.Task[None]] = []
        self.receipts: list[str] = []

    @property
    def door(self) -> str:
        return str(self.fronts[0].address)

    async def front(self, **settings: Any) -> Front:
        identity = Identity.generate()
        front = Front(
            FrontSettings(
                model=self.models.gemma.id,
                cache=str(self.models.store.root),
                port=0,
                epoch_seconds=EPOCH,
                join=self.door if self.fronts else None,
                **settings,
            ),
            transport=self.hub.transport(identity),
            identity=identity,
            clock=self.clock,
        )
        self.fronts.append(front)
        server = await self.passing(front.start())
        self.clients.append(httpx.AsyncClient(base_url=server.url, timeout=60))
        return front

    async def node(self, layers: LayerRange, crooked: bool = False) -> Node:
        identity = Identity.generate()
        options: dict[str, Any] = {"weights": crooked_block} if crooked else {}
        node = Node(
            NodeSettings(
                model=self.models.gemma.id,
                join=self.door,
                cache=str(self.models.store.root),
                kv_bytes=16 << 20,
                threads=1,
                layers=layers,
                epoch_seconds=EPOCH,
            ),
            transport=self.hub.transport(identity),
            identity=identity,
            clock=self.clock,
            **options,
        )
        self.nodes.append(node)
        await self.passing(node.start())
        self.running.append(asyncio.create_task(node.run()))
        return node

    async def passing(self, work: Any) -> Any:
        """The result of `work`; time passes while nobody computes."""
        task = asyncio.ensure_future(work)
        while not (await asyncio.wait({task}, timeout=0.002))[0]:
            await self.tick()
        return task.result()

    async def tick(self) -> None:
        engines = [n._engine for n in self.nodes if n._engine is not None]
        if not any(engine.queued for engine in engines):
            await self.clock.advance(STEP)

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, "it does not happen"
            await asyncio.sleep(0.001)
            await self.tick()

    async def ask(self, seed: int = 1, client: int = 0) -> str:
        """The receipt's id of one answer."""
        body = {
            "model": self.models.gemma.name,
            "prompt": "The quick brown fox",
            "seed": seed,
            "temperature": 1.0,
            "max_tokens": 8,
        }
        response = await self.passing(self.clients[client].post("/v1/completions", json=body))
        assert response.status_code == 200, response.text
        return response.headers["x-unisono-receipt"]

    async def notes(self, receipt: str) -> list[AuditNote]:
        answer = await self.passing(self.clients[0].get(f"/v1/receipts/{receipt}"))
        found = from_json(answer.content)
        assert found.signature_is_good()
        return list(found.audits) if found.audits else []

    async def hops(self, receipt: str, client: int = 0) -> list[NodeId]:
        answer = await self.passing(self.clients[client].get(f"/v1/receipts/{receipt}"))
        return [claim.node for claim in from_json(answer.content).hops]

    def audited(self) -> int:
        metrics = self.fronts[0].metrics
        return int(
            sum(metrics.audits.labels(v)._value.get() for v in ("VALID", "INVALID", "INCONCLUSIVE"))
        )


@asynccontextmanager
async def village(models: TinyModels, rate: int = MILLION) -> AsyncIterator[Village]:
    it = Village(models)
    try:
        await it.front(audit_rate=rate)
        yield it
    finally:
        for client in it.clients:
            await client.aclose()
        for task in it.running:
            task.cancel()
        for member in (*it.nodes, *it.fronts):
            await it.passing(member.close())


def convicted(member: Node | Front) -> set[NodeId]:
    return {c.node for c in member.herald.bulletin.convicted}


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
async def test_a_hop_that_cheats_is_named_and_everybody_knows(
    tiny_models: TinyModels, place: int
) -> None:
    async with village(tiny_models) as it:
        for index, layers in enumerate(BLOCKS):
            for number in range(4):
                await it.node(layers, crooked=number == 0 and index == place)
        cheat = it.nodes[4 * place].identity.node_id
        await it.until(lambda: len(it.fronts[0].members.records()) == 8)
        asked: dict[str, list[NodeId]] = {}
        while not any(cheat in hops for hops in asked.values()):
            some = await asyncio.gather(*(it.ask(len(asked) + i) for i in range(6)))
            asked.update({name: await it.hops(name) for name in some})
        total = 2 * len(asked)
        await it.until(lambda: it.audited() == total)
        for name, hops in asked.items():
            notes = await it.notes(name)
            expected = ["INVALID" if node == cheat else "VALID" for node in hops]
            assert [(n.hop, n.node, n.verdict) for n in notes] == [
                (hop, node, expected[hop]) for hop, node in enumerate(hops)
            ]
        for member in (*it.fronts, *it.nodes):
            await it.until(lambda member=member: convicted(member) == {cheat})
        # one that comes later learns of it from the others
        late = await it.front(audit_rate=0)
        await it.until(lambda: convicted(late) == {cheat})
        for client in (0, 1):
            for seed in range(4):
                hops = await it.hops(await it.ask(seed, client), client)
                assert cheat not in hops


async def test_honest_answers_are_valid_and_nobody_is_blamed(tiny_models: TinyModels) -> None:
    whole = LayerRange(0, 6)
    async with village(tiny_models) as it:
        for _ in range(5):
            await it.node(whole)
        await it.until(lambda: len(it.fronts[0].members.records()) == 5)
        names = await asyncio.gather(*(it.ask(seed) for seed in range(6)))
        await it.until(lambda: it.audited() == len(names))
        for name in names:
            (note,) = await it.notes(name)
            assert (note.verdict, note.seats, note.votes) == ("VALID", 3, 3)
            assert note.node not in note.members
        assert all(convicted(m) == set() for m in (*it.fronts, *it.nodes))


async def test_without_enough_holders_there_is_no_committee(tiny_models: TinyModels) -> None:
    async with village(tiny_models) as it:
        for _ in range(3):
            await it.node(LayerRange(0, 6))
        await it.until(lambda: len(it.fronts[0].members.records()) == 3)
        name = await it.ask()
        await it.until(lambda: it.audited() == 1)
        (note,) = await it.notes(name)
        assert note.verdict == "INCONCLUSIVE"
        assert "no committee" in note.message


async def test_a_gateway_that_audits_nothing_asks_nobody(tiny_models: TinyModels) -> None:
    async with village(tiny_models, rate=0) as it:
        for _ in range(4):
            await it.node(LayerRange(0, 6))
        await it.until(lambda: len(it.fronts[0].members.records()) == 4)
        name = await it.ask()
        began = it.clock.now()
        await it.until(lambda: it.clock.now() > began + 6 * EPOCH)
        assert it.audited() == 0
        assert await it.notes(name) == []
