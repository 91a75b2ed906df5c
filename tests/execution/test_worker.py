"""A node as its peers see it: what it refuses, what it drops, and what it survives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import (
    PROMPT,
    Line,
    Peer,
    TinyNetwork,
    TinyNode,
    is_dropped,
    open_message,
    request_for,
    tiny_network,
    tokens_body,
)
from unisono.execution.draft import Drafter, Guess
from unisono.models.cache import layer_groups, page_bytes
from unisono.types import Q16, LayerRange, NodeId, PeerAddress, SampledToken, Sampling
from unisono.wire.frames import encode_frame
from unisono.wire.messages import (
    Bundle,
    Claimed,
    Close,
    Failed,
    Finish,
    Message,
    Multiplex,
    Opened,
    Ping,
    Pong,
    Refused,
    Rewire,
    Rewired,
    Rows,
    Tokens,
)
from unisono.wire.packing import pack, unpack
from unisono.wire.records import Info, Probe
from unisono.wire.rows import encode_rows

SESSION: Any = "5e" * 16
OTHER: Any = "11" * 16
GIVEN = tokens_body(1, 2, 3, 4)
NOWHERE = PeerAddress(NodeId("77" * 32), "memory", ("memory:none",))


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
) -> Line:
    """A gateway's link with a node that took a session."""
    line = await peer.link(node)
    message = open_message(net, node, peer.node_id, **changes)
    await line.send(message, body)
    assert await line.message() == Opened(message.session)
    return line


async def ask(net: TinyNetwork, node: TinyNode, body: bytes = GIVEN, **changes: Any) -> Message:
    """What a node says to an `Open` of a new gateway, which then goes."""
    peer = await net.connect()
    line = await peer.link(node)
    await line.send(open_message(net, node, peer.node_id, **changes), body)
    try:
        return await line.message()
    finally:
        await line.close()


async def test_a_session_gives_tokens_and_then_a_claim(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer)
        assert [t.position for t in await line.tokens(8)] == [*range(4, 12)]
        await line.send(Finish(SESSION, 8))
        message, body = await line.receive()
        assert isinstance(message, Claimed)
        claim = message.joined(body)
        assert claim.signature_is_good()
        assert (claim.node, claim.positions) == (node.identity.node_id, 11)
        assert len(claim.out_tags) == 33
        await line.send(Close(SESSION))
        await serves(net)


async def test_one_link_carries_many_sessions(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await peer.link(node)
        sessions: list[Any] = [f"{i:02x}" * 16 for i in range(1, 6)]
        for session in sessions:
            await line.send(open_message(net, node, peer.node_id, session=session), GIVEN)
        found: dict[str, list[SampledToken]] = {}
        while sum(len(tokens) for tokens in found.values()) < 5 * 8:
            message = await line.message()
            if isinstance(message, Opened):
                found[message.session] = []
            else:
                assert isinstance(message, Tokens)
                found[message.session] += message.tokens
        assert list(found) == sessions
        assert [t.position for t in found[sessions[0]]] == [*range(4, 12)]
        assert all(tokens == found[sessions[0]] for tokens in found.values())
        await line.send(Close(sessions[0]))
        await line.send(Close(sessions[1]))
        await line.send(Close(sessions[1]))
        await asyncio.sleep(0.01)
        assert node.worker.sessions == 3
        await line.close()
        await serves(net)


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
        line = await peer.link(node)
        message = open_message(net, node, peer.node_id)
        await line.send(msgspec.structs.replace(message, **changes), body)
        reply = await line.message()
        assert isinstance(reply, Refused)
        assert reply.code == code
        assert reply.session == SESSION
        assert reason in reply.message
        assert (node.worker.sessions, node.worker.free_positions) == (0, free)
        await line.send(message, GIVEN)  # the link is as good as before
        assert await line.message() == Opened(SESSION)
        await line.close()
        await serves(net)


async def test_tokens_for_a_middle_hop_are_refused(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node = net.nodes[0]
        place = {"hop": 1, "hops": 3, "previous": "ab" * 32, "next": NOWHERE}
        reply = await ask(net, node, **place)
        assert isinstance(reply, Refused)
        assert reply.code == "malformed"
        for hop in (0, 2):  # those at the ends need them
            reply = await ask(net, node, b"", **(place | {"hop": hop}))
            assert isinstance(reply, Refused)
            assert "4 tokens announced" in reply.message


async def test_a_node_that_is_leaving_takes_no_sessions(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer)
        node.worker.leaving = True
        assert node.worker.record().leaving
        reply = await ask(net, node, session=OTHER)
        assert isinstance(reply, Refused)
        assert reply.code == "leaving"
        assert len(await line.tokens(8)) == 8  # what it has goes on


async def test_a_session_id_can_be_open_once(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer)
        reply = await ask(net, node)
        assert isinstance(reply, Refused)
        assert reply.code == "duplicate"
        assert node.worker.sessions == 1
        assert len(await line.tokens(8)) == 8


async def test_memory_for_keys_and_values_has_a_limit_and_is_free_again_at_once(
    tiny_models: TinyModels,
) -> None:
    config = tiny_models.llama.manifest.config
    (group,) = layer_groups(config, LayerRange(0, 4))
    pages = 2 * page_bytes(config, group)
    async with tiny_network(tiny_models.llama, 1, kv_bytes=pages, overcommit=1) as net:
        node, peer = await one_node(net)
        assert node.worker.free_positions == 128
        line = await opened(net, node, peer)
        assert node.worker.free_positions == 64
        second = open_message(net, node, peer.node_id, session=OTHER)
        await line.tokens(8)
        await line.send(msgspec.structs.replace(second, positions=65), GIVEN)
        reply = await line.message()
        assert isinstance(reply, Refused)
        assert (reply.code, reply.session) == ("capacity", OTHER)
        assert "65 positions do not fit: 64 are free" in reply.message
        await line.send(msgspec.structs.replace(second, positions=64), GIVEN)
        assert await line.message() == Opened(OTHER)
        assert node.worker.free_positions == 0
        await line.send(Close(SESSION))
        await asyncio.sleep(0.01)
        assert (node.worker.sessions, node.worker.free_positions) == (1, 64)
        await line.close()
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
    "a header that is no message": b"UN\x02\0\x04\0\0\0\0\0\0\0\xff\xff\xff\xff",
    "a message of no kind": b"UN\x02\0\x0c\0\0\0\0\0\0\0\x81\xa4type\xa5hello"[:24],
    "a frame too large": b"UN\x02\0\x04\0\0\0\xff\xff\xff\xff",
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
        Rows(SESSION, 0, b"\x04", (), 3, 0),
        Tokens(SESSION, (SampledToken(4, 1),)),
        Bundle(2),
        Close(SESSION),
        Rewire(SESSION, None, NOWHERE, 0),
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
    monkeypatch.setattr("unisono.wire.link.PING_SECONDS", 0.05)
    monkeypatch.setattr("unisono.wire.link.SILENT_SECONDS", 0.3)
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer)
        for nonce in range(6):  # longer than the silence that is allowed
            await asyncio.sleep(0.1)
            await line.send(Ping(nonce))
        assert node.worker.sessions == 1
        assert await line.is_lost()
        await serves(net)


async def test_a_session_whose_gateway_goes_ends(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        await opened(net, node, peer)
        await peer.transport.close()
        await serves(net)


async def test_a_gateway_that_goes_ends_its_sessions_and_no_others(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        first = await opened(net, node, peer)
        second = await opened(net, node, await net.connect(), session=OTHER)
        await first.close()
        assert len(await second.tokens(8)) == 8
        assert node.worker.sessions == 1
        await second.close()
        await serves(net)


async def test_a_gateway_may_end_only_what_it_opened_itself(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer)
        stranger = await (await net.connect()).link(node)
        await stranger.send(Close(SESSION))
        assert await stranger.is_quiet()
        for message in (Finish(SESSION, 1), Rewire(SESSION, peer.node_id, None, 0)):
            await stranger.send(message)
            reply = await stranger.message()
            assert isinstance(reply, Refused)
            assert (reply.code, reply.session) == ("unknown_session", SESSION)
        assert len(await line.tokens(8)) == 8
        assert node.worker.sessions == 1
        # a second link of the same peer is another one, since links are what is lost
        again = await peer.link(node)
        await again.send(Finish(SESSION, 8))
        assert isinstance(await again.message(), Refused)


@pytest.mark.parametrize(
    "message",
    [
        Probe(),
        Opened(SESSION),
        Multiplex(),
        Rewired(SESSION, 4),
        "a bundle inside a bundle",
        "a bundle of one message more than it says",
        "no frame at all",
    ],
    ids=str,
)
async def test_a_gateway_that_breaks_the_protocol_loses_its_sessions(
    tiny_models: TinyModels, message: Any
) -> None:
    ping = encode_frame(Ping(1))
    pushed = {
        "a bundle inside a bundle": encode_frame(
            Bundle(2), ping + encode_frame(Bundle(2), ping + ping)
        ),
        "a bundle of one message more than it says": encode_frame(Bundle(2), 3 * ping),
        "no frame at all": b"no frame at all",
    }
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer)
        line.stream.push(pushed.get(message) or encode_frame(message))
        assert await line.is_lost()
        await serves(net)


async def test_what_is_not_known_is_refused_and_the_sessions_live(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer)
        await line.tokens(8)
        for message in (Finish(OTHER, 1), Rewire(OTHER, peer.node_id, None, 0)):
            await line.send(message)
            reply = await line.message()
            assert isinstance(reply, Refused)
            assert (reply.code, reply.session) == ("unknown_session", OTHER)
        await line.send(Close(OTHER))
        await line.send(Refused("whatever", "no"))
        await line.send(Failed(OTHER, "whatever", "no", None))
        for count in (0, 9):
            await line.send(Finish(SESSION, count))
            reply = await line.message()
            assert isinstance(reply, Refused)
            assert (reply.code, reply.session) == ("malformed", SESSION)
            assert f"{count} tokens of an answer of at most 8" in reply.message
        await line.send(Finish(SESSION, 8))
        assert isinstance(await line.message(), Claimed)


# --- between hops -------------------------------------------------------------------------------


@dataclass
class Between:
    """A hop between a made-up hop before it, which is the next one too, and a made-up gateway."""

    net: TinyNetwork
    node: TinyNode
    control: Line
    """The gateway's link."""
    before: Line
    """The neighbour's link."""
    neighbour: Peer

    async def send_rows(self, *frames: tuple[Rows, bytes]) -> None:
        for message, body in frames:
            await self.before.send(message, body)

    async def has_computed(self, rows: int) -> None:
        """Wait until it has."""
        (session,) = self.node.worker._sessions.values()
        for _ in range(1000):
            if len(session.out_hashes) >= rows:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{len(session.out_hashes)} of {rows} rows are computed")

    async def fails(self, code: str, reason: str) -> None:
        """The node blames the neighbour, to the gateway."""
        failed = await self.control.message()
        assert isinstance(failed, Failed)
        assert (failed.session, failed.code) == (SESSION, code)
        assert reason in failed.message
        assert failed.peer == self.neighbour.node_id
        await self.control.close()
        await serves(self.net)

    async def ignores(self) -> None:
        """Nobody is told anything, and the session is still there."""
        assert await self.control.is_quiet()
        assert await self.before.is_quiet()
        assert self.node.worker.sessions == 1


async def between(net: TinyNetwork, index: int, body: bytes = GIVEN, **changes: Any) -> Between:
    """A session on a node of two, whose neighbour and gateway are this test."""
    node = net.nodes[index]
    neighbour = await net.connect()
    before = await neighbour.link(node)  # nodes use the link that there is
    address = await neighbour.transport.bind()
    place = {"hop": index, "hops": 2, "previous": neighbour.node_id, "next": address}
    place |= {"resume": 4 * index}
    control = await opened(net, node, await net.connect(), body, **(place | changes))
    return Between(net, node, control, before, neighbour)


def rows_of(
    position: int, count: int, tokens: Sequence[int] = (), session: Any = SESSION, hidden: int = 64
) -> tuple[Rows, bytes]:
    """Rows that say their position."""
    values = np.arange(position, position + count, dtype=np.int64)[:, None] + 1
    rows = values * np.ones((1, hidden), dtype=np.int64) << 14
    widths, _ = encode_rows(rows)
    low, apart, body = pack(rows)
    return Rows(session, position, widths, tuple(tokens), low, apart), body


def altered(part: tuple[Rows, bytes], **changes: Any) -> tuple[Rows, bytes]:
    return msgspec.structs.replace(part[0], **changes), part[1]


BAD_ROWS: dict[str, tuple[tuple[Rows, bytes], str]] = {
    "rows that start later": (rows_of(1, 2), "position 0 was next"),
    "rows of an answer without their tokens": (rows_of(0, 5), "position 4 without its token"),
    "rows past the session": (rows_of(0, 13), "in a session of 12 positions"),
    "rows of another width": (rows_of(0, 2, hidden=32), "128 values of 3 low bytes"),
    "rows of tokens that are none": (rows_of(4, 1, [320]), "outside the vocabulary"),
    "rows with a byte too many": ((rows_of(0, 2)[0], bytes(385)), "384 bytes; got 385"),
    "a width that is none": (altered(rows_of(0, 2), widths=b"\x04\x05"), "widths of rows"),
    "rows wider than they need to be": (
        altered(rows_of(0, 1), widths=b"\x08"),
        "widths of rows",
    ),
    "fewer low bytes than are there": (altered(rows_of(0, 2), low=4), "4 low bytes"),
    "values apart that are not there": (altered(rows_of(0, 2), apart=1), "with 1 apart"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
async def test_a_hop_that_sends_bad_rows_is_named_to_the_gateway(
    tiny_models: TinyModels, what: str
) -> None:
    rows, reason = BAD_ROWS[what]
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 1)
        await hop.send_rows(rows)
        await hop.fails("peer_lost", reason)


async def test_a_hop_that_goes_back_further_than_a_session_may_is_named(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, [LayerRange(0, 2), LayerRange(2, 3)]) as net:
        node, before, after = net.nodes[1], await net.connect(), await net.connect()
        place = {"hop": 1, "hops": 3, "previous": before.node_id, "next": await after.listen()}
        size = {"prompt": 100, "start": 100, "positions": 300, "max_tokens": 200, "resume": 0}
        gateway = await net.connect()
        control = await opened(net, node, gateway, b"", **(place | size))
        line = await before.link(node)
        after_it = await after.caller()
        for part in (rows_of(0, 100), rows_of(100, 50, [7] * 50), rows_of(86, 1)):
            await line.send(*part)
            at, stop = part[0].position, part[0].position + len(part[0].widths)
            while at < stop:
                rows = await after_it.message()
                assert isinstance(rows, Rows)
                assert rows.position == at
                at += len(rows.widths)
        await line.send(*rows_of(85, 1))
        failed = await control.message()
        assert isinstance(failed, Failed)
        assert failed.peer == before.node_id
        assert "replace more than 64 of 150" in failed.message
        await control.close()
        await net.idle()


async def claimed(line: Line, tokens: int) -> Any:
    """A hop's claim to as many tokens."""
    await line.send(Finish(SESSION, tokens))
    message, body = await line.receive()
    assert isinstance(message, Claimed), message
    return message.joined(body)


async def test_rows_that_come_twice_replace_those_that_came_before(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 1)
        await hop.send_rows(rows_of(0, 4))
        (first,) = await hop.control.tokens(1)
        await hop.send_rows(rows_of(4, 1, [first.token]))
        (second,) = await hop.control.tokens(1)
        whole = await claimed(hop.control, 2)
        await hop.control.close()
    async with tiny_network(tiny_models.llama, 2) as net:  # a session is signed for once
        again = await between(net, 1)
        await again.send_rows(rows_of(0, 2), rows_of(0, 2), altered(rows_of(7, 3), position=1))
        await again.send_rows(rows_of(2, 2), rows_of(1, 3))
        tokens = await again.control.tokens(1)
        # the first token came from one of the rows that were sent in between, or from the last
        await again.send_rows(rows_of(4, 1, [tokens[0].token]))
        await again.control.tokens(1)
        if tokens == [first]:
            assert (await claimed(again.control, 2)).rows_out == whole.rows_out
        assert second.position == 5
        await again.control.close()
        await serves(net)


@pytest.mark.parametrize("guess", [0, 1, 2, 3])
async def test_rows_behind_a_wrong_guess_change_no_token_and_no_claim(
    tiny_models: TinyModels, guess: int
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 1)
        await hop.send_rows(rows_of(0, 4))
        truth = await hop.control.tokens(1)
        while len(truth) < 6:
            at = 3 + len(truth)
            await hop.send_rows(rows_of(at, 1, [truth[-1].token]))
            truth += await hop.control.tokens(1)
        whole = await claimed(hop.control, 6)
        await hop.control.close()

    async with tiny_network(tiny_models.llama, 2) as net:  # a session is signed for once
        hop = await between(net, 1)
        await hop.send_rows(rows_of(0, 4))
        ids = [t.token for t in truth]
        guesses = [*ids[: guess + 1], *((t + 1) % 320 for t in ids[guess + 1 : 5])]
        await hop.send_rows(rows_of(4, 5, guesses))  # all at once
        found = await hop.control.tokens(guess + 2)
        assert found == truth[: guess + 2]
        assert await hop.control.is_quiet()
        for at in range(4 + len(found) - 1, 9):  # and the rest one by one
            await hop.send_rows(rows_of(at, 1, [ids[at - 4]]))
            found += await hop.control.tokens(1)
        assert found == truth
        again = await claimed(hop.control, 6)
        same = ("rows_in", "rows_out", "out_tags", "tokens", "positions")
        assert [getattr(again, n) for n in same] == [getattr(whole, n) for n in same]
        # the ring's first hop, here the neighbour, was told the same as the gateway
        assert await hop.before.tokens(6) == truth


async def test_rows_of_someone_who_is_not_the_hop_before_are_ignored(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 1)
        stranger = await (await net.connect()).link(hop.node)
        for part in (rows_of(0, 4), rows_of(1, 2), rows_of(0, 2, hidden=32)):
            await stranger.send(*part)
            await hop.control.send(*part)  # nor is the gateway
        await hop.ignores()
        await hop.send_rows(rows_of(0, 4))
        assert len(await hop.control.tokens(1)) == 1


@pytest.mark.parametrize("index", [0, 1])
async def test_a_hop_ignores_what_is_not_for_its_place(tiny_models: TinyModels, index: int) -> None:
    """Tokens are for the first hop, rows for any other."""
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, index)
        if index == 0:
            message, _ = await hop.before.receive()
            assert isinstance(message, Rows)
            await hop.before.send(*rows_of(4, 1, [5]))
        else:
            await hop.before.send(Tokens(SESSION, (SampledToken(4, 1),)))
        await hop.ignores()


async def test_a_lone_hop_takes_rows_and_tokens_of_nobody(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer)
        await line.send(*rows_of(0, 4))
        await line.send(Tokens(SESSION, (SampledToken(4, 1),)))
        truth = await line.tokens(8)
        assert await line.is_quiet()
        await line.close()
        again = await opened(net, node, await net.connect(), session=OTHER)
        assert await again.tokens(8) == truth


async def test_garbage_between_hops_ends_their_link(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 1)
        hop.before.stream.push(b"no frame at all")
        assert await hop.before.is_lost()
        # the last hop sends its tokens over this link, so the gateway learns who broke it
        await hop.fails("peer_lost", "a frame starts with")


async def test_a_next_hop_that_leaves_is_named_to_the_gateway(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 0)
        assert isinstance(await hop.before.message(), Rows)
        await hop.before.close()
        await hop.fails("peer_lost", "closed")


async def test_a_next_hop_that_does_not_answer_pings_is_named(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.wire.link.PING_SECONDS", 0.05)
    monkeypatch.setattr("unisono.wire.link.SILENT_SECONDS", 0.3)
    async with tiny_network(tiny_models.llama, 2) as net:
        silent = await net.connect()
        place = {"hops": 2, "previous": silent.node_id, "next": await silent.listen()}
        place |= {"resume": 0}
        peer = await net.connect()
        control = await opened(net, net.nodes[0], peer, **place)
        pinging = asyncio.create_task(_ping(control))
        failed = await control.message()
        assert isinstance(failed, Failed)
        assert failed.peer == silent.node_id
        assert "silent" in failed.message
        pinging.cancel()
        await control.close()
        await net.idle()


async def _ping(line: Line) -> None:
    for nonce in range(100):
        await line.send(Ping(nonce))
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("index", [0, 1])
async def test_a_next_hop_that_cannot_be_reached_is_named(
    tiny_models: TinyModels, index: int
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, index, next=NOWHERE)
        failed = await hop.control.message()
        assert isinstance(failed, Failed)
        assert (failed.code, failed.peer) == ("peer_lost", NOWHERE.node)
        assert "cannot be reached" in failed.message
        # the session waits for another: all that it has is sent to it
        address = await hop.neighbour.transport.bind()
        await hop.control.send(Rewire(SESSION, None, address, 4 * index))
        if index == 0:
            rows = await hop.before.message()
            assert isinstance(rows, Rows)
            assert (rows.position, len(rows.widths)) == (0, 4)
        assert isinstance(await hop.control.message(), Rewired)
        await hop.control.close()
        await serves(net)


async def test_someone_else_at_the_address_of_the_next_hop_is_not_taken_for_it(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        real = await (await net.connect()).transport.bind()
        wrong = msgspec.structs.replace(real, node=NodeId("88" * 32))
        hop = await between(net, 0, next=wrong)
        failed = await hop.control.message()
        assert isinstance(failed, Failed)
        assert failed.peer == wrong.node
        assert "is held by the node" in failed.message


async def test_rows_that_come_before_their_session_are_kept_for_it(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        node, early = net.nodes[1], await net.connect()
        before = await early.link(node)
        stranger = await (await net.connect()).link(node)
        await stranger.send(*rows_of(0, 4))  # kept too, but not for this session's hop before
        await before.send(*rows_of(0, 2))
        await before.send(*rows_of(2, 2))
        await before.send(*rows_of(0, 2, session=OTHER))
        assert await before.is_quiet()
        place = {"hop": 1, "hops": 2, "previous": early.node_id, "next": NOWHERE}
        control = await opened(net, node, await net.connect(), **place)
        found = [await control.message(), await control.message()]
        (tokens,) = [m for m in found if isinstance(m, Tokens)]
        assert [t.position for t in tokens.tokens] == [4]
        assert not node.worker._early.take(SESSION)
        assert len(node.worker._early.take(OTHER)) == 1


async def test_what_comes_early_is_kept_within_bounds(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.execution.early.EARLY_MESSAGES", 3)
    async with tiny_network(tiny_models.llama, 2) as net:
        node, early = net.nodes[1], await net.connect()
        before = await early.link(node)
        for position in range(5):
            await before.send(*rows_of(position, 1))
        assert await before.is_quiet()
        kept = node.worker._early.take(SESSION)
        assert [m.position for _, m, _ in kept if isinstance(m, Rows)] == [2, 3, 4]


async def first_hop(net: TinyNetwork, **changes: Any) -> Between:
    """A first hop of layers 0:2 that waits for the token after four."""
    hop = await between(net, 0, **changes)
    message, _ = await hop.before.receive()
    assert isinstance(message, Rows)
    assert (message.position, len(message.widths), message.tokens) == (0, 4, ())
    return hop


def some(position: int, *tokens: int, session: Any = SESSION) -> Tokens:
    return Tokens(session, tuple(SampledToken(position + i, t) for i, t in enumerate(tokens)))


BAD_TOKENS: dict[str, tuple[list[Message], str]] = {
    "more tokens than were asked for": ([some(4, *[1] * 9)], "after the answer's end"),
    "a token of a later position": (
        [some(5, 1)],
        "position 5 came before its turn: position 4 is next",
    ),
    "another token of the prompt": ([some(3, 1)], "another token for position 3"),
    "another token of the answer": ([some(4, 1), some(4, 2)], "another token for position 4"),
    "a token that is none": ([some(4, 320)], "vocabulary"),
}


@pytest.mark.parametrize("what", BAD_TOKENS)
async def test_a_last_hop_that_sends_bad_tokens_is_named_to_the_gateway(
    tiny_models: TinyModels, what: str
) -> None:
    messages, reason = BAD_TOKENS[what]
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await first_hop(net, draft=False)
        # one bundle, so that none can be answered before all are there
        body = b"".join(encode_frame(m) for m in messages)
        bundle = encode_frame(Bundle(len(messages)), body) if len(messages) > 1 else body
        hop.before.stream.push(bundle)
        await hop.fails("peer_lost", reason)


async def test_a_first_hop_that_took_anothers_place_guesses_once_it_has_heard_a_token(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drafter, "guess", lambda *_: Guess(7, (False, 1), 0.99))
    async with tiny_network(tiny_models.llama, 2) as net:
        given = tokens_body(1, 2, 3, 4, 5, 6)
        hop = await between(net, 0, body=given, start=6, resume=5)
        message, _ = await hop.before.receive()
        assert isinstance(message, Rows)
        assert (message.position, message.tokens) == (5, (6,))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await hop.before.receive()
        await hop.before.send(some(6, 9))
        message, _ = await hop.before.receive()
        assert isinstance(message, Rows)
        assert message.position == 6
        assert message.tokens[:3] == (9, 7, 7)


async def test_a_token_after_the_end_of_the_answer_is_cheating(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await first_hop(net, stop_tokens=(9,))
        await hop.before.send(some(4, 9))
        await hop.before.send(some(5, 1))
        await hop.fails("peer_lost", "after the answer's end")


async def test_tokens_that_are_known_may_come_again(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await first_hop(net, draft=False)
        await hop.before.send(some(2, 3, 4))
        await hop.before.send(some(3, 4, 7))
        message, _ = await hop.before.receive()
        assert isinstance(message, Rows)
        assert (message.position, message.tokens) == (4, (7,))
        await hop.before.send(some(4, 7))
        await hop.ignores()


@pytest.mark.parametrize("resume", [0, 5])
async def test_a_first_hop_that_takes_anothers_place_hears_of_tokens_before_it_caught_up(
    tiny_models: TinyModels, resume: int
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 0, GIVEN_MORE, start=6, resume=resume, draft=False)
        await hop.before.send(some(6, 7, 8, 9))
        came: dict[int, int] = {}
        while max(came, default=0) < 8:
            rows = await hop.before.message()
            assert isinstance(rows, Rows)
            came |= {rows.position + i: t for i, t in enumerate(rows.tokens)}
        assert came == {p: t for p, t in {4: 8, 5: 9, 6: 7, 7: 8, 8: 9}.items() if p >= resume}
        assert await hop.control.is_quiet()


async def test_tokens_of_another_session_or_of_a_stranger_are_ignored(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await first_hop(net)
        stranger = await (await net.connect()).link(hop.node)
        await stranger.send(some(4, 320))
        await stranger.send(some(4, 1))
        await hop.before.send(some(4, 1, session=OTHER))
        await hop.control.send(some(4, 1))
        await hop.ignores()


# --- neighbours that are replaced ---------------------------------------------------------------


async def test_a_new_next_hop_gets_the_rows_from_where_it_wants_them(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await first_hop(net, draft=False)
        await hop.before.send(some(4, 7))
        await hop.before.receive()
        for resume in (0, 3, 4, 5):
            new = await net.connect()
            await hop.control.send(Rewire(SESSION, None, await new.listen(), resume))
            assert await hop.control.message() == Rewired(SESSION, 5)  # it wants token 5
            line = await new.caller()
            got: list[tuple[int, tuple[int, ...]]] = []
            while sum(max(1, len(t)) if t else 4 - p for p, t in got) < 5 - resume:
                rows = await line.message()
                assert isinstance(rows, Rows)
                got.append((rows.position, rows.tokens))
            assert got == [(resume, ()), (4, (7,))][resume >= 4 : 2 - (resume == 5)]
            assert await hop.before.is_quiet()


async def test_a_new_hop_before_is_heard_from_then_on_and_the_old_one_is_not(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 1)
        await hop.send_rows(rows_of(0, 2))
        await hop.has_computed(2)
        new = await net.connect()
        await hop.control.send(Rewire(SESSION, new.node_id, None, 0))
        assert await hop.control.message() == Rewired(SESSION, 2)  # as far as rows have come
        await hop.send_rows(rows_of(2, 2), rows_of(9, 1))
        await hop.ignores()
        line = await new.link(hop.node)
        await line.send(*rows_of(2, 2))
        assert len(await hop.control.tokens(1)) == 1


async def test_a_new_last_hop_is_heard_and_a_first_hop_says_which_token_it_wants(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await first_hop(net, draft=False)
        await hop.before.send(some(4, 7))
        await hop.before.receive()
        new = await net.connect()
        await hop.control.send(Rewire(SESSION, new.node_id, None, 0))
        assert await hop.control.message() == Rewired(SESSION, 5)
        await hop.before.send(some(5, 8))
        await hop.ignores()
        line = await new.link(hop.node)
        await line.send(some(4, 7, 8))
        message, _ = await hop.before.receive()
        assert isinstance(message, Rows)
        assert (message.position, message.tokens) == (5, (8,))


@pytest.mark.parametrize("index", [0, 1])
async def test_a_hop_whose_neighbour_cheated_goes_on_with_another(
    tiny_models: TinyModels, index: int
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await first_hop(net, draft=False) if index == 0 else await between(net, 1)
        if index == 0:
            await hop.before.send(some(4, 7))
            await hop.before.receive()
            for position in (9, 10, 11):
                await hop.before.send(some(position, 7))
        else:
            await hop.send_rows(rows_of(0, 2))
            await hop.has_computed(2)
            await hop.send_rows(rows_of(3, 1), rows_of(4, 1), rows_of(5, 1, [7]), rows_of(9, 5))
        failed = await hop.control.message()
        assert isinstance(failed, Failed)
        assert failed.peer == hop.neighbour.node_id
        assert await hop.control.is_quiet()  # once, and nobody else is blamed for what follows
        await hop.before.send(*((some(5, 7), b"") if index == 0 else rows_of(2, 2)))
        await hop.ignores()  # who was blamed is not heard any more
        new = await net.connect()
        line = await new.link(hop.node)
        await hop.control.send(Rewire(SESSION, new.node_id, None, 0))
        assert await hop.control.message() == Rewired(SESSION, 5 if index == 0 else 2)
        if index == 0:
            await line.send(some(5, 8))
            message, _ = await hop.before.receive()
            assert isinstance(message, Rows)
            assert (message.position, message.tokens) == (5, (8,))
        else:
            await line.send(*rows_of(2, 2))
            assert len(await hop.control.tokens(1)) == 1
        await hop.control.close()
        await serves(net)


async def test_a_new_last_hop_begins_with_the_tokens_that_the_first_one_lacks(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        answer = {"start": 6, "resume": 5}
        hop = await between(net, 1, GIVEN_MORE, **answer)
        assert [(t.position, t.token) for t in await hop.before.tokens(1)] == [(5, 9)]
        assert await hop.control.is_quiet()  # the gateway knows them
        await hop.control.send(Rewire(SESSION, None, await hop.neighbour.transport.bind(), 4))
        failed = await hop.control.message()
        assert isinstance(failed, Failed)
        assert (failed.code, failed.peer) == ("journal_gone", None)


GIVEN_MORE = tokens_body(1, 2, 3, 4, 8, 9)


async def test_a_journal_that_is_gone_is_said_to_be(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.execution.outlet.JOURNAL_BYTES", 600)  # two rows
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await first_hop(net)
        address = await hop.neighbour.transport.bind()
        await hop.control.send(Rewire(SESSION, None, address, 3))
        assert await hop.control.message() == Rewired(SESSION, 4)
        assert isinstance(await hop.before.message(), Rows)
        await hop.control.send(Rewire(SESSION, None, address, 0))
        failed = await hop.control.message()
        assert isinstance(failed, Failed)
        assert (failed.code, failed.peer) == ("journal_gone", None)
        assert "not at 0" in failed.message


async def test_a_claim_for_what_is_not_computed_yet_is_signed_when_it_is(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 1)
        await hop.control.send(Finish(SESSION, 2))
        await hop.send_rows(rows_of(0, 4))
        (token,) = await hop.control.tokens(1)
        assert await hop.control.is_quiet()
        await hop.send_rows(rows_of(4, 1, [token.token]))
        assert len(await hop.control.tokens(1)) == 1
        message, body = await hop.control.receive()
        assert isinstance(message, Claimed)
        claim = message.joined(body)
        assert claim.positions == 5
        assert claim.signature_is_good()
        assert await hop.control.is_quiet()  # once


async def test_rows_of_a_prompt_leave_in_parts_and_those_of_an_answer_with_their_tokens(
    tiny_models: TinyModels,
) -> None:
    prompt = tuple(range(1, 301))
    async with tiny_network(tiny_models.llama, 2) as net:
        peer, after = await net.connect(), await net.connect()
        size = {"prompt": 290, "start": 300, "positions": 340, "max_tokens": 40, "resume": 0}
        place = {"hops": 2, "previous": after.node_id, "next": await after.listen(), "draft": False}
        control = await opened(net, net.nodes[0], peer, tokens_body(*prompt), **(size | place))
        line = await after.caller()
        messages: list[tuple[Rows, bytes]] = []
        while sum(len(m.widths) for m, _ in messages) < 300:
            message, body = await line.receive()
            assert isinstance(message, Rows)
            unpack(body, 64 * len(message.widths), message.low, message.apart).reshape(-1, 64)
            messages.append((message, body))
        at = 0
        for message, _ in messages:
            assert message.position == at
            at += len(message.widths)
            assert message.tokens == (prompt[message.position : at] if at > 290 else ())
        assert len(messages) >= 3
        await control.close()


async def test_a_defect_in_a_node_reaches_the_gateway_and_other_sessions_go_on(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)

        def broken(*_: Any) -> Any:
            raise RuntimeError("a secret detail")

        line = await peer.link(node)
        with monkeypatch.context() as patch:
            patch.setattr(node.engine, "_compute", broken)
            await line.send(open_message(net, node, peer.node_id), GIVEN)
            assert isinstance(await line.message(), Opened)
            failed = await line.message()
        assert isinstance(failed, Failed)
        assert failed.session == SESSION
        assert failed.peer is None
        assert "RuntimeError" in failed.message
        assert "secret" not in failed.message
        await line.send(open_message(net, node, peer.node_id, session=OTHER), GIVEN)
        assert isinstance(await line.message(), Opened)
        assert len(await line.tokens(8)) == 8
        await line.close()
        await serves(net)


async def test_what_comes_for_a_session_that_failed_is_not_kept(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 1)
        with monkeypatch.context() as patch:
            patch.setattr(hop.node.engine, "_compute", lambda *_: 1 / 0)
            await hop.send_rows(rows_of(0, 1), rows_of(1, 1))
            assert isinstance(await hop.control.message(), Failed)
        (session,) = hop.node.worker._sessions.values()
        for position in range(4):
            await hop.send_rows(rows_of(position, 1))
        await hop.ignores()
        assert session.inbox.take() is None


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
        assert net.unburdened()
        assert not net.swarm._chains
        for node in net.nodes:
            # a link with the gateway and one with the other node stay, and nobody uses them
            assert 2 <= len(node.transport.streams) <= 3
            assert not any(link.users for link in node.worker._links.links())
            assert node.worker._early.bytes == 0
        assert not any(link.users for link in net.swarm.links.links())
        await net.swarm.close()
        for node in net.nodes:
            await node.worker.close()
        await asyncio.sleep(0.01)
        assert all(not node.transport.streams for node in net.nodes)
