"""An ensemble as a client asks for it: over HTTP, streamed, with a receipt that a replay judges."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from tests.conftest import TinyModels
from tests.scenarios.gateway import API_KEY, tiny_gateway
from unisono.models.tokenizer import Tokenizer
from unisono.verification.receipt import from_json
from unisono.verification.replay import verify

HEADERS = {"authorization": f"Bearer {API_KEY}"}


async def test_an_ensemble_answers_streams_and_leaves_a_valid_receipt(
    tiny_models: TinyModels,
) -> None:
    one, other = tiny_models.llama, tiny_models.gemma
    async with (
        tiny_gateway(one, 2, [(other, 3)]) as (server, net),
        httpx.AsyncClient(base_url=f"{server.url}/v1", headers=HEADERS, timeout=30) as client,
    ):
        body: dict[str, Any] = {
            "model": one.name,
            "prompt": "hello there",
            "max_tokens": 10,
            "temperature": 0.8,
            "seed": 4,
            "ensemble": [one.name, other.name],
        }
        whole = await client.post("/completions", json=body)
        assert whole.status_code == 200, whole.text
        name = whole.headers["x-unisono-receipt"]
        receipt = from_json((await client.get(f"/receipts/{name}")).content)
        verdict = verify(receipt, tiny_models.store)
        assert verdict.verdict == "VALID", verdict
        assert receipt.request.ensemble == (one.id, other.id)
        text = ""
        async with client.stream("POST", "/completions", json={**body, "stream": True}) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    piece = msgspec.json.decode(line.removeprefix("data: "))
                    text += "".join(choice["text"] for choice in piece["choices"])
        assert text == whole.json()["choices"][0]["text"]
        stopped = await client.post("/completions", json={**body, "stop": text[3:5]})
        assert stopped.json()["choices"][0]["finish_reason"] == "stop"
        receipt = from_json(
            (await client.get(f"/receipts/{stopped.headers['x-unisono-receipt']}")).content
        )
        assert verify(receipt, tiny_models.store).verdict == "VALID"
        refused = await client.post("/completions", json={**body, "ensemble": [one.name]})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "ensemble"
        await net.idle()


def test_models_of_one_vocabulary_have_one_hash(tiny_models: TinyModels) -> None:
    made = [
        Tokenizer.from_files(model.tokenizer_files())
        for model in (tiny_models.llama, tiny_models.gemma)
    ]
    assert made[0].vocabulary_hash == made[1].vocabulary_hash
    assert len(made[0].vocabulary_hash) == 64
