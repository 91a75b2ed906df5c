"""Frames: everything honest survives the trip, everything else is refused in one way."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.errors import PeerCheating
from unisono.types import (
    LayerRange,
    ModelId,
    NodeId,
    PeerAddress,
    SampledToken,
    Sampling,
    SessionId,
)
from unisono.wire.claims import HopClaim
from unisono.wire.frames import (
    FRAME_PREFIX,
    MAX_BODY,
    MAX_HEADER,
    VERSION,
    decode_frame,
    encode_frame,
    frame_size,
)
from unisono.wire.gossip_messages import MAX_DEPTH, Beat, Exchange, Newer, Region, Wanted
from unisono.wire.identity import Identity
from unisono.wire.messages import (
    Bundle,
    Claimed,
    Close,
    Failed,
    Finish,
    Message,
    Multiplex,
    Open,
    Opened,
    Pages,
    Ping,
    Pong,
    Refused,
    Rewire,
    Rewired,
    Rows,
    Spared,
    Tokens,
)
from unisono.wire.records import Info, NodeRecord, Probe
from unisono.wire.relay_messages import Call, DialBack, Direct, Knock, Reserved
from unisono.wire.verification_messages import (
    CommitsClosed,
    ReplayResult,
    ReplayTask,
    ResultCommit,
    ResultReveal,
    Settled,
    TaskTaken,
    Ticket,
    Work,
)


def hexes(size: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=size, max_size=size).map(bytes.hex)


sessions = hexes(16).map(SessionId)
nodes = hexes(32).map(NodeId)
models = hexes(32).map(ModelId)
addresses = st.builds(
    PeerAddress,
    nodes,
    st.sampled_from(["tcp", "iroh"]),
    st.lists(st.just("127.0.0.1:4433"), min_size=1, max_size=8).map(tuple),
)
ranges = st.tuples(st.integers(0, 40), st.integers(1, 40)).map(
    lambda pair: LayerRange(pair[0], pair[0] + pair[1])
)
token_ids = st.integers(0, (1 << 32) - 1)
logprobs = st.integers(-(1 << 31), (1 << 31) - 1)
tokens = st.builds(
    SampledToken,
    st.just(0),
    token_ids,
    logprobs,
    st.lists(st.tuples(token_ids, logprobs), max_size=20).map(tuple),
)
samplings = st.builds(
    Sampling,
    temperature=st.integers(0, 1 << 20),
    top_k=st.integers(0, 1000),
    logit_bias=st.dictionaries(token_ids, logprobs, max_size=8).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    seed=st.integers(0, (1 << 63) - 1),
)


@st.composite
def opens(draw: st.DrawFn) -> Open:
    hops = draw(st.integers(1, 8))
    hop = draw(st.integers(0, hops - 1))
    prompt, given_tokens, room = sorted(
        draw(st.lists(st.integers(1, 1 << 20), min_size=3, max_size=3))
    )
    alone = hops == 1
    return Open(
        session=draw(sessions),
        request_hash=draw(hexes(32)),
        gateway=draw(nodes),
        model=draw(models),
        layers=draw(ranges),
        hop=hop,
        hops=hops,
        previous=None if alone else draw(nodes),
        next=None if alone else draw(addresses),
        resume=draw(st.integers(0, min(given_tokens, (1 << 20) - 1))),
        sampling=draw(samplings),
        prompt=prompt,
        positions=room,
        start=given_tokens,
        max_tokens=draw(st.integers(1, 1 << 20)),
        stop_tokens=tuple(draw(st.lists(token_ids, max_size=8))),
        top_logprobs=draw(st.integers(-1, 20)),
        draft=draw(st.booleans()),
    )


@st.composite
def rewires(draw: st.DrawFn) -> Rewire:
    previous, following = draw(
        st.sampled_from([(True, False), (False, True), (True, True)]).map(list)
    )
    return Rewire(
        draw(sessions),
        draw(nodes) if previous else None,
        draw(addresses) if following else None,
        draw(st.integers(0, (1 << 20) - 1)),
    )


@st.composite
def rows_of_an_answer_or_a_prompt(draw: st.DrawFn) -> Rows:
    widths = draw(st.binary(min_size=1, max_size=64))
    ids = st.lists(token_ids, min_size=len(widths), max_size=len(widths)).map(tuple)
    position = draw(st.integers(0, (1 << 20) - 64))
    return Rows(
        draw(sessions),
        position,
        widths,
        draw(st.just(()) | ids),
        draw(st.integers(3, 5)),
        draw(st.integers(0, 99)),
    )


@st.composite
def tokens_in_a_row(draw: st.DrawFn) -> Tokens:
    first = draw(st.integers(0, (1 << 20) - 65))
    some = draw(st.lists(tokens, min_size=1, max_size=64 if draw(st.booleans()) else 3))
    numbered = [msgspec.structs.replace(t, position=first + i) for i, t in enumerate(some)]
    return Tokens(draw(sessions), tuple(numbered))


@st.composite
def claims(draw: st.DrawFn) -> HopClaim:
    positions = draw(st.integers(0, 300))
    return HopClaim(
        session=draw(sessions),
        request=draw(hexes(32)),
        gateway=draw(nodes),
        model=draw(models),
        node=draw(nodes),
        hop=draw(st.integers(0, 255)),
        layers=draw(ranges),
        positions=positions,
        rows_in=draw(hexes(32)),
        rows_out=draw(hexes(32)),
        out_tags=bytes(3 * positions),
        tokens=draw(st.just("") | hexes(32)),
        epoch=draw(st.integers(0, (1 << 40) - 1)),
        signature=draw(st.binary(min_size=64, max_size=64)),
    )


@st.composite
def records(draw: st.DrawFn) -> NodeRecord:
    address = draw(addresses)
    holds = draw(st.booleans())
    return NodeRecord(
        node=address.node,
        address=address,
        model=draw(models) if holds else ModelId(""),
        layers=draw(ranges) if holds else LayerRange(0, 0),
        free_positions=draw(st.integers(0, 1 << 30)),
        sessions=draw(st.integers(0, 1000)),
        sequence=draw(st.integers(0, 1 << 40)),
        expires=draw(st.integers(0, 1 << 50)),
        signature=draw(st.binary(min_size=64, max_size=64)),
    )


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    depth = draw(st.integers(0, MAX_DEPTH))
    region = draw(st.none() | st.builds(Region, st.integers(0, (1 << depth) - 1), st.just(depth)))
    return Exchange(
        depth=draw(st.integers(0, MAX_DEPTH)),
        known=draw(st.integers(0, 1 << 20)),
        region=region,
        digest=draw(st.integers(0, 1024)) if region is not None else 0,
        seek=draw(st.just(b"") | st.binary(min_size=8, max_size=8)),
    )


seals = st.binary(min_size=64, max_size=64)
works = st.builds(Work, hexes(32), st.integers(0, 1 << 40), hexes(32))
results = st.builds(ReplayResult, hexes(32), hexes(32), st.just("") | hexes(32), hexes(32))
tickets = st.builds(
    Ticket,
    st.integers(0, 1 << 40),
    hexes(32),
    nodes,
    hexes(32),
    st.integers(1, 1_000_000),
    st.binary(min_size=96, max_size=96),
)


@st.composite
def replay_tasks(draw: st.DrawFn) -> ReplayTask:
    layers, positions = draw(ranges), draw(st.integers(1, 300))
    return ReplayTask(
        ticket=draw(tickets),
        sealed=draw(hexes(32)),
        model=draw(models),
        layers=layers,
        prompt=draw(st.integers(1, positions)),
        positions=positions,
        sampling=draw(st.none() | st.just(Sampling(temperature=3, seed=5))),
        widths=b"\x04" * positions if layers.start else b"",
        seats=draw(st.integers(1, 64)),
        commit_ms=draw(st.integers(1, 3_600_000)),
        reveal_ms=draw(st.integers(1, 3_600_000)),
    )


@st.composite
def closing_lists(draw: st.DrawFn) -> CommitsClosed:
    commits = draw(st.dictionaries(nodes, hexes(32), max_size=5))
    return CommitsClosed(
        draw(works), draw(nodes), draw(hexes(32)), tuple(sorted(commits.items())), draw(seals)
    )


codes = st.from_regex(r"[a-z0-9_]{1,64}", fullmatch=True)
naturals = st.integers(0, (1 << 63) - 1)
messages: st.SearchStrategy[Message] = st.one_of(
    opens(),
    st.builds(Opened, sessions),
    st.builds(Refused, codes, st.text(max_size=100), st.none() | sessions),
    st.builds(Multiplex),
    st.builds(Bundle, st.integers(2, 4096)),
    rewires(),
    st.builds(Rewired, sessions, st.integers(0, 1 << 20), st.integers(0, 1 << 20)),
    rows_of_an_answer_or_a_prompt(),
    st.builds(Pages, sessions, st.integers(0, 1 << 20)),
    st.builds(Spared, sessions, st.integers(0, 1 << 20), st.integers(0, 1 << 20)),
    tokens_in_a_row(),
    st.builds(Close, sessions),
    st.builds(Finish, sessions, st.integers(0, 1 << 20)),
    st.builds(Claimed, claims()),
    st.builds(Failed, sessions, codes, st.text(max_size=100), st.none() | nodes),
    st.builds(Ping, naturals),
    st.builds(Pong, naturals),
    exchanges(),
    st.builds(
        Newer,
        st.integers(0, MAX_DEPTH),
        st.integers(0, 1 << 20),
        st.integers(0, 1024),
        st.integers(0, 8),
    ),
    st.builds(Wanted),
    st.builds(Beat),
    st.builds(Probe),
    st.builds(Info, records()),
    st.builds(Direct),
    st.builds(Reserved, st.none() | st.just("1.2.3.4:5"), st.integers(1000, 3_600_000)),
    st.builds(Call, nodes),
    st.builds(Knock, hexes(16), nodes),
    st.builds(DialBack, nodes, st.lists(st.just("1.2.3.4:5"), max_size=8).map(tuple)),
    replay_tasks(),
    st.builds(TaskTaken, hexes(32)),
    st.builds(ResultCommit, works, nodes, hexes(32), seals),
    closing_lists(),
    st.builds(ResultReveal, works, nodes, results, st.binary(min_size=32, max_size=32), seals),
    st.builds(Settled, hexes(32), st.booleans(), st.none() | codes),
)

SESSION = SessionId("ab" * 16)
PING = encode_frame(Ping(7), b"body")


def framed(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<2sBBII", b"UN", VERSION, 0, len(header), len(body)) + header + body


def packed(value: object) -> bytes:
    return framed(msgspec.msgpack.encode(value))


@given(messages, st.binary(max_size=200))
def test_every_message_comes_back_as_it_was_sent(message: Message, body: bytes) -> None:
    frame = encode_frame(message, body)
    assert frame_size(frame[:FRAME_PREFIX]) == len(frame)
    found, found_body = decode_frame(frame)
    assert found == message
    assert type(found) is type(message)
    assert bytes(found_body) == body


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_as_cheating(data: bytes) -> None:
    for frame in (data, b"UN\x02\x00" + data, framed(data)):
        with pytest.raises(PeerCheating):
            decode_frame(frame)


@given(messages, st.data())
def test_a_truncated_or_lengthened_frame_is_refused(message: Message, data: st.DataObject) -> None:
    frame = encode_frame(message, b"xyz")
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(PeerCheating):
        decode_frame(frame[:cut])
    with pytest.raises(PeerCheating):
        decode_frame(frame + data.draw(st.binary(min_size=1, max_size=5)))


@settings(max_examples=300)
@given(messages, st.data())
def test_a_flipped_bit_never_raises_anything_but_cheating(
    message: Message, data: st.DataObject
) -> None:
    frame = bytearray(encode_frame(message, b"xyz"))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << (bit % 8)
    try:
        found, body = decode_frame(bytes(frame))
    except PeerCheating:
        return
    # What is accepted has exactly these bytes as its encoding.
    assert encode_frame(found, body) == frame


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"", "got 0"),
        (b"XX" + PING[2:], "got b'XX'"),
        (b"UN\x01" + PING[3:], "version 1"),
        (b"UN\x02\x80" + PING[4:], "flags 128"),
        (struct.pack("<2sBBII", b"UN", VERSION, 0, MAX_HEADER + 1, 0), f"claims {MAX_HEADER + 1}"),
        (struct.pack("<2sBBII", b"UN", VERSION, 0, 0, MAX_BODY + 1), f"claims {MAX_BODY + 1}"),
        (PING[:-1], "has"),
        (packed({"type": "ping", "nonce": 1, "more": 2}), "more"),
        (packed({"type": "pang", "nonce": 1}), "pang"),
        (packed({"nonce": 1}), "type"),
        (packed({"type": "ping"}), "nonce"),
        (packed({"type": "ping", "nonce": "1"}), "nonce"),
        (packed({"type": "ping", "nonce": 1.0}), "nonce"),
        (packed({"type": "ping", "nonce": -1}), "nonce"),
        (packed({"type": "ping", "nonce": 1 << 63}), "nonce"),
        (packed({"nonce": 1, "type": "ping"}), "canonical"),
        (framed(PING[12:-4] + b"\x00"), "not a message"),
        (framed(b""), "not a message"),
        (packed([1, 2]), "not a message"),
        (framed(b"\x82\xa4type\xa4ping\xa5nonce\xcd\x00\x07"), "canonical"),
        (framed(b"\x83\xa4type\xa4ping\xa5nonce\x07\xa5nonce\x08"), "canonical"),
        (framed(b"\x82\xa4type\xa4ping\xa5nonc\xff\x07"), "not a message"),
        (framed(b"\x91" * (MAX_HEADER - 1) + b"\x01"), "not a message"),
        (framed(b"\x82\xa1x" + b"\x91" * (MAX_HEADER - 9) + b"\x01\xa1y\x01"), "not a message"),
        (packed({"type": "opened", "session": "AB" * 16}), "session"),
        (packed({"type": "opened", "session": "ab" * 16 + "\n"}), "session"),
        (packed({"type": "opened", "session": "ab" * 15}), "session"),
    ],
)
def test_what_is_wrong_with_a_frame_is_said(frame: bytes, said: str) -> None:
    with pytest.raises(PeerCheating) as caught:
        decode_frame(frame)
    assert said in str(caught.value)


def test_a_prefix_is_judged_before_anything_is_allocated() -> None:
    assert frame_size(struct.pack("<2sBBII", b"UN", VERSION, 0, 16, MAX_BODY)) == 28 + MAX_BODY
    with pytest.raises(PeerCheating):
        frame_size(struct.pack("<2sBBII", b"UN", VERSION, 0, 16, 0xFFFFFFFF))


@pytest.mark.parametrize(
    "message",
    [
        Opened(SessionId("short")),
        Ping(-1),
        Rows(SESSION, 0, b"", (), 3, 0),
        Rows(SESSION, -1, b"\x04", (), 3, 0),
        Rows(SESSION, 0, b"\x04", (1 << 32,), 3, 0),
        Bundle(1),
        Bundle(4097),
        Rewired(SESSION, -1),
        Pages(SESSION, -1),
        Spared(SESSION, 0, -1),
        Refused("Not A Code", ""),
        Failed(SESSION, "x", "m" * 2000, None),
    ],
)
def test_a_message_that_a_peer_would_refuse_is_not_sent(message: Message) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        encode_frame(message)


def test_a_body_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ValueError, match="holds"):
        encode_frame(Ping(1), bytes(MAX_BODY + 1))


@given(opens(), st.data())
def test_an_open_message_that_contradicts_itself_is_refused(
    message: Open, data: st.DataObject
) -> None:
    peer = PeerAddress(NodeId("cd" * 32), "tcp", ("127.0.0.1:1",))
    changes: list[dict[str, object]] = [
        {"hop": message.hops},
        {"next": peer if message.next is None else None},
        {"previous": NodeId("cd" * 32) if message.previous is None else None},
        {"resume": message.positions + 1},
        {"hop": message.hops - 1, "resume": message.start + 1},
        {"resume": -1},
        {"start": message.positions + 1, "positions": message.positions},
        {"prompt": message.start + 1},
        {"layers": LayerRange(3, 3)},
        {"layers": LayerRange(-1, 3)},
        {"sampling": Sampling(seed=-1)},
        {"sampling": Sampling(temperature=1 << 40)},
        {"sampling": Sampling(logit_bias=((2, 1), (1, 1)))},
    ]
    fields = msgspec.to_builtins(message) | msgspec.to_builtins(data.draw(st.sampled_from(changes)))
    with pytest.raises(PeerCheating):
        decode_frame(packed(fields))


CONTRADICTIONS: dict[str, dict[str, object]] = {
    "nothing is rewired": {
        "type": "rewire",
        "session": SESSION,
        "previous": None,
        "next": None,
        "resume": 0,
    },
    "two rows with one token": {
        "type": "rows",
        "session": SESSION,
        "position": 0,
        "widths": b"\x04\x04",
        "tokens": [1],
    },
    "rows past the last position there is": {
        "type": "rows",
        "session": SESSION,
        "position": (1 << 20) - 1,
        "widths": b"\x04\x04",
        "tokens": [],
    },
    "more rows of an answer than go in a message": {
        "type": "rows",
        "session": SESSION,
        "position": 0,
        "widths": b"\x04" * 65,
        "tokens": [1] * 65,
    },
    "more rows than fit a header": {
        "type": "rows",
        "session": SESSION,
        "position": 0,
        "widths": b"\x04" * 8193,
        "tokens": [],
    },
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_message_that_contradicts_itself_is_refused(what: str) -> None:
    with pytest.raises(PeerCheating, match="not a message"):
        decode_frame(packed(CONTRADICTIONS[what]))


@pytest.mark.parametrize(
    ("some", "problem"),
    [
        ((), "length"),
        ((SampledToken(4, 1),) * 2, "position 4"),
        ((SampledToken(4, 1), SampledToken(6, 1)), "position 6"),
        ((SampledToken(5, 1), SampledToken(4, 1)), "position 4"),
        (tuple(SampledToken(i, 1) for i in range(65)), "length"),
        ((SampledToken(-1, 1),), "position -1"),
        ((SampledToken(1 << 20, 1),), "position 1048576"),
        ((SampledToken(4, -1),), "token id -1"),
        ((SampledToken(4, 1 << 32),), "token id"),
        ((SampledToken(4, 1, logprob=1 << 31),), "logprob"),
        ((SampledToken(4, 1, top=((1, 0),) * 21),), "21 top tokens"),
        ((SampledToken(4, 1, top=((-1, 0),)),), "top token -1"),
    ],
)
def test_tokens_of_an_answer_are_few_in_order_and_in_range(
    some: tuple[SampledToken, ...], problem: str
) -> None:
    plain = [[t.position, t.token, t.logprob, [[*pair] for pair in t.top]] for t in some]
    named = [dict(zip(("position", "token", "logprob", "top"), t, strict=True)) for t in plain]
    with pytest.raises(PeerCheating, match=problem):
        decode_frame(packed({"type": "tokens", "session": SESSION, "tokens": named}))


def test_addresses_in_messages_are_bounded() -> None:
    record = NodeRecord(
        node=NodeId("cd" * 32),
        address=PeerAddress(NodeId("cd" * 32), "tcp", ("127.0.0.1:1",)),
        model=ModelId("ef" * 32),
        layers=LayerRange(0, 4),
        free_positions=1,
        sessions=0,
        sequence=1,
        expires=1,
    )
    good = msgspec.to_builtins(Info(record), builtin_types=(bytes,))
    decode_frame(packed(good))
    for change in (
        {"node": "ab" * 32},
        {"node": "cd" * 31},
        {"addresses": ["a:1"] * 9},
        {"addresses": []},
        {"addresses": ["a" * 300]},
        {"transport": ""},
    ):
        bad = {**good, "record": {**good["record"], "address": good["record"]["address"] | change}}
        with pytest.raises(PeerCheating):
            decode_frame(packed(bad))


def test_a_record_is_signed_by_the_node_that_it_names() -> None:
    identity = Identity.from_seed(bytes(32))
    record = NodeRecord(
        node=identity.node_id,
        address=PeerAddress(identity.node_id, "tcp", ("127.0.0.1:1",)),
        model=ModelId("ef" * 32),
        layers=LayerRange(0, 4),
        free_positions=1,
        sessions=0,
        sequence=1,
        expires=1,
    )
    assert not record.signature_is_good()
    signed = record.signed_by(identity)
    assert signed.signature_is_good()
    assert not msgspec.structs.replace(signed, sequence=2).signature_is_good()
    assert not record.signed_by(Identity.generate()).signature_is_good()


@given(claims())
def test_a_claim_of_any_length_travels_with_its_tags_as_the_body(claim: HopClaim) -> None:
    message, body = Claimed.split(claim)
    found, found_body = decode_frame(encode_frame(message, body))
    assert isinstance(found, Claimed)
    assert found.joined(found_body) == claim


def test_tags_that_do_not_fit_the_claim_are_refused() -> None:
    claim = HopClaim(
        session=SESSION,
        request="ab" * 32,
        gateway=NodeId("ab" * 32),
        model=ModelId("ab" * 32),
        node=NodeId("ab" * 32),
        hop=0,
        layers=LayerRange(0, 1),
        positions=2,
        rows_in="ab" * 32,
        rows_out="ab" * 32,
        out_tags=b"abcdef",
        tokens="",
        epoch=0,
        signature=bytes(64),
    )
    message, body = Claimed.split(claim)
    for wrong in (body[:-1], body + b"ghi"):
        with pytest.raises(PeerCheating):
            message.joined(wrong)
    with pytest.raises(PeerCheating):
        Claimed(claim).joined(body)


def test_a_replay_task_that_contradicts_itself_is_refused() -> None:
    ticket = {
        "epoch": 1,
        "claim": "ab" * 32,
        "auditor": "ab" * 32,
        "roster": "ab" * 32,
        "rate": 5,
        "proof": bytes(96),
    }
    task = {
        "type": "replaytask",
        "ticket": ticket,
        "sealed": "ab" * 32,
        "model": "ab" * 32,
        "layers": {"start": 0, "stop": 4},
        "prompt": 3,
        "positions": 5,
        "sampling": None,
        "widths": b"",
        "seats": 3,
        "commit_ms": 10,
        "reveal_ms": 10,
    }
    decode_frame(packed(task))
    for change in (
        {"prompt": 6},
        {"widths": b"\x04" * 5},
        {"layers": {"start": 2, "stop": 4}},
        {"layers": {"start": 2, "stop": 2}},
        {"commit_ms": 0},
        {"seats": 0},
        {"seats": 65},
        {"reveal_ms": 3_600_001},
        {"ticket": {**ticket, "rate": 0}},
        {"ticket": {**ticket, "rate": 1_000_001}},
        {"ticket": {**ticket, "proof": bytes(95)}},
    ):
        with pytest.raises(PeerCheating):
            decode_frame(packed({**task, **change}))


def test_a_closing_list_names_each_member_once_in_order() -> None:
    work = {"audit": "ab" * 32, "epoch": 1, "task": "ab" * 32}
    closed = {
        "type": "commitsclosed",
        "work": work,
        "auditor": "ab" * 32,
        "sealed": "ab" * 32,
        "commits": [["aa" * 32, "ab" * 32], ["bb" * 32, "ab" * 32]],
        "signature": bytes(64),
    }
    decode_frame(packed(closed))
    first, second = closed["commits"]
    for commits in ([second, first], [first, first], [[f"{i:064x}", "ab" * 32] for i in range(65)]):
        with pytest.raises(PeerCheating):
            decode_frame(packed({**closed, "commits": commits}))
