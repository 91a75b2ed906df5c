"""A gateway on a real socket over nodes in the same process, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from tests.scenarios.network import TinyNetwork, tiny_network
from unisono.gateway import (
    GatewayServer,
    GatewayService,
    GatewaySettings,
    ReceiptStore,
    ServedModel,
    create_app,
    serve,
)
from unisono.models.store import StoredModel
from unisono.models.tokenizer import Tokenizer

API_KEY = "a key for tests"


@asynccontextmanager
async def tiny_gateway(
    model: StoredModel, blocks: int, others: Sequence[tuple[StoredModel, int]] = ()
) -> AsyncIterator[tuple[GatewayServer, TinyNetwork]]:
    """A gateway in this event loop, and the network behind it."""
    async with tiny_network(model, blocks, others=others) as net:
        receipts = ReceiptStore(None)
        service = GatewayService(
            network=net.swarm,
            models=[
                ServedModel(
                    name=each.name,
                    id=each.id,
                    tokenizer=Tokenizer.from_files(each.tokenizer_files()),
                    context_length=each.manifest.config.context_length,
                    layer_count=each.layer_count,
                )
                for each in (model, *(other for other, _ in others))
            ],
            identity=net.gateway,
            receipts=receipts,
            settings=GatewaySettings(api_keys=(API_KEY,)),
        )

        async def renew() -> None:
            while True:
                await asyncio.sleep(3)
                for node in net.nodes:
                    node.announce()

        renewing = asyncio.create_task(renew())
        server = await serve(create_app(service))
        try:
            yield server, net
        finally:
            renewing.cancel()
            await server.close(grace_seconds=0)
            receipts.close()


@contextmanager
def tiny_gateway_in_a_thread(
    model: StoredModel, blocks: int
) -> Iterator[tuple[GatewayServer, TinyNetwork]]:
    """The same in another thread, for clients that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    context = tiny_gateway(model, blocks)
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(20)
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
