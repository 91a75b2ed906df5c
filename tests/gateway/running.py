"""A gateway on a real socket, for tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from openai import AsyncOpenAI

from tests.gateway.scripted import ScriptedNetwork, babble, scripted_model
from unisono.gateway import (
    Fallback,
    GatewayServer,
    GatewayService,
    GatewaySettings,
    ReceiptStore,
    ServedModel,
    create_app,
    serve,
)
from unisono.wire.identity import Identity

HI = [{"role": "user", "content": "Hi"}]


class Gate:
    """Lets a scripted answer go as far as a test wants."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, index: int) -> None:
        if index >= self.free:
            self.reached.set()
            await self.opened.wait()


async def until(condition: Any) -> None:
    """Wait for something that has no event of its own; at most 5 seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited 5 seconds in vain")


@dataclass
class Running:
    """What a test can reach of a gateway."""

    server: GatewayServer
    service: GatewayService
    network: ScriptedNetwork
    http: httpx.AsyncClient
    openai: AsyncOpenAI
    model: str = "scripted-1b"

    async def chat(self, **fields: Any) -> httpx.Response:
        """A chat request as raw HTTP."""
        body = {"model": self.model, "messages": HI, "max_tokens": 100, **fields}
        return await self.http.post("/v1/chat/completions", json=body)


@asynccontextmanager
async def running_gateway(
    script: Any = babble,
    *,
    model: ServedModel | None = None,
    receipts: ReceiptStore | None = None,
    others: Sequence[ServedModel] = (),
    fallbacks: Sequence[Fallback] = (),
    **settings: Any,
) -> AsyncIterator[Running]:
    """A gateway in this event loop, on a free port, in front of a scripted network."""
    identity = Identity.generate()
    network = ScriptedNetwork(script, gateway=identity)
    store = receipts or ReceiptStore(None)
    service = GatewayService(
        network=network,
        models=[model or scripted_model(), *others],
        identity=identity,
        receipts=store,
        settings=GatewaySettings(**{"health_seconds": 0.0, **settings}),
        fallbacks=fallbacks,
    )
    server = await serve(create_app(service))
    try:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=20) as http,
            AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        ):
            yield Running(server, service, network, http, client)
    finally:
        await server.close(grace_seconds=0)
        if receipts is None:
            store.close()


@contextmanager
def gateway_in_a_thread(**settings: Any) -> Iterator[Running]:
    """The same gateway in a thread of its own, for clients that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    context = running_gateway(**settings)
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(20)
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
