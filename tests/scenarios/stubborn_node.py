"""A program: a node with a wrong weight that contests whatever it is accused of, until it is ended.

    python -m tests.scenarios.stubborn_node SETTINGS

SETTINGS is `NodeSettings` as JSON. Prints "ready ADDRESS" once it serves.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec

from unisono.compose.crooked import WEIGHTS, crooked_node
from unisono.compose.jury_duty import JuryDuty
from unisono.compose.node_settings import NodeSettings
from unisono.settlement.committees import CaseState


async def always(self: Any, state: CaseState) -> bool:
    """Stands by every claim."""
    return True


async def main() -> None:
    settings = msgspec.json.decode(sys.argv[1].encode(), type=NodeSettings)
    JuryDuty._decided = always  # type: ignore[method-assign]
    node = crooked_node(settings, WEIGHTS)
    try:
        print(f"ready {await node.start()}", flush=True)
        await node.run()
    finally:
        await node.close()


if __name__ == "__main__":
    asyncio.run(main())
