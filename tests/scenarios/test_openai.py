"""OpenAI's own clients against a gateway whose nodes really compute."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from tests.conftest import TinyModels
from tests.gateway.contract import MESSAGES, PROMPT, OpenAIClientContract
from tests.scenarios.gateway import API_KEY, tiny_gateway_in_a_thread
from tests.scenarios.network import TinyNetwork
from unisono.gateway import GatewayServer
from unisono.verification.replay import verify

Running = tuple[GatewayServer, TinyNetwork]


@pytest.fixture(scope="module", params=["gemma", "llama"])
def running(request: pytest.FixtureRequest, tiny_models: TinyModels) -> Iterator[Running]:
    with tiny_gateway_in_a_thread(getattr(tiny_models, request.param), 3) as made:
        yield made


class TestTinyModels(OpenAIClientContract):
    @pytest.fixture
    def base_url(self, running: Running) -> str:
        return f"{running[0].url}/v1"

    @pytest.fixture
    def model_name(self, running: Running) -> str:
        return running[1].model.name

    @pytest.fixture
    def api_key(self) -> str:
        return API_KEY

    @pytest.mark.parametrize("temperature", [0, 1.3])
    def test_the_receipt_of_every_choice_is_valid(
        self,
        client: OpenAI,
        model_name: str,
        running: Running,
        tiny_models: TinyModels,
        temperature: float,
    ) -> None:
        raw = client.chat.completions.with_raw_response.create(
            model=model_name,
            messages=MESSAGES,
            max_tokens=10,
            n=2,
            seed=8,
            temperature=temperature,
            top_p=0.9,
            presence_penalty=0.5,
            frequency_penalty=0.25,
            logit_bias={"5": -3},
            logprobs=True,
            top_logprobs=3,
        )
        names = raw.headers["x-unisono-receipt"].split(",")
        assert len(names) == 2
        for name in names:
            receipt = self.receipt(client, name)
            verdict = verify(receipt, tiny_models.store)
            assert verdict.verdict == "VALID", verdict
            assert [h.node for h in receipt.hops] == [n.identity.node_id for n in running[1].nodes]

    def test_a_stop_string_leaves_a_valid_receipt(
        self, client: OpenAI, model_name: str, tiny_models: TinyModels
    ) -> None:
        fields = {"model": model_name, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
        text = client.completions.create(**fields).choices[0].text
        raw = client.completions.with_raw_response.create(**fields, stop=text[9:11])
        assert raw.parse().choices[0].finish_reason == "stop"
        receipt = self.receipt(client, raw.headers["x-unisono-receipt"])
        assert verify(receipt, tiny_models.store).verdict == "VALID"

    def test_nodes_stop_working_for_a_client_that_leaves(
        self, client: OpenAI, model_name: str, running: Running
    ) -> None:
        stream = client.completions.create(
            model=model_name, prompt=PROMPT, max_tokens=900, stream=True
        )
        next(iter(stream))
        assert running[1].sessions == 3
        stream.close()
        deadline = time.monotonic() + 5
        while running[1].sessions and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running[1].sessions == 0

    def test_the_gateway_says_that_it_is_ready_and_who_its_nodes_are(
        self, base_url: str, running: Running
    ) -> None:
        assert httpx.get(f"{running[0].url}/readyz").status_code == 200
        listed = httpx.get(
            f"{base_url}/network", headers={"authorization": f"Bearer {API_KEY}"}
        ).json()["data"]
        assert {node["node"] for node in listed} == {n.identity.node_id for n in running[1].nodes}
        assert all(node["alive"] for node in listed)
