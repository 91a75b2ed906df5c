"""Answers over HTTP: events, receipts, endings, interruptions."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.running import HI, Gate, Running, running_gateway, until
from tests.gateway.scripted import ByteTokenizer, babble, says, scripted_model
from unisono.errors import AnswerInterrupted, CapacityMissing, CoverageMissing
from unisono.verification.receipt import Receipt, from_json


def events(body: str) -> list[Any]:
    """The data of each server-sent event; `[DONE]` stays text."""
    found: list[Any] = []
    for block in body.split("\n\n")[:-1]:
        assert "\n" not in block
        if not block.startswith(":"):
            data = block.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


async def receipt_of(running: Running, name: str) -> Receipt:
    response = await running.http.get(f"/v1/receipts/{name}")
    assert response.headers["content-type"] == "application/json"
    return from_json(response.content)


async def test_a_stream_is_server_sent_events_with_one_object_each() -> None:
    async with running_gateway(says("Grüße")) as gateway:
        response = await gateway.chat(stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        promised = response.headers["x-unisono-receipt"]
        *chunks, done = events(response.text)
        assert done == "[DONE]"
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:-1]]
        assert texts == ["G", "r", "ü", "ß", "e"]
        assert chunks[-1]["choices"][0] == {
            "index": 0,
            "delta": {},
            "logprobs": None,
            "finish_reason": "stop",
        }
        assert "usage" not in chunks[0]
        assert chunks[-1]["unisono"]["receipt"] == promised
        assert (await receipt_of(gateway, promised)).tokens


async def test_the_receipt_lists_the_tokens_up_to_the_one_that_completed_the_stop() -> None:
    words = (b"one ", b"two. th", b"ree")
    model = scripted_model(ByteTokenizer(words=words))
    async with running_gateway(lambda _: [258, 259, 260], model=model) as gateway:
        response = await gateway.chat(stop=". t", seed=3)
        answer = response.json()
        assert answer["choices"][0]["message"]["content"] == "one two"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 2
        receipt = await receipt_of(gateway, response.headers["x-unisono-receipt"])
        assert receipt.tokens == (258, 259)
        assert receipt.request.sampling.seed == 3
        assert receipt.attempts == 1
        assert gateway.network.answers[0].finished_with == 2
        assert not gateway.network.answers[0].cancelled.is_set()


async def test_a_stop_token_is_in_the_receipt_and_not_in_the_text() -> None:
    async with running_gateway(says("ok")) as gateway:
        response = await gateway.chat(logprobs=True)
        choice = response.json()["choices"][0]
        assert choice["message"]["content"] == "ok"
        assert [score["token"] for score in choice["logprobs"]["content"]] == ["o", "k"]
        receipt = await receipt_of(gateway, response.headers["x-unisono-receipt"])
        assert receipt.tokens == (*b"ok", 257)
        assert response.json()["usage"]["completion_tokens"] == 3


async def test_the_scores_of_a_stop_string_are_as_unseen_as_its_text() -> None:
    async with running_gateway(says("abENDc")) as gateway:
        for stream in (False, True):
            response = await gateway.chat(logprobs=True, stop="END", stream=stream)
            if stream:
                choices = [chunk["choices"][0] for chunk in events(response.text)[:-1]]
            else:
                choices = [response.json()["choices"][0]]
            scores = [s for c in choices if c["logprobs"] for s in c["logprobs"]["content"]]
            assert [score["token"] for score in scores] == ["a", "b"]


async def test_a_character_cut_off_by_the_length_limit_is_a_replacement_character() -> None:
    async with running_gateway(says("aü")) as gateway:
        answer = (await gateway.chat(max_tokens=2)).json()
        assert answer["choices"][0]["message"]["content"] == "a\ufffd"
        assert answer["choices"][0]["finish_reason"] == "length"


async def test_an_answer_whose_hops_do_not_sign_ends_without_a_receipt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_gateway() as gateway:
        gateway.network.finish_error = AnswerInterrupted("hop 1 does not sign")
        with caplog.at_level(logging.WARNING, "unisono.gateway"):
            response = await gateway.chat()
        assert response.status_code == 200
        assert "x-unisono-receipt" not in response.headers
        assert response.json()["unisono"] == {"receipts": [None]}
        assert "hop 1 does not sign" in caplog.text
        assert gateway.network.answers[0].cancelled.is_set()
        last, done = events((await gateway.chat(stream=True)).text)[-2:]
        assert last["unisono"] == {"receipt": None}
        assert done == "[DONE]"


async def test_hops_that_take_too_long_to_sign_do_not_hold_up_the_answer() -> None:
    async with running_gateway(says("ok"), receipt_seconds=0.05) as gateway:

        async def never(_: object, tokens: int) -> None:
            await asyncio.sleep(60)

        original = type(gateway.network).open

        async def open_slow(request: Any, **options: Any) -> Any:
            answer = await original(gateway.network, request, **options)
            answer.finish = lambda tokens: never(answer, tokens)
            return answer

        gateway.network.open = open_slow
        response = await gateway.chat()
        assert response.json()["unisono"] == {"receipts": [None]}
        assert gateway.network.answers[0].cancelled.is_set()


@pytest.mark.parametrize(
    ("error", "status", "code", "kind"),
    [
        (CoverageMissing("no holder of layers 2:4"), 503, "coverage_missing", "server_error"),
        (CapacityMissing("all holders are full"), 429, "capacity_missing", "rate_limit_error"),
        (AnswerInterrupted("lost a hop"), 502, "answer_interrupted", "server_error"),
    ],
)
async def test_errors_of_the_network_have_a_status_even_for_streams(
    error: Exception, status: int, code: str, kind: str
) -> None:
    async with running_gateway() as gateway:
        gateway.network.open_error = error
        for stream in (False, True):
            response = await gateway.chat(stream=stream, n=2)
            assert response.status_code == status
            assert response.json() == {
                "error": {"message": str(error), "type": kind, "param": None, "code": code}
            }
            assert ("retry-after" in response.headers) == (status == 429)
        with pytest.raises(openai.APIStatusError) as raised:
            await gateway.openai.chat.completions.create(model="default", messages=HI)
        assert raised.value.status_code == status


async def test_an_interrupted_answer_is_a_502_and_an_interrupted_stream_has_no_end() -> None:
    async with running_gateway() as gateway:
        gateway.network.fail_after = 3
        response = await gateway.chat(n=2)
        assert response.status_code == 502
        assert all(answer.cancelled.is_set() for answer in gateway.network.answers)
        response = await gateway.chat(stream=True)
        assert response.status_code == 200
        last = events(response.text)[-1]
        assert last["error"]["code"] == "answer_interrupted"
        with pytest.raises(openai.APIError, match="no standby"):
            async for _ in await gateway.openai.chat.completions.create(
                model="default", messages=HI, stream=True
            ):
                pass


async def test_an_answer_that_ends_too_soon_is_not_taken_for_complete() -> None:
    async with running_gateway(lambda _: [*b"abc"]) as gateway:
        response = await gateway.chat()
        assert response.status_code == 502
        assert "3 of 100 tokens" in response.json()["error"]["message"]


async def test_a_defect_is_a_500_that_tells_nothing() -> None:
    def broken(_: object) -> list[int]:
        raise KeyError("a secret")

    async with running_gateway(broken) as gateway:
        for stream in (False, True):
            response = await gateway.chat(stream=stream)
            assert response.status_code == (200 if stream else 500)
            assert "secret" not in response.text
            assert '"error"' in response.text
            assert "[DONE]" not in response.text
        assert gateway.service.admission.running == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_when_the_client_leaves_all_choices_are_cancelled_at_once(stream: bool) -> None:
    async with running_gateway() as gateway:
        gate = gateway.network.pause = Gate(free=2)
        async with httpx.AsyncClient(base_url=gateway.server.url) as client:
            body = {"model": "default", "messages": HI, "n": 3, "stream": stream}
            request = client.build_request("POST", "/v1/chat/completions", json=body)
            sending = asyncio.create_task(client.send(request, stream=True))
            await asyncio.wait_for(gate.reached.wait(), 5)
            if stream:
                await (await sending).aclose()
            else:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        async with asyncio.timeout(1):
            for answer in gateway.network.answers:
                await answer.cancelled.wait()
        assert len(gateway.network.answers) == 3
        await until(lambda: gateway.service.admission.running == 0)
        assert gateway.service.receipts.count == 0
        metrics = (await gateway.http.get("/metrics")).text
        assert "unisono_gateway_disconnects_total 1.0" in metrics


async def test_a_client_that_leaves_the_queue_is_forgotten() -> None:
    async with running_gateway(max_running_answers=1) as gateway:
        gate = gateway.network.pause = Gate(free=0)
        running = asyncio.create_task(gateway.chat())
        await asyncio.wait_for(gate.reached.wait(), 5)
        async with httpx.AsyncClient(base_url=gateway.server.url) as client:
            body = {"model": "default", "messages": HI}
            waiting = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await until(lambda: gateway.service.admission.queued == 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: gateway.service.admission.queued == 0)
        gate.opened.set()
        assert (await running).status_code == 200
        assert len(gateway.network.answers) == 1


async def test_a_silent_stream_is_kept_alive_by_comments() -> None:
    async with running_gateway(says("hello"), heartbeat_seconds=0.02) as gateway:
        gate = gateway.network.pause = Gate(free=2)
        asyncio.get_running_loop().call_later(0.3, gate.opened.set)
        response = await gateway.chat(stream=True)
        assert response.text.count(": keep-alive\n\n") >= 3
        *chunks, done = events(response.text)
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert (text, done) == ("hello", "[DONE]")
        gateway.network.pause = None
        stream = await gateway.openai.chat.completions.create(
            model="default", messages=HI, stream=True
        )
        assert [chunk async for chunk in stream]


async def test_a_choice_that_ends_early_does_not_end_the_others() -> None:
    def uneven(request: Any) -> list[int]:
        return says("a")(request) if request.sampling.seed == 1 else babble(request)

    async with running_gateway(uneven) as gateway:
        response = await gateway.chat(n=3, seed=1, stream=True, stream_options={"include_usage": 1})
        assert response.status_code == 400
        response = await gateway.chat(
            n=3, seed=1, stream=True, stream_options={"include_usage": True}
        )
        *chunks, usage, _ = events(response.text)
        ended = {
            chunk["choices"][0]["index"]: chunk["unisono"]["receipt"]
            for chunk in chunks
            if chunk["choices"][0]["finish_reason"]
        }
        assert set(ended) == {0, 1, 2}
        receipts = [await receipt_of(gateway, ended[i]) for i in range(3)]
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == sum(len(r.tokens) for r in receipts)
        assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks)


async def test_shutting_down_ends_open_streams_with_an_error_and_not_as_complete() -> None:
    async with running_gateway() as gateway:
        gate = gateway.network.pause = Gate(free=2)
        streaming = asyncio.create_task(gateway.chat(stream=True))
        whole = asyncio.create_task(gateway.chat())
        await asyncio.wait_for(gate.reached.wait(), 5)
        await until(lambda: len(gateway.network.answers) == 2)
        await gateway.server.close(grace_seconds=0.1)
        assert events((await streaming).text)[-1]["error"]["code"] == "shutting_down"
        assert (await whole).status_code == 503
        assert all(answer.cancelled.is_set() for answer in gateway.network.answers)
        with pytest.raises(httpx.ConnectError):
            await gateway.http.get("/healthz")


async def test_shutting_down_lets_answers_end_within_the_grace() -> None:
    async with running_gateway(says("hello")) as gateway:
        gate = gateway.network.pause = Gate(free=2)
        streaming = asyncio.create_task(gateway.chat(stream=True))
        await asyncio.wait_for(gate.reached.wait(), 5)
        asyncio.get_running_loop().call_later(0.2, gate.opened.set)
        await gateway.server.close(grace_seconds=10)
        assert events((await streaming).text)[-1] == "[DONE]"


async def test_a_client_that_does_not_read_keeps_no_node_and_no_shutdown_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unisono.gateway.server.FORCE_SECONDS", 0.1)
    model = scripted_model(context_length=40_000)
    async with running_gateway(says("x" * 30_000), model=model) as gateway:
        body = json.dumps({"model": "default", "messages": HI, "stream": True})
        _, writer = await asyncio.open_connection(
            gateway.server.host, gateway.server.port, limit=1024
        )
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body.encode())
        )
        await until(lambda: gateway.service.receipts.count == 1)
        await until(lambda: gateway.service.admission.running == 0)
        assert gateway.network.answers[0].finished_with == 30_001
        await gateway.server.close(grace_seconds=0)
        writer.transport.abort()
