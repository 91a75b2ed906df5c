"""Gateways as members: several of one network, found through whoever is there."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import TinyModels
from tests.gateway.running import until
from tests.routing.records import KEYS, record
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.node import Node
from unisono.compose.node_settings import NodeSettings
from unisono.errors import ConfigurationError
from unisono.types import LayerRange


async def test_a_second_gateway_finds_the_nodes_through_one_of_them(
    tiny_models: TinyModels,
) -> None:
    model, cache = tiny_models.gemma.id, str(tiny_models.store.root)
    first = Front(FrontSettings(model=model, port=0, transport="tcp", cache=cache))
    fronts, nodes, running = [first], list[Node](), list[asyncio.Task[None]]()
    try:
        door = await first.bind()
        for layers in (LayerRange(0, 3), LayerRange(3, 6)):
            node = Node(
                NodeSettings(
                    model=model,
                    join=str(door),
                    layers=layers,
                    transport="tcp",
                    cache=cache,
                    kv_bytes=16 << 20,
                    threads=1,
                )
            )
            nodes.append(node)
            door = await node.start()  # the next one joins through this one
            running.append(asyncio.create_task(node.run()))
        await first.wait_for_coverage(10)
        second = Front(
            FrontSettings(model=model, port=0, transport="tcp", cache=cache, join=str(door))
        )
        fronts.append(second)
        await second.bind()
        await second.wait_for_coverage(10)
        await until(lambda: len(first.members.records()) == 3)
        await second.close()
        assert {r.node for r in first.members.records()} == {n.identity.node_id for n in nodes}
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*(x.close() for x in (*nodes, *fronts)))


async def test_holders_of_all_layers_that_form_no_chain_are_not_coverage(
    tiny_models: TinyModels,
) -> None:
    model, cache = tiny_models.gemma.id, str(tiny_models.store.root)
    front = Front(FrontSettings(model=model, port=0, transport="tcp", cache=cache))
    try:
        await front.bind()
        now = int(front._clock.now() * 1000)
        for key, block in ((0, (0, 4)), (1, (2, 6))):
            made = record(key, *block, sign=True, model=model, sequence=now, expires=now + 15_000)
            front.members.accept(made, KEYS[key].node_id)
        with pytest.raises(ConfigurationError, match="at layer 4 of 6"):
            await front.wait_for_coverage(0.1)
    finally:
        await front.close()
