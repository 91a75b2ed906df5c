"""A node as its peers see it: what it refuses, what it drops, and what it survives."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import (
    PROMPT,
    Peer,
    TinyNetwork,
    TinyNode,
    is_dropped,
    open_message,
    receive,
    request_for,
    tiny_network,
    tokens_body,
)
from unisono.models.cache import layer_groups, page_bytes
from unisono.types import Q16, LayerRange, PeerAddress, SampledToken, Sampling
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import (
    Attach,
    Attached,
    Claimed,
    Failed,
    Finish,
    Opened,
    Ping,
    Pong,
    Refused,
    Rows,
    Token,
)
from unisono.wire.records import Info, Probe
from unisono.wire.rows import encode_rows
from unisono.wire.transports.base import Stream

SESSION = "5e" * 16
GIVEN = tokens_body(1, 2, 3, 4)


async def one_node(net: TinyNetwork) -> tuple[TinyNode, Peer]:
    return net.nodes[0], await net.connect()


async def serves(net: TinyNetwork) -> None:
    """The node is as good as new."""
    await net.idle()
    answered = await net.answer(request_for(net.model, max_tokens=4))
    assert len(answered.tokens) == 4
    await net.idle()


async def opened(
    net: TinyNetwork, node: TinyNode, peer: Peer, body: bytes = GIVEN, **changes: Any
) -> Stream:
    """The control stream of a session that the node took."""
    stream = await peer.dial(node)
    message = open_message(net, node, peer.node_id, **changes)
    await stream.send(encode_frame(message, body))
    assert await receive(stream) == Opened(message.session)
    return stream


async def test_a_session_gives_tokens_and_then_a_claim(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        stream = await opened(net, node, peer)
        tokens = [await receive(stream) for _ in range(8)]
        assert [t.token.position for t in tokens if isinstance(t, Token)] == [*range(4, 12)]
        await stream.send(encode_frame(Finish(SESSION, 8)))
        frame = await stream.receive()
        message, body = decode_frame(frame)
        assert isinstance(message, Claimed)
        claim = message.joined(body)
        assert claim.signature_is_good()
        assert (claim.node, claim.positions) == (node.identity.node_id, 11)
        assert len(claim.out_tags) == 33


async def test_a_probe_is_answered_with_a_signed_record_and_a_ping_with_its_number(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        node, peer = await one_node(net)
        info = await peer.ask(node, Probe())
        assert isinstance(info, Info)
        assert info.record.signature_is_good()
        assert (info.record.node, info.record.layers) == (node.identity.node_id, LayerRange(0, 2))
        assert info.record.free_positions == node.worker.free_positions
        assert await peer.ask(node, Ping(77)) == Pong(77)


async def test_each_record_is_newer_than_the_one_before(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        records = [net.nodes[0].worker.record() for _ in range(5)]
        sequences = [r.sequence for r in records]
        assert sequences == sorted(set(sequences))


REFUSED: dict[str, tuple[dict[str, Any], bytes, str, str]] = {
    "another model": ({"model": "ab" * 32}, GIVEN, "not_held", "holds layers 0:4 of model"),
    "fewer layers": ({"layers": LayerRange(0, 3)}, GIVEN, "not_held", "not 0:3"),
    "other layers": ({"layers": LayerRange(1, 5)}, GIVEN, "not_held", "not 1:5"),
    "another gateway": ({"gateway": "cd" * 32}, GIVEN, "wrong_gateway", "another gateway"),
    "more positions than the model has": (
        {"positions": 1025, "max_tokens": 900},
        GIVEN,
        "too_long",
        "exceed the context of 1024",
    ),
    "room for less than the answer": ({"positions": 10}, GIVEN, "malformed", "10 positions"),
    "no tokens": ({}, b"", "malformed", "0 bytes of tokens; 4 tokens announced"),
    "too few tokens": ({}, GIVEN[:-4], "malformed", "12 bytes"),
    "half a token": ({}, GIVEN[:-1], "malformed", "15 bytes"),
    "a token that is none": ({}, tokens_body(1, 2, 3, 320), "malformed", "vocabulary of 320"),
    "a negative temperature": ({"sampling": Sampling(temperature=-1)}, GIVEN, "malformed", "temp"),
    "a negative top-k": ({"sampling": Sampling(top_k=-1)}, GIVEN, "malformed", "top_k"),
    "a top-p above one": ({"sampling": Sampling(top_p=Q16 + 1)}, GIVEN, "malformed", "top_p"),
    "a top-p below zero": ({"sampling": Sampling(top_p=-1)}, GIVEN, "malformed", "top_p"),
    "a min-p above one": ({"sampling": Sampling(min_p=Q16 + 1)}, GIVEN, "malformed", "min_p"),
    "a min-p below zero": ({"sampling": Sampling(min_p=-1)}, GIVEN, "malformed", "min_p"),
    "no repetition penalty at all": (
        {"sampling": Sampling(repetition_penalty=0)},
        GIVEN,
        "malformed",
        "repetition_penalty",
    ),
    "a bias of a token that is none": (
        {"sampling": Sampling(logit_bias=((320, 1),))},
        GIVEN,
        "malformed",
        "logit_bias",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_session_is_refused_with_a_code_and_the_reason(
    tiny_models: TinyModels, case: str
) -> None:
    changes, body, code, reason = REFUSED[case]
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        free = node.worker.free_positions
        message = open_message(net, node, peer.node_id)
        reply = await peer.ask(node, msgspec.structs.replace(message, **changes), body)
        assert isinstance(reply, Refused)
        assert reply.code == code
        assert reason in reply.message
        assert (node.worker.sessions, node.worker.free_positions) == (0, free)
        await serves(net)


async def test_tokens_for_a_middle_hop_are_refused(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        message = open_message(net, node, peer.node_id, hop=1, hops=3, next=node.address)
        reply = await peer.ask(node, message, GIVEN)
        assert isinstance(reply, Refused)
        assert reply.code == "malformed"


async def test_a_session_id_can_be_open_once(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        await opened(net, node, peer)
        reply = await peer.ask(node, open_message(net, node, peer.node_id), GIVEN)
        assert isinstance(reply, Refused)
        assert reply.code == "duplicate"
        assert node.worker.sessions == 1


async def test_memory_for_keys_and_values_has_a_limit_and_is_free_again_at_once(
    tiny_models: TinyModels,
) -> None:
    config = tiny_models.llama.manifest.config
    (group,) = layer_groups(config, LayerRange(0, 4))
    pages = 2 * page_bytes(config, group)
    async with tiny_network(tiny_models.llama, 1, kv_bytes=pages, overcommit=1) as net:
        node, peer = await one_node(net)
        assert node.worker.free_positions == 128
        stream = await opened(net, node, peer)
        assert node.worker.free_positions == 64
        second = open_message(net, node, peer.node_id, session="11" * 16)
        long = msgspec.structs.replace(second, positions=65)
        reply = await peer.ask(node, long, GIVEN)
        assert isinstance(reply, Refused)
        assert reply.code == "capacity"
        assert "65 positions do not fit: 64 are free" in reply.message
        fits = msgspec.structs.replace(second, positions=64)
        assert await peer.ask(node, fits, GIVEN) == Opened("11" * 16)
        await stream.close()
        await asyncio.sleep(0.01)
        assert (node.worker.sessions, node.worker.free_positions) == (0, 128)


async def test_a_cancelled_answer_frees_every_hop(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 3) as net:
        answer = await net.swarm.open(request_for(net.model, max_tokens=900))
        stream = aiter(answer)
        await anext(stream)
        assert net.sessions == 3
        await answer.cancel()
        await net.idle()
        assert all(node.engine.queued == 0 for node in net.nodes)
        await answer.cancel()


GARBAGE: dict[str, bytes] = {
    "nothing of a frame": b"GET / HTTP/1.1\r\n\r\n",
    "a header that is no message": b"UN\x01\0\x04\0\0\0\0\0\0\0\xff\xff\xff\xff",
    "a message of no kind": b"UN\x01\0\x0c\0\0\0\0\0\0\0\x81\xa4type\xa5hello"[:24],
    "a frame too large": b"UN\x01\0\x04\0\0\0\xff\xff\xff\xff",
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_a_peer_that_sends_garbage_first_is_dropped(
    tiny_models: TinyModels, what: str
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        stream: Any = await peer.dial(node)
        stream.push(GARBAGE[what])
        assert await is_dropped(stream)
        await serves(net)


@pytest.mark.parametrize(
    "message",
    [
        Finish(SESSION, 1),
        Opened(SESSION),
        Rows(SESSION, 0, b"\x04"),
        Token(SESSION, SampledToken(4, 1)),
        Pong(3),
        Failed(SESSION, "failed", "no", None),
    ],
    ids=lambda m: type(m).__name__,
)
async def test_a_stream_begins_with_what_begins_a_stream(
    tiny_models: TinyModels, message: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        stream = await peer.dial(node)
        await stream.send(encode_frame(message))
        assert await is_dropped(stream)
        assert f"a stream cannot begin with {type(message).__name__}" in caplog.text
        await serves(net)


async def test_a_peer_that_says_nothing_is_dropped(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.execution.worker.FIRST_MESSAGE_SECONDS", 0.05)
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        assert await is_dropped(await peer.dial(node))
        await serves(net)


async def test_a_session_whose_gateway_falls_silent_ends(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.execution.worker.SILENCE_SECONDS", 0.3)
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        stream = await opened(net, node, peer)
        for nonce in range(6):  # longer than the silence that is allowed
            await asyncio.sleep(0.1)
            await stream.send(encode_frame(Ping(nonce)))
        assert node.worker.sessions == 1
        assert await is_dropped(stream)
        await serves(net)


async def test_a_session_whose_gateway_goes_ends(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        await opened(net, node, peer)
        await peer.transport.close()
        await serves(net)


@pytest.mark.parametrize(
    "message",
    [Probe(), Finish("11" * 16, 1), Rows(SESSION, 0, b"\x04"), Attach(SESSION, 0, "tokens")],
    ids=["Probe", "Finish of another session", "Rows", "Attach"],
)
async def test_a_gateway_that_breaks_the_protocol_loses_its_session(
    tiny_models: TinyModels, message: Any
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        stream = await opened(net, node, peer)
        await stream.send(encode_frame(message))
        assert await is_dropped(stream)
        await serves(net)


async def test_a_claim_for_what_was_not_computed_is_refused_and_the_session_lives(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        stream = await opened(net, node, peer)
        for _ in range(8):
            await receive(stream)
        await stream.send(encode_frame(Finish(SESSION, 9)))
        reply = await receive(stream)
        assert isinstance(reply, Refused)
        assert reply.code == "not_computed"
        await stream.send(encode_frame(Finish(SESSION, 8)))
        assert isinstance(await receive(stream), Claimed)


class Middle:
    """The second of two hops, between a made-up first hop and a made-up gateway."""

    def __init__(self, net: TinyNetwork, peer: Peer, control: Stream, rows: Stream) -> None:
        self.net, self.peer, self.control, self.rows = net, peer, control, rows

    async def fails(self, code: str, reason: str) -> None:
        """The node blames the peer that sent the rows, to the gateway."""
        failed = await receive(self.control)
        assert isinstance(failed, Failed)
        assert failed.code == code
        assert reason in failed.message
        assert failed.peer == self.peer.node_id
        await self.control.close()
        await self.net.idle()


async def middle(net: TinyNetwork) -> Middle:
    """A last hop of layers 2:4 that waits for rows."""
    node, peer = net.nodes[1], await net.connect()
    first = PeerAddress(peer.node_id, "memory", ("memory:none",))
    changes = {"hop": 1, "hops": 2, "first": first}
    control = await opened(net, node, peer, **changes)
    rows = await peer.dial(node)
    await rows.send(encode_frame(Attach(SESSION, 1, "rows")))
    assert await receive(rows) == Attached(SESSION)
    return Middle(net, peer, control, rows)


def rows_frame(position: int, count: int, session: str = SESSION, hidden: int = 64) -> bytes:
    widths, encoded = encode_rows(np.ones((count, hidden), dtype=np.int64))
    return encode_frame(Rows(session, position, widths), b"".join(encoded))


BAD_ROWS: dict[str, tuple[bytes, str]] = {
    "rows that start later": (rows_frame(1, 2), "position 0 was next"),
    "rows of another session": (rows_frame(0, 2, "11" * 16), "Rows where rows were expected"),
    "rows before their token": (rows_frame(0, 5), "before its token"),
    "rows past the session": (rows_frame(0, 13), "in a session of 12 positions"),
    "rows of another width": (rows_frame(0, 2, hidden=32), "rows of 64 values take 512 bytes"),
    "a message that is none of rows": (encode_frame(Ping(1)), "Ping where rows were expected"),
    "a token": (encode_frame(Token(SESSION, SampledToken(4, 1))), "Token where rows"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
async def test_a_hop_that_sends_bad_rows_is_named_to_the_gateway(
    tiny_models: TinyModels, what: str
) -> None:
    frame, reason = BAD_ROWS[what]
    async with tiny_network(tiny_models.llama, 2) as net:
        between = await middle(net)
        await between.rows.send(frame)
        await between.fails("peer_lost", reason)
        await serves(net)


async def test_rows_that_come_twice_are_refused(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        between = await middle(net)
        for _ in range(2):
            await between.rows.send(rows_frame(0, 2))
        await between.fails("peer_lost", "rows from position 0 came when position 2 was next")
        await serves(net)


async def test_garbage_between_hops_names_the_hop_that_sent_it(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        between = await middle(net)
        rows: Any = between.rows
        rows.push(b"no frame at all")
        await between.fails("peer_lost", "a frame starts with")
        await serves(net)


async def test_a_hop_that_leaves_is_named_to_the_gateway(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        between = await middle(net)
        await between.rows.close()
        await between.fails("peer_lost", "closed")
        await serves(net)


async def test_a_first_hop_that_cannot_be_reached_is_named(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        between = await middle(net)
        await between.rows.send(rows_frame(0, 4))
        assert isinstance(await receive(between.control), Token)
        await between.fails("peer_lost", "cannot be reached")


@pytest.mark.parametrize(
    ("session", "hop", "kind"),
    [("11" * 16, 1, "rows"), (SESSION, 0, "rows"), (SESSION, 1, "tokens"), (SESSION, 2, "rows")],
)
async def test_only_the_stream_that_a_session_waits_for_may_attach(
    tiny_models: TinyModels, session: Any, hop: int, kind: Any
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        await middle(net)
        peer = await net.connect()
        reply = await peer.ask(net.nodes[1], Attach(session, hop, kind))
        assert isinstance(reply, Refused)
        assert reply.code == "unknown_session"


async def test_a_second_stream_of_rows_is_refused(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        between = await middle(net)
        reply = await between.peer.ask(net.nodes[1], Attach(SESSION, 1, "rows"))
        assert isinstance(reply, Refused)
        assert reply.code == "duplicate"


async def first_hop(net: TinyNetwork) -> tuple[Stream, Stream, Peer]:
    """A first hop of layers 0:2 whose next hop, last hop and gateway are this test."""
    node, peer = net.nodes[0], await net.connect()
    address = await peer.transport.bind()

    async def take_rows(stream: Stream) -> None:
        assert isinstance(await receive(stream), Attach)
        await stream.send(encode_frame(Attached(SESSION)))
        while True:
            await stream.receive()

    peer.serving = asyncio.create_task(peer.transport.serve(take_rows))  # type: ignore[attr-defined]
    control = await opened(net, node, peer, hops=2, next=address)
    back = await peer.dial(node)
    await back.send(encode_frame(Attach(SESSION, 0, "tokens")))
    assert await receive(back) == Attached(SESSION)
    return control, back, peer


BAD_TOKENS: dict[str, tuple[list[bytes], str]] = {
    "several tokens at once": (
        [
            encode_frame(Token(SESSION, SampledToken(4, 1))),
            encode_frame(Token(SESSION, SampledToken(5, 1))),
            encode_frame(Token(SESSION, SampledToken(6, 1))),
        ],
        "before its turn",
    ),
    "a token of a later position": (
        [encode_frame(Token(SESSION, SampledToken(5, 1)))],
        "position 5 came before its turn: position 4 is next",
    ),
    "a token of the prompt": ([encode_frame(Token(SESSION, SampledToken(3, 1)))], "position 4"),
    "a token that is none": ([encode_frame(Token(SESSION, SampledToken(4, 320)))], "vocabulary"),
    "a token of another session": (
        [encode_frame(Token("11" * 16, SampledToken(4, 1)))],
        "where a token was expected",
    ),
    "rows": ([rows_frame(4, 1)], "Rows where a token was expected"),
}


@pytest.mark.parametrize("what", BAD_TOKENS)
async def test_a_last_hop_that_sends_bad_tokens_is_named_to_the_gateway(
    tiny_models: TinyModels, what: str
) -> None:
    frames, reason = BAD_TOKENS[what]
    async with tiny_network(tiny_models.llama, 2) as net:
        control, back, peer = await first_hop(net)
        for frame in frames:
            await back.send(frame)
        failed = await receive(control)
        assert isinstance(failed, Failed)
        assert reason in failed.message
        assert failed.peer == peer.node_id
        await control.close()
        await serves(net)


async def test_a_next_hop_that_does_not_know_the_session_is_named(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        peer = await net.connect()
        message = open_message(net, net.nodes[0], peer.node_id, hops=2, next=net.nodes[1].address)
        reply = await peer.ask(net.nodes[0], message, GIVEN)
        assert isinstance(reply, Failed)
        assert reply.peer == net.nodes[1].identity.node_id
        assert "no such session" in reply.message
        await serves(net)


async def test_a_next_hop_that_never_answers_is_named(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.execution.flow.ATTACH_SECONDS", 0.05)
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        address = await (await net.connect(silent := Identity.generate())).transport.bind()
        message = open_message(net, node, peer.node_id, hops=2, next=address)
        reply = await peer.ask(node, message, GIVEN)
        assert isinstance(reply, Failed)
        assert reply.peer == silent.node_id
        assert "did not answer" in reply.message


async def test_a_defect_in_a_node_reaches_the_gateway_and_other_sessions_go_on(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)

        def broken(*_: Any) -> Any:
            raise RuntimeError("a secret detail")

        stream = await peer.dial(node)
        with monkeypatch.context() as patch:
            patch.setattr(node.engine, "_compute", broken)
            message = open_message(net, node, peer.node_id)
            await stream.send(encode_frame(message, GIVEN))
            assert isinstance(await receive(stream), Opened)
            failed = await receive(stream)
        assert isinstance(failed, Failed)
        assert failed.peer is None
        assert "RuntimeError" in failed.message
        assert "secret" not in failed.message
        await stream.close()
        await serves(net)


async def test_a_hundred_sessions_that_come_and_go_leave_nothing_behind(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        requests = [
            request_for(net.model, prompt=PROMPT[: 1 + i % 7], max_tokens=1 + i % 3)
            for i in range(100)
        ]
        answers = await asyncio.gather(*(net.answer(r) for r in requests))
        assert [len(a.tokens) for a in answers] == [r.max_tokens for r in requests]
        await net.idle()
        assert not net.swarm._extra
        assert all(not node.transport.streams for node in net.nodes)
