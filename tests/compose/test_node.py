"""Real nodes with a tiny model, over the transport in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.conftest import TinyModels
from tests.gateway.running import until
from unisono.compose.node import Node
from unisono.compose.node_settings import NodeSettings
from unisono.compose.offer import model_facts
from unisono.errors import ConfigurationError, PeerGone
from unisono.types import LayerRange, PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Refused
from unisono.wire.records import Info, Probe
from unisono.wire.transports.memory import MemoryNetwork


class Street:
    """Some nodes of one network."""

    def __init__(self, models: TinyModels) -> None:
        self.hub = MemoryNetwork()
        self.models = models
        self.nodes: list[Node] = []
        self.running: list[asyncio.Task[None]] = []

    async def add(self, *doors: Node, **settings: Any) -> Node:
        identity = Identity.generate()
        addresses = [str(door.gossip.exchanges.own().record.address) for door in doors]
        node = Node(
            NodeSettings(
                model=self.models.gemma.id,
                join=",".join(addresses) or None,
                cache=str(self.models.store.root),
                kv_bytes=16 << 20,
                threads=1,
                **settings,
            ),
            transport=self.hub.transport(identity),
            identity=identity,
        )
        self.nodes.append(node)
        await node.start()
        self.running.append(asyncio.create_task(node.run()))
        return node


@asynccontextmanager
async def street(models: TinyModels) -> AsyncIterator[Street]:
    place = Street(models)
    try:
        yield place
    finally:
        for task in place.running:
            task.cancel()
        await asyncio.gather(*(node.close() for node in place.nodes))


def layers_known(node: Node) -> dict[str, LayerRange]:
    return {r.node: r.layers for r in node.members.records() if r.model}


async def test_nodes_join_through_any_node_and_know_each_other(tiny_models: TinyModels) -> None:
    async with street(tiny_models) as place:
        first = await place.add(layers=LayerRange(0, 2))
        second = await place.add(first, layers=LayerRange(2, 4))
        third = await place.add(second, layers=LayerRange(4, 6))
        held = {n.identity.node_id: n.layers for n in place.nodes}
        for node in (first, second, third):
            others = {k: v for k, v in held.items() if k != node.identity.node_id}
            await until(lambda node=node, others=others: layers_known(node) == others)


async def test_a_node_without_instructions_takes_the_block_that_is_missing(
    tiny_models: TinyModels,
) -> None:
    async with street(tiny_models) as place:
        first = await place.add(layers=LayerRange(0, 2))
        await place.add(first, layers=LayerRange(4, 6))
        await until(lambda: len(layers_known(first)) == 1)
        memory = model_facts(tiny_models.gemma).bytes_of(LayerRange(2, 4))
        fresh = await place.add(first, memory=memory)
        assert fresh.layers == LayerRange(2, 4)
        await until(lambda: layers_known(first).get(fresh.identity.node_id) == LayerRange(2, 4))


async def test_a_node_with_room_for_it_holds_the_whole_model(tiny_models: TinyModels) -> None:
    async with street(tiny_models) as place:
        first = await place.add(layers=LayerRange(0, 3))
        fresh = await place.add(first)
        assert fresh.layers == LayerRange(0, tiny_models.gemma.layer_count)


async def test_a_node_that_is_stopped_is_forgotten_at_once(tiny_models: TinyModels) -> None:
    async with street(tiny_models) as place:
        first = await place.add(layers=LayerRange(0, 3))
        second = await place.add(first, layers=LayerRange(3, 6))
        await until(lambda: len(layers_known(first)) == 1)
        place.running.pop().cancel()
        await second.close()
        assert layers_known(first) == {}


async def test_streams_that_are_not_gossip_reach_the_worker(tiny_models: TinyModels) -> None:
    async with street(tiny_models) as place:
        node = await place.add(layers=LayerRange(0, 3))
        transport = place.hub.transport(Identity.generate())
        address = await transport.bind()
        assert address.transport == "memory"
        stream = await transport.dial(node.gossip.exchanges.own().record.address)
        await stream.send(encode_frame(Probe()))
        info, _ = decode_frame(await stream.receive())
        assert isinstance(info, Info)
        assert info.record.layers == LayerRange(0, 3)
        service, node._door.service = node._door.service, None
        stream = await transport.dial(node.gossip.exchanges.own().record.address)
        await stream.send(encode_frame(Probe()))
        refused, _ = decode_frame(await stream.receive())
        assert isinstance(refused, Refused)
        node._door.service = service


async def test_a_node_that_needs_a_network_and_finds_none_says_so(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.compose.node.FIRST_JOIN_SECONDS", 0.1)
    nobody = PeerAddress(Identity.generate().node_id, "memory", ("memory:9",))
    identity = Identity.generate()
    node = Node(
        NodeSettings(
            model=tiny_models.gemma.id, join=str(nobody), cache=str(tiny_models.store.root)
        ),
        transport=MemoryNetwork().transport(identity),
        identity=identity,
    )
    try:
        with pytest.raises(ConfigurationError, match="cannot join the network"):
            await node.start()
    finally:
        await node.close()


async def test_a_node_that_loses_its_network_for_long_gives_up(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.compose.node.JOIN_SECONDS", 0.2)
    monkeypatch.setattr("unisono.compose.node._LOOK_SECONDS", 0.05)
    async with street(tiny_models) as place:
        first = await place.add(layers=LayerRange(0, 3))
        second = await place.add(first, layers=LayerRange(3, 6))
        await until(lambda: len(layers_known(second)) == 1)
        place.hub.kill(first.identity.node_id)
        with pytest.raises(PeerGone, match="answered for"):
            await asyncio.wait_for(place.running[1], 5)
        assert second.gossip.silence > 0.2


async def test_a_node_moves_to_a_block_that_lost_its_only_holder(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.compose.node._LOOK_SECONDS", 0.05)
    monkeypatch.setattr("unisono.routing.placement.joining.SETTLE_MS", 200)
    memory = model_facts(tiny_models.gemma).bytes_of(LayerRange(4, 6))
    async with street(tiny_models) as place:
        first = await place.add(layers=LayerRange(0, 3), memory=memory)
        second = await place.add(first, layers=LayerRange(3, 6), memory=memory)
        await until(lambda: len(layers_known(first)) == 1)
        spare = await place.add(first, memory=2 * memory)
        before = spare.layers
        assert before in (LayerRange(0, 3), LayerRange(3, 6))
        victim, survivor = (first, second) if before == second.layers else (second, first)
        place.hub.kill(victim.identity.node_id)
        await until(lambda: spare.layers == victim.layers)
        await until(lambda: layers_known(survivor).get(spare.identity.node_id) == victim.layers)
