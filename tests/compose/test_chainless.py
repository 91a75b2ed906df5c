"""Without a chain nothing of one is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import TinyModels

PROGRAM = """
import asyncio, sys
from unisono.cli import app
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.node import Node
from unisono.compose.node_settings import NodeSettings

async def main(model, cache):
    front = Front(FrontSettings(model=model, port=0, transport="tcp", cache=cache))
    address = await front.bind()
    node = Node(NodeSettings(model=model, join=str(address), transport="tcp", cache=cache))
    await node.start()
    await front.start()
    await front.wait_for_coverage(30)
    await node.close()
    await front.close()

asyncio.run(main(*sys.argv[1:]))
parts = ("web3", "eth", "eth_abi", "eth_account", "eth_hash", "eth_keys", "coincurve", "vyper")
print(sorted({m.split(".")[0] for m in sys.modules} & set(parts)))
print(sorted(m for m in sys.modules if m.startswith("unisono.settlement.")))
"""


@pytest.mark.slow
def test_a_free_network_loads_no_library_of_a_chain(tiny_models: TinyModels) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tiny_models.gemma.id, str(tiny_models.store.root)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]"]
