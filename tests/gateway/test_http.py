"""The HTTP surface around the answers: refusals, limits, keys, health, metrics."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx
import openai
import pytest

from tests.gateway.running import HI, Gate, Running, running_gateway, until
from tests.gateway.scripted import MODEL
from unisono.errors import ConfigurationError
from unisono.gateway import create_app, serve


async def test_unknown_routes_and_wrong_methods_are_refused_in_the_form_of_openai() -> None:
    async with running_gateway() as gateway:
        unknown = await gateway.http.get("/v1/nothing")
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "unknown_url"
        wrong = await gateway.http.get("/v1/chat/completions")
        assert wrong.status_code == 405
        assert wrong.headers["allow"] == "POST"
        assert set(wrong.json()["error"]) == {"message", "type", "param", "code"}
        assert unknown.headers["x-request-id"] != wrong.headers["x-request-id"]


async def test_a_body_that_is_not_json_is_a_400() -> None:
    async with running_gateway() as gateway:
        response = await gateway.http.post("/v1/completions", content=b"{not json")
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_json"


async def test_a_body_that_is_too_large_is_a_413() -> None:
    async with running_gateway(max_body_bytes=2000) as gateway:
        response = await gateway.chat(user="x" * 2000)
        assert response.status_code == 413
        with pytest.raises(openai.APIStatusError) as raised:
            await gateway.openai.completions.create(model="default", prompt="x" * 9000)
        assert raised.value.status_code == 413
        assert (await gateway.chat()).status_code == 200


async def test_a_large_body_is_read_without_holding_up_the_gateway() -> None:
    async with running_gateway() as gateway:
        response = await gateway.chat(user="x" * 200_000)
        assert response.status_code == 200
        with pytest.raises(openai.BadRequestError) as raised:
            await gateway.openai.completions.create(model="default", prompt="x" * 100_000)
        assert raised.value.code == "context_length_exceeded"


async def slowly(gateway: Running, path: str, *pieces: bytes) -> tuple[bytes, float]:
    """Send the beginning of a body and wait for what comes; returns it and how long that took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    started = asyncio.get_running_loop().time()
    writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\n\r\n".encode())
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.03)
    answer = await asyncio.wait_for(reader.read(), 5)  # until the gateway closes
    writer.close()
    return answer, asyncio.get_running_loop().time() - started


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("pieces", [(), (b'{"model": ',), (b"{",) * 5], ids=len)
async def test_a_body_that_takes_too_long_is_a_408_and_ends_the_connection(
    path: str, pieces: tuple[bytes, ...]
) -> None:
    async with running_gateway(body_seconds=0.1) as gateway:
        answer, seconds = await slowly(gateway, path, *pieces)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in head
        error = json.loads(body)["error"]
        assert error["code"] == "request_timeout"
        assert error["type"] == "invalid_request_error"
        assert "within 0.1 seconds" in error["message"]
        assert 0.09 < seconds < 3
        text = (await gateway.http.get("/metrics")).text
        assert 'errors_total{kind="request_timeout"} 1.0' in text
        assert (await gateway.chat()).status_code == 200


async def test_without_a_known_key_only_the_health_of_the_gateway_is_shown() -> None:
    async with running_gateway(api_keys=("right",)) as gateway:
        for path in ("/v1/models", "/v1/network", "/v1/receipts/0", "/v1/models/default"):
            missing = await gateway.http.get(path)
            assert missing.status_code == 401
            assert missing.json()["error"]["code"] == "invalid_api_key"
            wrong = await gateway.http.get(path, headers={"authorization": "Bearer wrong"})
            assert wrong.status_code == 401
        assert (await gateway.chat()).status_code == 401
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await gateway.http.get(path)).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            await gateway.openai.models.list()
        client = gateway.openai.with_options(api_key="right")
        assert [model.id for model in (await client.models.list()).data] == ["scripted-1b"]


async def test_a_model_is_found_by_name_alias_with_slash_and_id() -> None:
    async with running_gateway() as gateway:
        for name in ("scripted-1b", "lab/scripted", MODEL):
            model = await gateway.openai.models.retrieve(name)
            assert model.id == "scripted-1b"
            assert model.model_extra["model_hash"] == MODEL
            answer = await gateway.openai.completions.create(model=name, prompt="a", max_tokens=1)
            assert answer.model == "scripted-1b"
            assert answer.system_fingerprint == MODEL
        with pytest.raises(openai.NotFoundError):
            await gateway.openai.models.retrieve("nobody")


async def test_when_all_places_and_the_queue_are_full_the_client_is_told_when_to_return() -> None:
    async with running_gateway(
        max_running_answers=2, max_queued_requests=1, retry_after_seconds=7
    ) as gateway:
        gate = gateway.network.pause = Gate(free=1)
        running = asyncio.create_task(gateway.chat(n=2))
        await asyncio.wait_for(gate.reached.wait(), 5)
        queued = asyncio.create_task(gateway.chat(stream=True))
        await until(lambda: gateway.service.admission.queued == 1)
        with pytest.raises(openai.RateLimitError) as raised:
            await gateway.openai.chat.completions.create(model="default", messages=HI)
        assert raised.value.response.headers["retry-after"] == "7"
        metrics = (await gateway.http.get("/metrics")).text
        assert "unisono_gateway_running_answers 2.0" in metrics
        assert "unisono_gateway_queued_requests 1.0" in metrics
        assert 'unisono_gateway_errors_total{kind="rate_limit_exceeded"} 1.0' in metrics
        gate.opened.set()
        assert [(await task).status_code for task in (running, queued)] == [200, 200]


async def test_a_request_waits_no_longer_than_the_queue_allows() -> None:
    async with running_gateway(max_running_answers=1, queue_seconds=0.05) as gateway:
        gate = gateway.network.pause = Gate(free=0)
        running = asyncio.create_task(gateway.chat())
        await asyncio.wait_for(gate.reached.wait(), 5)
        late = await gateway.chat()
        assert late.status_code == 429
        assert late.json()["error"]["code"] == "rate_limit_exceeded"
        gate.opened.set()
        await running


async def test_the_gateway_is_ready_while_every_layer_has_a_live_holder() -> None:
    async with running_gateway() as gateway:
        assert (await gateway.http.get("/readyz")).status_code == 200
        gateway.network.alive[1] = False
        response = await gateway.http.get("/readyz")
        assert response.status_code == 503
        assert "layers 2:4 of 'scripted-1b'" in response.text
        assert (await gateway.http.get("/healthz")).status_code == 200


async def test_the_network_can_be_looked_at() -> None:
    async with running_gateway() as gateway:
        first, second = (await gateway.http.get("/v1/network")).json()["data"]
        assert first["node"] == gateway.network.hops[0].node_id
        assert second["layers"] == {"start": 2, "stop": 4}


async def test_the_map_shows_coverage_links_and_availability() -> None:
    async with running_gateway() as gateway:
        first, second = gateway.network.hops
        gateway.network.facts = {
            first.node_id: {"coordinate": (3000, 0, 0, 100), "rtt_us": 5000, "bandwidth": 10**6},
            second.node_id: {"coordinate": (0, 4000, 0, 200), "queue": 3, "price_out": 7},
        }
        shown = (await gateway.http.get("/v1/network")).json()
        assert shown["models"] == [
            {
                "name": "scripted-1b",
                "id": MODEL,
                "layers": 4,
                "availability": 1.0,
                "alive": 2,
                "known": 2,
                "holders": [1, 1, 1, 1],
                "room": [1000, 1000, 1001, 1001],
                "missing": [],
                "trouble": None,
            }
        ]
        assert shown["links"] == [
            {
                "source": None,
                "target": first.node_id,
                "rtt_us": 5000,
                "bandwidth": 0,
                "estimated": False,
            },
            {
                "source": first.node_id,
                "target": second.node_id,
                "rtt_us": 5300,
                "bandwidth": 10**6,
                "estimated": True,
            },
        ]
        assert shown["data"][1]["queue"] == 3
        gateway.network.alive[1] = False
        shown = (await gateway.http.get("/v1/network")).json()
        assert shown["models"][0]["missing"] == [{"start": 2, "stop": 4}]
        assert shown["models"][0]["trouble"] == "coverage"
        assert [link["target"] for link in shown["links"]] == [first.node_id]


async def test_an_unknown_receipt_is_a_404() -> None:
    async with running_gateway() as gateway:
        response = await gateway.http.get("/v1/receipts/" + "0" * 32)
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "invalid_request_error"


async def test_metrics_count_requests_tokens_times_nodes_and_receipts() -> None:
    async with running_gateway() as gateway:
        answer = (await gateway.chat(n=2)).json()
        await gateway.http.get("/v1/nothing/at/all")
        hop = gateway.network.hops[0].node_id
        gateway.service.metrics.observe_hop(hop, 0.002)
        gateway.network.alive[1] = False
        text = (await gateway.http.get("/metrics")).text
        usage = answer["usage"]
        for line in (
            'requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0',
            'requests_total{method="any",route="unmatched",status="404"} 1.0',
            f'prompt_tokens_total{{model="scripted-1b"}} {usage["prompt_tokens"]}.0',
            f'answer_tokens_total{{model="scripted-1b"}} {usage["completion_tokens"]}.0',
            'first_token_seconds_count{model="scripted-1b"} 2.0',
            'token_seconds_count{model="scripted-1b"} 2.0',
            f'hop_seconds_count{{node="{hop}"}} 1.0',
            "running_answers 0.0",
            f'node_free_positions{{layers="0:2",node="{hop}"}} 1000.0',
            "gateway_receipts 2.0",
        ):
            assert line in text
        assert gateway.network.hops[1].node_id not in text


async def test_two_gateways_live_in_one_process_and_a_taken_port_is_refused() -> None:
    async with running_gateway() as one, running_gateway() as two:
        assert one.server.port != two.server.port
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await serve(create_app(one.service), port=two.server.port)
        async with httpx.AsyncClient() as client:
            for gateway in (one, two):
                assert (await client.get(f"{gateway.server.url}/healthz")).status_code == 200


async def test_small_parts_of_a_stream_leave_at_once() -> None:
    async with running_gateway() as gateway:
        assert (await gateway.http.get("/healthz")).status_code == 200
        connections = gateway.server._server.server_state.connections
        sockets = [each.transport.get_extra_info("socket") for each in connections]  # type: ignore[union-attr]
        assert sockets
        for each in sockets:
            assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
