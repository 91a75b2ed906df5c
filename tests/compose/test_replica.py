"""A replica that stands by, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal

import httpx
import pytest

from tests.conftest import TinyModels
from tests.gateway.running import until
from tests.gateway.scripted import ScriptedNetwork
from unisono.clock import SystemClock
from unisono.compose.replica import Replica
from unisono.errors import CoverageMissing
from unisono.gateway import (
    GatewayService,
    GatewaySettings,
    ReceiptStore,
    ReplicaFallback,
    ServedModel,
    create_app,
    serve,
)
from unisono.models.tokenizer import Tokenizer
from unisono.verification.receipt import from_json
from unisono.verification.replay import verify
from unisono.wire.identity import Identity

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


async def patiently(condition: object) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                return await until(condition)
            except AssertionError:
                continue


async def test_a_replica_answers_for_a_network_that_is_gone_and_comes_back_when_it_dies(
    tiny_models: TinyModels,
) -> None:
    model, identity = tiny_models.gemma, Identity.generate()
    network = ScriptedNetwork(gateway=identity)
    network.alive[:] = [False, False]
    network.open_error = CoverageMissing("nobody is there")
    replica = Replica(model, identity, SystemClock(), cache=str(tiny_models.store.root), threads=1)
    receipts = ReceiptStore(None)
    service = GatewayService(
        network=network,
        models=[
            ServedModel(
                name=model.name,
                id=model.id,
                tokenizer=Tokenizer.from_files(model.tokenizer_files()),
                context_length=model.manifest.config.context_length,
                layer_count=model.layer_count,
            )
        ],
        identity=identity,
        receipts=receipts,
        settings=GatewaySettings(health_seconds=0),
        fallbacks=[ReplicaFallback(replica.network)],
    )
    server = await serve(create_app(service))
    body = {"model": model.name, "prompt": "The quick brown fox", "max_tokens": 6, "seed": 3}

    async def ask(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post(f"{server.url}/v1/completions", json=body)

    await replica.start()
    try:
        async with httpx.AsyncClient(timeout=60) as http:
            early = await ask(http)
            assert early.status_code == 503
            assert early.json()["error"]["code"] == "network_unreachable"
            await patiently(lambda: replica.ready)
            answer = await ask(http)
            assert answer.status_code == 200
            assert answer.headers["x-unisono-fallback"] == "replica"
            name = answer.headers["x-unisono-receipt"]
            data = (await http.get(f"{server.url}/v1/receipts/{name}")).content
            receipt = from_json(data)
            assert len(receipt.hops) == 1
            assert receipt.hops[0].layers.count == model.layer_count
            assert verify(receipt, tiny_models.store).verdict == "VALID"
            assert replica.pid is not None
            os.kill(replica.pid, signal.SIGKILL)
            first = replica.pid
            await patiently(lambda: replica.pid not in (None, first) and replica.ready)

            async def text() -> str | None:
                again = await ask(http)
                return again.json()["choices"][0]["text"] if again.status_code == 200 else None

            again = None
            for _ in range(150):
                again = await text()
                if again is not None:
                    break
                await asyncio.sleep(0.2)
            assert again == answer.json()["choices"][0]["text"]
    finally:
        await server.close(grace_seconds=0)
        pid = replica.pid
        await replica.close()
        await replica.close()
        receipts.close()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
