"""A program: one node that computes with other weights than its model's, until it is ended.

    python -m tests.scenarios.crooked_node SETTINGS

SETTINGS is `NodeSettings` as JSON. Prints "ready ADDRESS" once it serves.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import msgspec

from unisono.compose.node import Node
from unisono.compose.node_settings import NodeSettings
from unisono.models.loading import load_block
from unisono.models.store import StoredModel
from unisono.models.weights import BlockWeights
from unisono.types import LayerRange


def crooked_weights(model: StoredModel, layers: LayerRange) -> BlockWeights:
    """One matrix of the block's last layer has a few weights of no model."""
    good = load_block(model, layers)
    last = layers.stop - 1
    down = good.layer[last].down
    values = down.values.copy()
    values[:, :4] = -values[:, :4]
    layer = replace(good.layer[last], down=replace(down, values=values))
    return replace(good, layer={**good.layer, last: layer})


async def main() -> None:
    settings = msgspec.json.decode(sys.argv[1].encode(), type=NodeSettings)
    node = Node(settings, weights=crooked_weights)
    try:
        print(f"ready {await node.start()}", flush=True)
        await node.run()
    finally:
        await node.close()


if __name__ == "__main__":
    asyncio.run(main())
