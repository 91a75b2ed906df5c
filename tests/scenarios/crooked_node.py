"""A program: one node that computes with other weights than its model's, until it is ended.

    python -m tests.scenarios.crooked_node SETTINGS

SETTINGS is `NodeSettings` as JSON. Prints "ready ADDRESS" once it serves.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from unisono.compose.crooked import WEIGHTS, crooked_node
from unisono.compose.node_settings import NodeSettings


async def main() -> None:
    settings = msgspec.json.decode(sys.argv[1].encode(), type=NodeSettings)
    node = crooked_node(settings, WEIGHTS)
    try:
        print(f"ready {await node.start()}", flush=True)
        await node.run()
    finally:
        await node.close()


if __name__ == "__main__":
    asyncio.run(main())
