"""Nodes in processes of their own on real sockets, and one of them killed with kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import TinyModels
from tests.gateway.running import until
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.local import LocalNode, start_node
from unisono.compose.node_settings import NodeSettings
from unisono.compose.offer import model_facts
from unisono.errors import ConfigurationError
from unisono.models.store import ModelStore
from unisono.routing.placement import even_blocks
from unisono.types import LayerRange, NodeId
from unisono.verification.receipt import Receipt, from_json
from unisono.verification.replay import verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TRANSPORTS = ["tcp", "iroh"]
BLOCKS = even_blocks(6, 3)
ASKED = {"prompt": "The quick brown fox", "seed": 21, "temperature": 1.0}
LONG = 400
"""Tokens of an answer that is still running when a node is killed."""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Network:
    """A gateway in this process, nodes in others, and a client."""

    def __init__(self, front: Front, nodes: list[LocalNode], http: httpx.AsyncClient) -> None:
        self.front, self.nodes, self.http = front, nodes, http

    @property
    def name(self) -> str:
        assert self.front.model is not None
        return self.front.model.name

    async def ask(self, **fields: Any) -> httpx.Response:
        body = {"model": self.name, **ASKED, **fields}
        return await self.http.post("/v1/completions", json=body)

    async def stream(
        self, victim: int | None, after: int, **fields: Any
    ) -> list[dict[str, Any] | str]:
        """The events of an answer; when there are `after`, hop `victim` is killed."""
        body = {"model": self.name, **ASKED, **fields, "stream": True}
        events: list[dict[str, Any] | str] = []
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                data = line.removeprefix("data: ")
                events.append(data if data == "[DONE]" else json.loads(data))
                if len(events) == after and victim is not None:
                    self.kill(victim)
        return events

    def hop(self, index: int) -> NodeId:
        """The node that serves one hop of the running answer."""
        assert self.front.swarm is not None
        (answer,) = self.front.swarm._answers
        assert answer.chain is not None
        return answer.chain.hops[index].node

    def kill(self, index: int) -> None:
        """SIGKILL the node that serves a hop of the running answer."""
        wanted = self.hop(index)
        (node,) = [n for n in self.nodes if n.address is not None and n.address.node == wanted]
        node.kill()

    async def receipt(self, name: str) -> Receipt:
        return from_json((await self.http.get(f"/v1/receipts/{name}")).content)

    async def becomes_unready(self) -> bool:
        """Whether the gateway says within two seconds that it cannot answer."""
        for _ in range(20):
            if (await self.http.get("/readyz")).status_code == 503:
                return True
            await asyncio.sleep(0.1)
        return False

    async def idle(self) -> bool:
        """Whether all live nodes say, within some seconds, that they hold no session."""
        assert self.front.swarm is not None
        for _ in range(100):
            if all(s.sessions == 0 for s in self.front.swarm.nodes() if s.alive):
                return True
            await asyncio.sleep(0.1)
        return False


@asynccontextmanager
async def processes(
    store: ModelStore, model: str, transport: str, blocks: list[LayerRange | None]
) -> AsyncIterator[Network]:
    """One node process per block, announced, behind a gateway; none is left afterwards."""
    cache = str(store.root)
    # without guesses: nodes that have given an answer before give it again in one go, and are done
    # before anything can be killed in its middle
    front = Front(FrontSettings(model=model, port=0, transport=transport, cache=cache, draft=False))
    nodes: list[LocalNode] = []
    try:
        address = str(await front.bind())
        for layers in blocks:
            settings = NodeSettings(
                model=model, join=address, layers=layers, transport=transport, cache=cache
            )
            nodes.append(await asyncio.to_thread(start_node, settings))
        server = await front.start()
        await asyncio.gather(*(node.ready() for node in nodes))
        await front.wait_for_coverage(30)
        await until(lambda: len(front.members.records()) == len(nodes))
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            yield Network(front, nodes, http)
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))
        await front.close()
    assert not [node.pid for node in nodes if is_alive(node.pid)]


def text_of(events: list[dict[str, Any] | str]) -> str:
    chunks = [e for e in events if isinstance(e, dict) and e.get("choices")]
    return "".join(choice["text"] for e in chunks for choice in e["choices"])


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_node_killed_in_the_middle_of_an_answer_changes_no_token(
    tiny_models: TinyModels, transport: str
) -> None:
    store, model = tiny_models.store, tiny_models.gemma
    async with processes(store, model.id, transport, [*BLOCKS, BLOCKS[1]]) as net:
        whole = await net.ask(max_tokens=LONG)
        assert whole.status_code == 200
        undisturbed = await net.receipt(whole.headers["x-unisono-receipt"])
        assert undisturbed.attempts == 1
        assert len(undisturbed.hops) == 3

        began = time.monotonic()
        events = await net.stream(1, 10, max_tokens=LONG)
        assert events[-1] == "[DONE]", events[-2:]
        assert text_of(events) == whole.json()["choices"][0]["text"]
        assert time.monotonic() - began < 30
        (name,) = [
            e["unisono"]["receipt"]
            for e in events
            if isinstance(e, dict) and e.get("choices") and e["choices"][0]["finish_reason"]
        ]
        receipt = await net.receipt(name)
        assert receipt.tokens == undisturbed.tokens
        assert receipt.attempts == 2
        dead = [n.address.node for n in net.nodes if not n.process.is_alive() and n.address]
        assert len(dead) == 1
        assert dead[0] not in [claim.node for claim in receipt.hops]
        for one in (undisturbed, receipt):
            verdict = await asyncio.to_thread(verify, one, store)
            assert verdict.verdict == "VALID", verdict
        again = await net.ask(max_tokens=8)
        assert again.status_code == 200
        assert await net.idle()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_without_a_spare_the_client_gets_a_clear_error(
    tiny_models: TinyModels, transport: str
) -> None:
    async with processes(tiny_models.store, tiny_models.gemma.id, transport, [*BLOCKS]) as net:
        events = await net.stream(1, 10, max_tokens=LONG)
        last = events[-1]
        assert isinstance(last, dict), "an answer that failed must not end like a complete one"
        assert last["error"]["code"] == "answer_interrupted"
        assert "none replaces it" in last["error"]["message"]
        assert len(events) < LONG
        assert await net.becomes_unready()
        refused = await net.ask(max_tokens=8)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "coverage_missing"
        assert await net.idle()


async def test_a_whole_answer_that_is_interrupted_is_a_502(tiny_models: TinyModels) -> None:
    async with processes(tiny_models.store, tiny_models.gemma.id, "tcp", [*BLOCKS]) as net:
        asking = asyncio.create_task(net.ask(max_tokens=LONG))
        swarm = net.front.swarm
        assert swarm is not None
        await until(lambda: swarm._answers)
        net.kill(2)
        response = await asking
        assert response.status_code == 502
        assert response.json()["error"]["code"] == "answer_interrupted"
        assert "x-unisono-receipt" not in response.headers


async def test_a_stopped_node_that_comes_back_serves_again(tiny_models: TinyModels) -> None:
    store, model = tiny_models.store, tiny_models.gemma.id
    async with processes(store, model, "tcp", [BLOCKS[0], BLOCKS[2], BLOCKS[1]]) as net:
        first = await net.ask(max_tokens=8)
        net.nodes[2].kill()
        await asyncio.to_thread(net.nodes[2].process.join, 5)
        failed = await net.ask(max_tokens=8)
        assert failed.status_code in (502, 503)
        settings = NodeSettings(
            model=model,
            join=str(net.front.address),
            layers=None,
            transport="tcp",
            cache=str(store.root),
            memory=model_facts(tiny_models.gemma).bytes_of(BLOCKS[1]),
        )
        fresh = await asyncio.to_thread(start_node, settings)
        net.nodes.append(fresh)
        await fresh.ready()
        await net.front.wait_for_coverage(10)
        back = {r.node: r.layers for r in net.front.members.records()}
        assert fresh.address is not None
        assert back[fresh.address.node] == BLOCKS[1]  # the block that was missing
        again = await net.ask(max_tokens=8)
        assert again.json()["choices"] == first.json()["choices"]


async def test_a_node_that_cannot_start_says_why(tiny_models: TinyModels) -> None:
    cache = str(tiny_models.store.root)
    node = await asyncio.to_thread(
        start_node,
        NodeSettings(
            model=tiny_models.gemma.id, layers=LayerRange(4, 9), transport="tcp", cache=cache
        ),
    )
    try:
        with pytest.raises(ConfigurationError, match="layers 4:9 are not a block"):
            await node.ready()
    finally:
        await node.stop()
    assert not is_alive(node.pid)


ORPHAN = """
import asyncio, sys, time
from unisono.compose.local import start_node
from unisono.compose.node_settings import NodeSettings
from unisono.compose.offer import model_facts

def main():
    settings = NodeSettings(model=sys.argv[1], transport="tcp", cache=sys.argv[2])
    node = start_node(settings)
    asyncio.run(node.ready())
    print(node.pid, flush=True)
    time.sleep(60)

if __name__ == "__main__":
    main()
"""


async def test_a_node_ends_with_the_program_that_started_it(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    script = tmp_path / "starts_a_node.py"
    script.write_text(ORPHAN)
    arguments = [str(script), tiny_models.gemma.id, str(tiny_models.store.root)]
    parent = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        assert is_alive(pid)
    finally:
        parent.kill()
        await parent.wait()
    await until(lambda: not is_alive(pid))
