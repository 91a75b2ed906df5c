"""Chains to settle on: the embedded one in this process, and anvil where it is."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from unisono.settlement.ledger.anvil import Anvil, find_anvil
from unisono.settlement.ledger.embedded import EmbeddedChain
from unisono.settlement.ledger.rpc import RpcLedger
from unisono.settlement.ledger.rpc_server import RpcServer

CHAIN_ID = 424_242


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_anvil() is None:
        skip = pytest.mark.skip(reason="anvil is not here: make test-anvil fetches it")
        for item in items:
            if item.get_closest_marker("anvil"):
                item.add_marker(skip)


@pytest.fixture
async def embedded() -> AsyncGenerator[RpcLedger]:
    """The embedded chain, over HTTP."""
    server = RpcServer(EmbeddedChain(None, chain_id=CHAIN_ID))
    await server.start()
    ledger = RpcLedger(server.url)
    yield ledger
    await ledger.close()
    await server.close()


@pytest.fixture
async def anvil() -> AsyncGenerator[RpcLedger]:
    """An anvil that makes a block for each transaction."""
    async with Anvil() as process:
        ledger = RpcLedger(process.url)
        yield ledger
        await ledger.close()


@pytest.fixture(params=["embedded", pytest.param("anvil", marks=pytest.mark.anvil)])
def ledger(request: pytest.FixtureRequest) -> RpcLedger:
    """Each chain in turn."""
    return request.getfixturevalue(request.param)
