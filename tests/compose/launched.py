"""A node process of a test, honest or with the altered weights of `altered`.

python -m tests.compose.launched SETTINGS honest|altered
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from tests.compose.altered import altered_block
from unisono.compose.node import Node
from unisono.compose.node_settings import NodeSettings
from unisono.models.loading import load_block


async def _serve(settings: NodeSettings, conduct: str) -> None:
    node = Node(settings, weights=altered_block if conduct == "altered" else load_block)
    try:
        await node.start()
        await node.run()
    finally:
        await node.close()


if __name__ == "__main__":
    asyncio.run(_serve(msgspec.json.decode(sys.argv[1], type=NodeSettings), sys.argv[2]))
