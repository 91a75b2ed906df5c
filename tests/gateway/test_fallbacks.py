"""What a gateway does when its network is in trouble, and what it says about it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from tests.gateway.endpoint import HEAD, Behaviour, Exchange, endpoint, hangs, refuses, sends, tells
from tests.gateway.running import Gate, Running, running_gateway, until
from tests.gateway.scripted import ByteTokenizer, ScriptedNetwork, says, scripted_model
from tests.gateway.test_answers import events
from unisono.errors import (
    CapacityMissing,
    ConfigurationError,
    CoverageMissing,
    PeerGone,
    ReceiptError,
)
from unisono.gateway import (
    ModelFallback,
    RemoteFallback,
    ReplicaFallback,
    ServedModel,
    parse_fallbacks,
)
from unisono.gateway.remote import RemoteLimits
from unisono.types import ModelId, digest
from unisono.verification.receipt import from_json, read_json
from unisono.verification.unverified import UnverifiedReceipt
from unisono.wire.identity import Identity

OTHER = ModelId(digest("test/other").hex())
QUICK = RemoteLimits(
    connect_seconds=1,
    first_seconds=0.2,
    silence_seconds=0.2,
    total_seconds=5,
    answer_bytes=20_000,
    event_bytes=2_000,
)


def remote(url: str, **changes: Any) -> RemoteFallback:
    return RemoteFallback(url, "far-model", **{"limits": QUICK, **changes})


def other_model(**changes: Any) -> ServedModel:
    return scripted_model(**{"name": "other-2b", "id": OTHER, "aliases": (), **changes})


def without_layers(gateway: Running) -> None:
    """The second half of the model's layers has no live holder."""
    gateway.network.alive[1] = False
    gateway.network.open_error = CoverageMissing("no live node holds layers 2:4")


async def unverified(gateway: Running, name: str) -> UnverifiedReceipt:
    data = (await gateway.http.get(f"/v1/receipts/{name}")).content
    read = read_json(data)
    assert isinstance(read, UnverifiedReceipt)
    return read


async def count(gateway: Running, line: str) -> bool:
    return line in (await gateway.http.get("/metrics")).text


async def test_a_healthy_network_says_so_and_nothing_else() -> None:
    async with running_gateway() as gateway:
        for stream in (False, True):
            headers = (await gateway.chat(stream=stream)).headers
            assert headers["x-unisono-availability"] == "1"
            assert "x-unisono-degraded" not in headers
            assert "x-unisono-fallback" not in headers
            assert "x-unisono-verified" not in headers


@pytest.mark.parametrize("stream", [False, True])
async def test_clients_are_told_below_the_threshold_and_no_sooner(stream: bool) -> None:
    async with running_gateway(says("ok"), availability_threshold=900) as gateway:
        gateway.network.standbys = 8
        gateway.network.standbys_alive = 7
        headers = (await gateway.chat(stream=stream)).headers
        assert headers["x-unisono-availability"] == "0.9"
        assert "x-unisono-degraded" not in headers
        gateway.network.standbys_alive = 6
        response = await gateway.chat(stream=stream)
        assert response.status_code == 200
        assert response.headers["x-unisono-availability"] == "0.8"
        assert response.headers["x-unisono-degraded"] == "availability"
        assert "x-unisono-fallback" not in response.headers
        assert await count(gateway, 'availability{model="scripted-1b"} 0.8')


async def test_nodes_that_vanish_count_against_availability() -> None:
    async with running_gateway(says("ok")) as gateway:
        gateway.network.standbys = gateway.network.standbys_alive = 3
        assert (await gateway.chat()).headers["x-unisono-availability"] == "1"
        gateway.network.standbys = gateway.network.standbys_alive = 1
        assert (await gateway.chat()).headers["x-unisono-availability"] == "0.6"
        shown = (await gateway.http.get("/v1/network")).json()
        assert len(shown["departed"]) == 2
        assert shown["models"][0]["known"] == 5


async def test_a_missing_layer_is_another_error_than_missing_room_and_a_missing_network() -> None:
    async with running_gateway(retry_after_seconds=3) as gateway:
        without_layers(gateway)
        for stream in (False, True):
            response = await gateway.chat(stream=stream)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "coverage_missing"
            assert response.headers["x-unisono-degraded"] == "coverage"
            assert response.headers["x-unisono-availability"] == "0.5"
        gateway.network.alive[0] = False
        response = await gateway.chat()
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "network_unreachable"
        assert "unisono node --join" in response.json()["error"]["message"]
        assert response.headers["retry-after"] == "5"
        assert response.headers["x-unisono-degraded"] == "unreachable"
        gateway.network.alive[:] = [True, True]
        gateway.network.open_error = CapacityMissing("every chain is full")
        response = await gateway.chat()
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "capacity_missing"
        assert response.headers["retry-after"] == "3"
        assert response.headers["x-unisono-degraded"] == "capacity"
        assert gateway.service.admission.running == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_another_model_answers_and_is_named_and_receipted(stream: bool) -> None:
    other = other_model(tokenizer=ByteTokenizer(words=(b"?",)))
    async with running_gateway(
        says("other"), others=[other], fallbacks=[ModelFallback("other-2b")]
    ) as gateway:
        gateway.network.held = OTHER
        response = await gateway.chat(stream=stream)
        assert response.status_code == 200
        assert response.headers["x-unisono-fallback"] == "model:other-2b"
        assert response.headers["x-unisono-availability"] == "0"
        assert response.headers["x-unisono-degraded"] == "coverage"
        assert "x-unisono-verified" not in response.headers
        answer = events(response.text)[-2] if stream else response.json()
        assert answer["model"] == "other-2b"
        assert answer["system_fingerprint"] == OTHER
        name = response.headers["x-unisono-receipt"]
        receipt = from_json((await gateway.http.get(f"/v1/receipts/{name}")).content)
        assert receipt.request.model == OTHER
        assert await count(gateway, 'fallbacks_total{kind="model",reason="coverage"} 1.0')


async def test_another_model_is_passed_over_when_it_is_in_trouble_or_reads_other_tokens() -> None:
    async with running_gateway(
        others=[other_model()], fallbacks=[ModelFallback("other-2b")]
    ) as gateway:
        without_layers(gateway)
        response = await gateway.chat()
        assert response.status_code == 503
        message = response.json()["error"]["message"]
        assert "no live node holds layers 2:4" in message
        assert "model:other-2b: 'other-2b' is in trouble too (coverage)" in message
        gateway.network.held = OTHER
        gateway.network.alive[1] = True
        for fields in ({"prompt": [1, 2]}, {"prompt": "a", "logit_bias": {"5": 1}}):
            body = {"model": "default", "max_tokens": 3, **fields}
            response = await gateway.http.post("/v1/completions", json=body)
            assert response.json()["error"]["code"] == "coverage_missing"
            assert "token ids" in response.json()["error"]["message"]


async def test_another_model_that_has_no_room_for_the_prompt_is_passed_over() -> None:
    async with running_gateway(
        others=[other_model(context_length=8)],
        fallbacks=[ModelFallback("other-2b"), ModelFallback("scripted-1b")],
    ) as gateway:
        gateway.network.held = OTHER
        gateway.network.open_error = CoverageMissing("gone")
        message = (await gateway.chat()).json()["error"]["message"]
        assert "maximum context length is 8 tokens" in message
        assert "the model that was asked for" in message


async def test_a_replica_answers_with_receipts_of_its_own() -> None:
    replica = ScriptedNetwork(says("near"), gateway=Identity.generate())
    async with running_gateway(
        fallbacks=[ModelFallback("scripted-1b"), ReplicaFallback(replica)]
    ) as gateway:
        without_layers(gateway)
        response = await gateway.chat()
        assert response.headers["x-unisono-fallback"] == "replica"
        assert response.json()["choices"][0]["message"]["content"] == "near"
        assert response.json()["system_fingerprint"]
        name = response.headers["x-unisono-receipt"]
        receipt = from_json((await gateway.http.get(f"/v1/receipts/{name}")).content)
        assert [claim.node for claim in receipt.hops] == [hop.node_id for hop in replica.hops]
        ready = await gateway.http.get("/readyz")
        assert ready.status_code == 200
        assert ready.text.startswith("ready by fallback to replica: no live node")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_remote_answer_is_passed_on_and_marked_as_unverified(stream: bool) -> None:
    async with (
        endpoint(tells("Hel", "lo", finish="length")) as far,
        running_gateway(fallbacks=[remote(far.url, key="sk-far")]) as gateway,
    ):
        without_layers(gateway)
        response = await gateway.chat(stream=stream, seed=4, temperature=0.5, stop="END")
        assert response.status_code == 200
        host = far.url.removeprefix("http://").removesuffix("/v1")
        assert response.headers["x-unisono-fallback"] == f"remote:{host}"
        assert response.headers["x-unisono-verified"] == "false"
        name = response.headers["x-unisono-receipt"]
        if stream:
            *chunks, done = events(response.text)
            assert done == "[DONE]"
            deltas = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
            assert deltas == ["", "Hel", "lo", None]
            assert chunks[-1]["choices"][0]["finish_reason"] == "length"
            assert chunks[-1]["unisono"] == {"receipt": name, "verified": False}
            answer = chunks[-1]
        else:
            answer = response.json()
            assert answer["choices"][0]["message"]["content"] == "Hello"
            assert answer["unisono"] == {"receipts": [name], "verified": False}
            assert answer["usage"]["completion_tokens"] == 5
        assert answer["model"] == "far-model"
        assert answer["system_fingerprint"] is None
        receipt = await unverified(gateway, name)
        assert receipt.signature_is_good()
        assert receipt.verified is False
        assert (receipt.source, receipt.source_model) == (far.url, "far-model")
        (asked,) = far.exchanges
        assert asked.path == "/v1/chat/completions"
        assert asked.headers["authorization"] == "Bearer sk-far"
        assert asked.body == {
            "model": "far-model",
            "stream": True,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 100,
            "temperature": 0.5,
            "stop": ["END"],
            "seed": 4,
        }
        assert await count(gateway, 'fallbacks_total{kind="remote",reason="coverage"} 1.0')
        assert gateway.service.admission.running == 0


async def test_remote_choices_are_asked_one_by_one_with_seeds_of_their_own() -> None:
    async def echo(exchange: Exchange) -> None:
        await tells(exchange.body["prompt"])(exchange)

    async with endpoint(echo) as far, running_gateway(fallbacks=[remote(far.url)]) as gateway:
        without_layers(gateway)
        body = {"model": "default", "prompt": ["one", "two"], "n": 2, "seed": 4, "stop": "wo"}
        response = await gateway.http.post("/v1/completions", json=body)
        texts = [choice["text"] for choice in response.json()["choices"]]
        assert texts == ["one", "one", "t", "t"]
        seeds = {(e.body["prompt"], e.body["seed"]) for e in far.exchanges}
        assert len(seeds) == 4
        assert {("one", 4), ("two", 4)} <= seeds
        assert all("n" not in e.body and "authorization" not in e.headers for e in far.exchanges)
        assert len(set(response.headers["x-unisono-receipt"].split(","))) == 4


FAULTS: dict[str, tuple[Behaviour, str]] = {
    "hangs": (hangs, "did not answer within 0.2 seconds"),
    "hangs after its headers": (sends(), "ended the stream before"),
    "refuses": (refuses(401, b'{"error": {"message": "bad key sk-far"}}'), "status 401"),
    "is busy": (refuses(429), "status 429"),
    "redirects": (refuses(302, headers="location: http://127.0.0.1:9/\r\n"), "status 302"),
    "is no endpoint": (
        refuses(200, b"<html>", "content-type: text/html\r\n"),
        "not with an event stream",
    ),
    "compresses": (
        sends(
            b"x",
            head=HEAD.replace(b"\r\nconn", b"\r\ncontent-encoding: gzip\r\nconn"),
        ),
        "compressed",
    ),
    "sends garbage": (sends(b"data: {not json\n\n"), "no chunk"),
    "sends another shape": (sends(b'data: {"choices": 5}\n\n'), "no chunk"),
    "nests deeply": (sends(b"data: " + b"[" * 1500 + b"\n\n"), "no chunk"),
    "sends an error": (sends(b'data: {"error": {"message": "secret"}}\n\n'), "reported an error"),
    "sends another choice": (
        sends(b'data: {"choices": [{"index": 7, "delta": {"content": "x"}}]}\n\n'),
        "choice 7",
    ),
    "never ends its line": (sends(b"data: " + b"x" * 3000), "event of more than 2000 bytes"),
    "sends comments forever": (sends(*[b": wait\n\n"] * 5000), "more than 20000 bytes"),
    "speaks no HTTP": (sends(b"hello", head=b"SSH-2.0-far\r\n"), "cannot be read"),
    "closes at once": (sends(head=b""), "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_remote_endpoint_that_fails_at_once_costs_only_its_turn(
    fault: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    behaviour, message = FAULTS[fault]
    async with (
        endpoint(behaviour) as bad,
        endpoint(tells("good")) as good,
        running_gateway(fallbacks=[remote(bad.url, key="sk-far"), remote(good.url)]) as gateway,
    ):
        without_layers(gateway)
        with caplog.at_level(logging.WARNING, "unisono.gateway"):
            response = await gateway.chat(stream=stream)
        assert response.status_code == 200
        assert "good" in response.text
        assert message in caplog.text
        assert "sk-far" not in caplog.text
        assert "secret" not in caplog.text
        assert await count(gateway, 'fallback_failures_total{kind="remote"} 1.0')


async def test_when_every_fallback_fails_the_error_is_the_networks_and_says_what_was_tried() -> (
    None
):
    async with (
        endpoint(refuses(500)) as far,
        running_gateway(fallbacks=[remote(far.url)]) as gateway,
    ):
        without_layers(gateway)
        response = await gateway.chat()
        assert response.status_code == 503
        error = response.json()["error"]
        assert error["code"] == "coverage_missing"
        assert "no live node holds layers 2:4 (fallbacks: remote:127.0.0.1:" in error["message"]
        assert "status 500" in error["message"]
        assert "x-unisono-fallback" not in response.headers
        assert gateway.service.admission.running == 0


async def test_an_endpoint_that_failed_is_left_alone_for_a_while() -> None:
    async with (
        endpoint(refuses(500)) as far,
        running_gateway(fallbacks=[remote(far.url)]) as gateway,
    ):
        without_layers(gateway)
        messages = [(await gateway.chat()).json()["error"]["message"] for _ in range(3)]
        assert len(far.exchanges) == 1
        assert "failed lately and is asked again in" in messages[2]


async def cut(exchange: Exchange) -> None:
    await exchange.send(HEAD)
    await exchange.event(exchange.chunk("half an"))


async def stalls(exchange: Exchange) -> None:
    await cut(exchange)
    for _ in range(100):
        await exchange.send(b": still here\n\n")
        try:
            async with asyncio.timeout(0.02):
                await exchange.gone.wait()
            return
        except TimeoutError:
            pass


async def spoils(exchange: Exchange) -> None:
    await cut(exchange)
    await exchange.event(b"\xff\xfe")


async def floods(exchange: Exchange) -> None:
    await cut(exchange)
    for _ in range(100):
        await exchange.event(exchange.chunk("x" * 500))


@pytest.mark.parametrize("behaviour", [cut, stalls, spoils, floods])
async def test_a_remote_endpoint_that_fails_in_the_middle_ends_the_stream_with_an_error(
    behaviour: Behaviour,
) -> None:
    async with (
        endpoint(behaviour) as far,
        running_gateway(fallbacks=[remote(far.url)]) as gateway,
    ):
        without_layers(gateway)
        *_, last = events((await gateway.chat(stream=True)).text)
        assert last["error"]["code"] == "answer_interrupted"
        gateway.service._fallbacks[0]._endpoint._rests_until = 0.0
        whole = await gateway.chat()
        assert whole.status_code == 502
        assert whole.json()["error"]["code"] == "answer_interrupted"
        assert whole.headers["x-unisono-verified"] == "false"
        assert gateway.service.receipts.count == 0
        assert gateway.service.admission.running == 0
        await until(lambda: all(each.gone.is_set() for each in far.exchanges))


async def test_a_client_that_leaves_ends_the_remote_answer() -> None:
    async def slow(exchange: Exchange) -> None:
        await cut(exchange)
        await exchange.gone.wait()

    limits = RemoteLimits(silence_seconds=30)
    async with (
        endpoint(slow) as far,
        running_gateway(fallbacks=[remote(far.url, limits=limits)]) as gateway,
    ):
        without_layers(gateway)
        stream = await gateway.openai.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        assert (await anext(stream)).choices
        await stream.close()
        await until(lambda: far.exchanges[0].gone.is_set())
        await until(lambda: gateway.service.admission.running == 0)


async def test_what_a_remote_endpoint_cannot_be_asked_is_not_sent_there() -> None:
    async with (
        endpoint(tells("no")) as far,
        running_gateway(fallbacks=[remote(far.url)]) as gateway,
    ):
        without_layers(gateway)
        response = await gateway.chat(logprobs=True)
        assert "log probabilities" in response.json()["error"]["message"]
        body = {"model": "default", "prompt": [[1, 2]], "max_tokens": 3}
        response = await gateway.http.post("/v1/completions", json=body)
        assert "token ids" in response.json()["error"]["message"]
        assert far.exchanges == []


async def test_fallbacks_are_asked_first_in_trouble_and_the_network_is_the_last_resort() -> None:
    async with (
        endpoint(tells("far")) as far,
        running_gateway(says("near"), fallbacks=[remote(far.url)]) as gateway,
    ):
        gateway.network.standbys = 8
        response = await gateway.chat()
        assert "far" in response.text
        assert gateway.network.answers == []
        far.behaviour = refuses(500)
        response = await gateway.chat()
        assert response.json()["choices"][0]["message"]["content"] == "near"
        assert response.headers["x-unisono-degraded"] == "availability"
        assert "x-unisono-fallback" not in response.headers
        assert "unisono" in response.json()


async def test_with_threshold_zero_only_a_missing_layer_is_trouble() -> None:
    async with (
        endpoint(tells("far")) as far,
        running_gateway(
            says("near"), fallbacks=[remote(far.url)], availability_threshold=0
        ) as gateway,
    ):
        gateway.network.standbys = 8
        response = await gateway.chat()
        assert "near" in response.text
        assert "x-unisono-degraded" not in response.headers
        gateway.network.alive[0] = False
        assert "far" in (await gateway.chat()).text


@pytest.mark.parametrize(
    ("error", "code", "when_full", "reason"),
    [
        (CapacityMissing("full"), "capacity_missing", False, None),
        (CapacityMissing("full"), None, True, "capacity"),
        (CoverageMissing("gone just now"), None, False, "coverage"),
        (PeerGone("lost"), None, False, "error"),
    ],
)
async def test_a_network_that_fails_unforeseen_is_followed_by_fallbacks(
    error: Exception, code: str | None, when_full: bool, reason: str | None
) -> None:
    async with (
        endpoint(tells("far")) as far,
        running_gateway(fallbacks=[remote(far.url)], fall_back_when_full=when_full) as gateway,
    ):
        gateway.network.open_error = error
        response = await gateway.chat()
        if code is not None:
            assert response.json()["error"]["code"] == code
            assert far.exchanges == []
            return
        assert "far" in response.text
        assert response.headers["x-unisono-degraded"] == reason
        assert response.headers["x-unisono-availability"] == "1"


async def test_the_place_of_a_request_is_kept_while_its_sources_change() -> None:
    gate = Gate(free=0)

    async def waits(exchange: Exchange) -> None:
        await gate(0)
        await tells("far")(exchange)

    limits = RemoteLimits(first_seconds=30)
    async with (
        endpoint(waits) as far,
        running_gateway(
            fallbacks=[remote(far.url, limits=limits)], max_running_answers=2
        ) as gateway,
    ):
        gateway.network.open_error = CoverageMissing("gone")
        asking = asyncio.create_task(gateway.chat(n=2))
        await asyncio.wait_for(gate.reached.wait(), 5)
        assert gateway.service.admission.running == 2
        gate.opened.set()
        assert (await asking).status_code == 200
        await until(lambda: gateway.service.admission.running == 0)


def test_fallbacks_are_read_as_an_operator_writes_them(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("sk-file\n")
    monkeypatch.setenv("FAR_KEY", "sk-variable")
    parsed = parse_fallbacks(
        ["model:gemma", "remote:org/m@8b@https://a.example/v1", "remote:m@http://b.example:81/v1"],
        ["env:FAR_KEY", f"b.example:81=file:{tmp_path / 'key'}"],
    )
    assert parsed == (
        ModelFallback("gemma"),
        RemoteFallback("https://a.example/v1", "org/m@8b", "sk-variable"),
        RemoteFallback("http://b.example:81/v1", "m", "sk-file"),
    )
    assert "sk-" not in repr(parsed)


@pytest.mark.parametrize(
    ("chain", "keys", "message"),
    [
        (["gemma"], [], "is no fallback"),
        (["model:"], [], "is no fallback"),
        (["remote:m@ftp://a"], [], "is no fallback"),
        (["replica"], [], "none runs"),
        (["remote:m@http://a"], ["sk-secret"], "the key itself must not be written"),
        (["remote:m@http://a"], ["env:UNSET_KEY_OF_A_TEST"], "holds no key"),
        (["remote:m@http://a"], ["file:/nowhere/key"], "cannot read the key"),
        (["remote:m@http://a"], ["b=env:HOME"], "a key for b is given"),
    ],
)
def test_fallbacks_that_cannot_be_read_are_refused(
    chain: list[str], keys: list[str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        parse_fallbacks(chain, keys)
    assert "sk-secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("fallback", "message"),
    [
        (ModelFallback("nobody"), "not served by this gateway"),
        (RemoteFallback("ftp://a/v1", "m"), "is no endpoint"),
        (RemoteFallback("http://user:secret@a/v1", "m"), "holds credentials"),
        (RemoteFallback("http://a/v1?key=secret", "m"), "holds credentials"),
        (RemoteFallback("http://a/v1", ""), "name the model"),
    ],
)
async def test_fallbacks_that_cannot_work_are_refused_at_the_start(
    fallback: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        async with running_gateway(fallbacks=[fallback]):
            pass
    assert "secret" not in str(refused.value)


async def test_attempts_are_counted_per_chain() -> None:
    async with running_gateway(says("ok")) as gateway:
        await gateway.chat(n=2)
        assert await count(gateway, 'attempts_total{model="scripted-1b"} 2.0')


def test_the_receipt_of_a_remote_answer_cannot_pass_for_one_of_the_network() -> None:
    document = {"verified": False, "version": 1, "id": "0" * 32, "hops": []}
    for changes in ({}, {"verified": True}, {"verified": "no"}):
        with pytest.raises(ReceiptError, match="not a receipt"):
            read_json(json.dumps({**document, **changes}).encode())
