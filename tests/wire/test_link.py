"""Links: what is posted arrives once and in order, and a link that is lost is lost for all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.clock import Clock, SystemClock, VirtualClock
from unisono.errors import PeerCheating, PeerGone, WireError
from unisono.types import NodeId, PeerAddress, SessionId
from unisono.wire import link as link_module
from unisono.wire.frames import FRAME_PREFIX, decode_frame, encode_frame, frame_size
from unisono.wire.identity import Identity
from unisono.wire.link import Link, Links
from unisono.wire.messages import Bundle, Close, Message, Multiplex, Ping, Pong, Rows
from unisono.wire.transports.memory import MemoryNetwork

SESSION = SessionId("5e" * 16)
PEER = NodeId("ab" * 32)


def close(number: int) -> Close:
    """A message with a number in it."""
    return Close(SessionId(f"{number:032x}"))


def number(message: Message) -> int:
    assert isinstance(message, Close), message
    return int(message.session, 16)


def parts(frame: bytes) -> list[tuple[Message, bytes]]:
    """The messages of a frame."""
    message, body = decode_frame(frame)
    if not isinstance(message, Bundle):
        return [(message, bytes(body))]
    found: list[tuple[Message, bytes]] = []
    while body:
        size = frame_size(body[:FRAME_PREFIX])
        part, rest = decode_frame(bytes(body[:size]))
        found.append((part, bytes(rest)))
        body = body[size:]
    assert len(found) == message.count
    return found


class Scripted:
    """A stream whose other end is the test."""

    peer = PEER

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.closed = False
        self._incoming: asyncio.Queue[bytes | None] = asyncio.Queue()

    def push(self, *frames: bytes) -> None:
        for frame in frames:
            self._incoming.put_nowait(frame)

    async def send(self, frame: bytes) -> None:
        await self.may_send.wait()
        if self.closed:
            raise PeerGone("the stream is closed")
        self.sent.append(frame)

    async def receive(self) -> bytes:
        frame = None if self.closed else await self._incoming.get()
        if frame is None:
            raise PeerGone("the stream is closed")
        return frame

    async def close(self) -> None:
        self.closed = True
        self.may_send.set()
        self._incoming.put_nowait(None)

    @property
    def messages(self) -> list[tuple[Message, bytes]]:
        """What was sent."""
        return [part for frame in self.sent for part in parts(frame)]


class Running:
    """A link over a scripted stream, and what it received."""

    def __init__(self, clock: Clock, dialled: bool) -> None:
        self.stream = Scripted()
        self.received: list[tuple[Message, bytes]] = []
        self.round_trips: list[tuple[NodeId, float]] = []
        self.link = Link(
            self.stream,
            clock,
            lambda _, message, body: self.received.append((message, bytes(body))),
            dialled=dialled,
            observe=lambda node, seconds: self.round_trips.append((node, seconds)),
        )
        self.task = asyncio.create_task(self.link.run())

    async def ended(self) -> WireError:
        """Why the link is lost."""
        async with asyncio.timeout(5):
            with contextlib.suppress(PeerCheating):
                await self.task
        assert self.stream.closed
        assert self.link.problem is not None
        return self.link.problem


@asynccontextmanager
async def running(clock: Clock | None = None, dialled: bool = False) -> AsyncIterator[Running]:
    made = Running(clock or VirtualClock(), dialled)
    await turns()
    try:
        yield made
    finally:
        await made.link.close()
        await asyncio.wait({made.task}, timeout=5)
        made.task.exception()


async def turns(count: int = 20) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


class End:
    """One endpoint of a network, its links, and what came over them."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.transport = network.transport(Identity.generate())
        self.received: list[tuple[NodeId, Message, bytes]] = []
        self.lost: list[Link] = []
        self.cheated: list[PeerCheating] = []
        self.dials = 0
        self.links = Links(self.transport, network.clock, self._receive, self.lost.append)
        dial = self.transport.dial

        async def counted(peer: PeerAddress) -> Any:
            self.dials += 1
            await turns(3)
            return await dial(peer)

        self.transport.dial = counted  # type: ignore[method-assign]

    def _receive(self, link: Link, message: Message, body: memoryview) -> None:
        self.received.append((link.peer, message, bytes(body)))

    async def start(self) -> None:
        self.address = await self.transport.bind()
        self.serving = asyncio.create_task(self.transport.serve(self._handle))

    async def _handle(self, stream: Any) -> None:
        assert decode_frame(await stream.receive())[0] == Multiplex()
        try:
            await self.links.accept(stream)
        except PeerCheating as error:
            self.cheated.append(error)

    async def close(self) -> None:
        await self.links.close()
        await self.transport.close()
        self.serving.cancel()


@asynccontextmanager
async def ends(count: int = 2, clock: Clock | None = None) -> AsyncIterator[list[End]]:
    network = MemoryNetwork(clock or SystemClock())
    made = [End(network) for _ in range(count)]
    try:
        for end in made:
            await end.start()
        yield made
    finally:
        for end in made:
            await end.close()


async def until(condition: Any) -> None:
    """Wait until it holds.

    Raises:
        AssertionError: it does not, after five seconds.
    """
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it does not come about")


# --- order and content --------------------------------------------------------------------------

posts = st.lists(
    st.tuples(
        st.booleans(),  # by which end
        st.lists(st.sampled_from([0, 1, 3, 50, 400, 1000]), min_size=1, max_size=12),
        st.integers(0, 4),  # turns of the loop before the next ones
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(posts, st.sampled_from([300, 1 << 20]), st.sampled_from([2, 5, 1024]))
def test_whatever_is_posted_arrives_once_and_in_order(
    bursts: list[tuple[bool, list[int], int]], most_bytes: int, most_messages: int
) -> None:
    async def exchange() -> None:
        posted: tuple[list[tuple[Message, bytes]], ...] = ([], [])
        async with ends() as (one, two):
            forth = await one.links.to(two.address)
            forth.post(close(0))
            await until(lambda: two.received)
            back = two.links.existing(one.transport.node_id)
            assert back is not None
            count = 0
            for by_second, sizes, pause in bursts:
                for size in sizes:
                    count += 1
                    body = bytes([count % 256]) * size
                    posted[by_second].append((close(count), body))
                    (back if by_second else forth).post(close(count), body)
                await turns(pause)
            await until(
                lambda: (
                    (len(two.received), len(one.received)) == (len(posted[0]) + 1, len(posted[1]))
                )
            )
            await turns()
            assert [(m, b) for _, m, b in two.received[1:]] == posted[0]
            assert [(m, b) for _, m, b in one.received] == posted[1]
            assert {n for n, _, _ in two.received} == {one.transport.node_id}
            assert (one.dials, two.dials) == (1, 0)
            assert not one.lost + two.lost

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link_module, "MAX_BUNDLE_BYTES", most_bytes)
        patch.setattr(link_module, "MAX_BUNDLE_MESSAGES", most_messages)
        asyncio.run(exchange())


async def test_what_is_posted_together_leaves_together() -> None:
    async with running() as made:
        for i in range(50):
            made.link.post(close(i), bytes(i))
        await turns()
        assert len(made.stream.sent) == 1
        assert made.stream.messages == [(close(i), bytes(i)) for i in range(50)]
        made.link.post(close(50))
        await turns()
        assert decode_frame(made.stream.sent[1])[0] == close(50)  # alone, it is in no bundle


async def test_what_is_posted_while_a_frame_leaves_goes_with_the_next() -> None:
    async with running() as made:
        made.stream.may_send.clear()
        made.link.post(close(0))
        await turns()
        for i in range(1, 10):
            made.link.post(close(i))
            await turns()
        made.stream.may_send.set()
        await turns()
        assert [len(parts(f)) for f in made.stream.sent] == [1, 9]
        assert [number(m) for m, _ in made.stream.messages] == [*range(10)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 600), min_size=1, max_size=40), st.integers(2, 8))
def test_bundles_are_as_large_as_they_may_be_and_no_larger(sizes: list[int], most: int) -> None:
    frames = [encode_frame(close(i), bytes(size)) for i, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link_module, "MAX_BUNDLE_BYTES", 1000)
        patch.setattr(link_module, "MAX_BUNDLE_MESSAGES", most)
        bundles = list(link_module._bundles(frames))
    assert [p for b, _ in bundles for p in parts(b)] == [parts(f)[0] for f in frames]
    assert sum(size for _, size in bundles) == sum(map(len, frames))
    groups = [[len(encode_frame(m, b)) for m, b in parts(bundle)] for bundle, _ in bundles]
    assert all(len(g) <= most and (sum(g) <= 1000 or len(g) == 1) for g in groups)
    for group, following in pairwise(groups):
        assert len(group) == most or sum(group) + following[0] > 1000


# --- back pressure ------------------------------------------------------------------------------


async def test_bulk_data_waits_for_room_and_is_told_when_there_is_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "HIGH_WATER", 1000)
    async with running() as made:
        told: list[int] = []
        assert made.link.has_room
        made.stream.may_send.clear()
        made.link.post(close(1), bytes(500))
        assert made.link.has_room
        await turns()
        made.link.post(close(2), bytes(600))
        assert not made.link.has_room
        made.link.post(close(3))  # whatever must be said can be said
        made.link.when_room(lambda: told.append(1))
        made.link.when_room(lambda: told.append(2))
        await turns()
        assert told == []
        made.stream.may_send.set()
        await turns()
        assert told == [1, 2]  # each once
        assert made.link.has_room
        made.link.post(close(4))
        await turns()
        assert told == [1, 2]
        assert [number(m) for m, _ in made.stream.messages] == [1, 2, 3, 4]


async def test_who_is_told_of_room_may_fill_it_and_ask_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "HIGH_WATER", 1000)
    async with running() as made:
        left = 30

        def pump() -> None:
            nonlocal left
            while left:
                if not made.link.has_room:
                    made.link.when_room(pump)
                    return
                left -= 1
                made.link.post(close(left), bytes(300))
                assert made.link._waiting < 1000 + 400

        pump()
        assert left > 20
        await until(lambda: not left)
        await turns()
        assert [number(m) for m, _ in made.stream.messages] == [*range(29, -1, -1)]


async def test_a_peer_that_reads_too_slowly_is_lost_though_it_is_not_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "MAX_WAITING", 5000)
    clock = VirtualClock()
    async with running(clock) as made:
        made.stream.may_send.clear()
        count = 0
        while made.link.problem is None:
            made.link.post(close(count), bytes(500))
            count += 1
            assert count < 11
        assert isinstance(made.link.problem, PeerGone)
        assert "unread" in str(made.link.problem)
        made.link.post(close(99))  # dropped: its users have been told
        for nonce in range(4):
            made.stream.push(encode_frame(Ping(nonce)))
            await clock.advance(0.5)
        assert "unread" in str(await made.ended())
        assert made.stream.sent == []


# --- pings and silence --------------------------------------------------------------------------


async def test_a_ping_is_answered_with_its_number_and_seen_by_nobody_else() -> None:
    async with running() as made:
        made.stream.push(encode_frame(Ping(7)), encode_frame(Ping(1 << 40)))
        await turns()
        assert [m for m, _ in made.stream.messages] == [Pong(7), Pong(1 << 40)]
        assert made.received == []


async def test_the_side_that_dialled_measures_round_trips() -> None:
    clock = VirtualClock()
    async with running(clock, dialled=True) as made:
        assert made.link.round_trip is None
        await clock.advance(link_module.PING_SECONDS)
        (ping,) = [m for m, _ in made.stream.messages]
        assert isinstance(ping, Ping)
        await clock.advance(0.25)
        made.stream.push(encode_frame(Pong(ping.nonce + 5)))  # never sent: nothing is learnt
        await turns()
        assert made.link.round_trip is None
        made.stream.push(encode_frame(Pong(ping.nonce)), encode_frame(Pong(ping.nonce)))
        await turns()
        assert made.link.round_trip == 0.25
        assert made.round_trips == [(PEER, 0.25)]
    async with running(clock) as accepted:
        await clock.advance(2 * link_module.PING_SECONDS)
        assert accepted.stream.sent == []


@pytest.mark.parametrize("dialled", [False, True])
async def test_a_silent_peer_is_lost(dialled: bool) -> None:
    clock = VirtualClock()
    async with running(clock, dialled) as made:
        made.link.users.add("somebody")
        for _ in range(4):
            await clock.advance(2.0)
            assert made.link.problem is None
            made.stream.push(encode_frame(close(1)))
            await turns()
        await clock.advance(link_module.SILENT_SECONDS)
        assert made.link.problem is None
        await clock.advance(link_module.PING_SECONDS)
        assert "silent for 3 s" in str(await made.ended())


async def test_an_unused_link_is_closed_by_the_side_that_dialled_it() -> None:
    clock = VirtualClock()
    async with ends(2, clock) as (one, two):
        link = await one.links.to(two.address)
        await clock.advance(link_module.IDLE_SECONDS / 2)
        link.post(close(1))
        await turns()
        assert two.received
        link.users.add("somebody")
        await clock.advance(3 * link_module.IDLE_SECONDS)
        assert (one.lost, two.lost) == ([], [])
        assert len(one.links.links()) == len(two.links.links()) == 1
        assert link.round_trip == 0
        link.users.clear()
        await clock.advance(link_module.IDLE_SECONDS - 1)
        assert one.lost == []
        two.links.links()[0].post(close(2))  # what comes is use, too
        await turns()
        await clock.advance(link_module.IDLE_SECONDS - 1)
        assert one.lost == []
        await clock.advance(3)
        await turns()
        assert one.lost == [link]
        assert "nobody used the link" in str(link.problem)
        assert len(two.lost) == 1
        assert one.links.links() == two.links.links() == ()
        again = await one.links.to(two.address)
        assert again is not link


# --- broken protocol ----------------------------------------------------------------------------

PING = encode_frame(Ping(1))
ROWS = encode_frame(Rows(SESSION, 0, b"\x04", (), 3, 0), bytes(8))
BROKEN: dict[str, tuple[bytes, str]] = {
    "a bundle inside a bundle": (
        encode_frame(Bundle(2), PING + encode_frame(Bundle(2), PING + PING)),
        "inside a bundle",
    ),
    "one message more than was announced": (encode_frame(Bundle(2), PING * 3), "holds 3"),
    "one message less than was announced": (encode_frame(Bundle(3), PING * 2), "holds 2"),
    "an empty bundle": (encode_frame(Bundle(2)), "holds 0"),
    "a bundle that is cut": (encode_frame(Bundle(2), PING + ROWS[:-1]), "the frame claims"),
    "a bundle that is cut within a prefix": (encode_frame(Bundle(2), PING + ROWS[:5]), "got 5"),
    "garbage in a bundle": (encode_frame(Bundle(2), PING + b"GET / HTTP/1.1"), "got b'GE'"),
    "garbage": (b"GET / HTTP/1.1", "got b'GE'"),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_link_ends_when_the_peer_breaks_the_protocol(what: str) -> None:
    frame, said = BROKEN[what]
    async with running() as made:
        made.stream.push(encode_frame(close(1)), frame, encode_frame(close(2)))
        with pytest.raises(PeerCheating, match=said):
            async with asyncio.timeout(5):
                await made.task
        assert said in str(await made.ended())
        assert [number(m) for m, _ in made.received] == [1]


async def test_a_link_ends_when_a_message_is_not_one_that_its_receiver_takes() -> None:
    clock = VirtualClock()
    stream, taken = Scripted(), list[int]()

    def receive(_: Link, message: Message, body: memoryview) -> None:
        if number(message) == 2:
            raise PeerCheating("two is too many")
        taken.append(number(message))

    link = Link(stream, clock, receive, dialled=False)
    body = b"".join(encode_frame(close(i)) for i in range(4))
    stream.push(encode_frame(Bundle(4), body))
    with pytest.raises(PeerCheating, match="two is too many"):
        async with asyncio.timeout(5):
            await link.run()
    assert taken == [0, 1]
    assert stream.closed


async def test_whoever_used_a_link_is_told_once_that_it_is_lost() -> None:
    async with ends(3) as (one, two, three):
        first, second = await one.links.to(two.address), await one.links.to(three.address)
        (broken,) = [s for s in one.transport.streams if s.peer == two.transport.node_id]
        broken.push(BROKEN["garbage"][0])
        await until(lambda: one.lost and two.lost)
        assert one.lost == [first]
        assert [link.peer for link in two.lost] == [one.transport.node_id]
        assert isinstance(two.lost[0].problem, PeerCheating)
        assert len(two.cheated) == 1
        assert one.links.existing(two.transport.node_id) is None
        assert one.links.existing(three.transport.node_id) is second
        assert (three.lost, second.problem) == ([], None)
        first.post(close(1))
        again = await one.links.to(two.address)
        again.post(close(2))
        await until(lambda: two.received)
        assert [number(m) for _, m, _ in two.received] == [2]


# --- one link per peer --------------------------------------------------------------------------


async def test_all_who_want_a_link_with_a_peer_share_one() -> None:
    async with ends(3) as (one, two, three):
        found = await asyncio.gather(
            *(one.links.to(end.address) for end in (two, three, two, two, three))
        )
        assert one.dials == 2
        assert len({id(link) for link in found}) == 2
        assert await one.links.to(two.address) is found[0]
        assert one.dials == 2
        found[0].post(close(1))
        await until(lambda: two.received)
        # the other side uses the same link, and dials none
        back = await two.links.to(one.address)
        back.post(close(2))
        await until(lambda: one.received)
        assert two.dials == 0


async def test_one_who_gives_up_waiting_does_not_take_the_link_from_the_others() -> None:
    async with ends() as (one, two):
        waiting = [asyncio.create_task(one.links.to(two.address)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        first, second = await asyncio.gather(*waiting[1:])
        assert first is second
        assert first.problem is None
        assert one.dials == 1


async def test_a_peer_that_cannot_be_reached_is_tried_again_by_the_next_who_wants_it() -> None:
    async with ends() as (one, two):
        nowhere = PeerAddress(two.transport.node_id, "memory", ("memory:none",))
        outcomes = await asyncio.gather(
            *(one.links.to(nowhere) for _ in range(3)), return_exceptions=True
        )
        assert [type(o) for o in outcomes] == [PeerGone] * 3
        assert one.dials == 1
        assert (await one.links.to(two.address)).problem is None
        assert one.dials == 2


async def test_another_key_at_the_address_is_no_link() -> None:
    async with ends(3) as (one, two, three):
        wrong = PeerAddress(three.transport.node_id, "memory", two.address.addresses)
        with pytest.raises(PeerCheating):
            await one.links.to(wrong)
        assert one.links.links() == ()


async def test_when_both_dial_at_once_both_links_work() -> None:
    async with ends() as (one, two):
        forth, back = await asyncio.gather(one.links.to(two.address), two.links.to(one.address))
        for i in range(5):
            forth.post(close(i))
            back.post(close(10 + i))
        await until(lambda: len(one.received) == len(two.received) == 5)
        assert [number(m) for _, m, _ in two.received] == [*range(5)]
        assert [number(m) for _, m, _ in one.received] == [*range(10, 15)]


async def test_warming_has_links_with_all_that_can_be_reached() -> None:
    async with ends(3) as (one, two, three):
        nowhere = PeerAddress(PEER, "memory", ("memory:none",))
        await one.links.warm([nowhere, two.address, three.address])
        assert {link.peer for link in one.links.links()} == {
            two.transport.node_id,
            three.transport.node_id,
        }


async def test_closing_ends_every_link_and_tells_who_used_them() -> None:
    async with ends(3) as (one, two, three):
        for end in (two, three):
            await one.links.to(end.address)
        await until(lambda: two.links.links() and three.links.links())
        await one.links.close()
        await one.links.close()
        await until(lambda: two.lost and three.lost)
        assert len(one.lost) == 2
        assert all(link.problem is not None for link in one.lost)
        assert one.links.links() == two.links.links() == three.links.links() == ()
