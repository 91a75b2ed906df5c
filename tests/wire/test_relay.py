"""Relays: nodes that cannot be dialled are reached through them, and nobody is deceived."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from unisono.clock import VirtualClock
from unisono.errors import PeerCheating, PeerGone, WireError
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Message, Ping, Refused
from unisono.wire.relay_messages import (
    Answer,
    Call,
    DialBack,
    Introduce,
    Introduced,
    Joined,
    Knock,
    Look,
    Reserve,
    Reserved,
    Sealed,
    Seen,
)
from unisono.wire.transports import rendezvous as rendezvous_module
from unisono.wire.transports.base import Stream, StreamHandler, Transport
from unisono.wire.transports.circuit import sealed_body, sealed_frame
from unisono.wire.transports.memory import MemoryNetwork, MemoryTransport
from unisono.wire.transports.relay import RelayLimits
from unisono.wire.transports.relayed import RelayedTransport
from unisono.wire.transports.tcp import TcpTransport


def frame(number: int, body: bytes = b"") -> bytes:
    return encode_frame(Ping(number), body)


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


class Walled(MemoryTransport):
    """A node behind a wall: it dials others, and others cannot dial it until it falls."""

    wall = True
    dialled: list[tuple[NodeId, NodeId]]

    def offer(self, stream: object) -> None:
        if self.wall and not getattr(self, "inviting", False):
            raise PeerGone("a wall is in the way")
        super().offer(stream)  # type: ignore[arg-type]


class Net:
    """Nodes in memory: a relay, a node behind a wall that holds a place there, a caller."""

    def __init__(self) -> None:
        self.hub = MemoryNetwork()
        self.transports: list[Transport] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def add(
        self,
        *,
        handler: StreamHandler | None = echo,
        walled: bool = False,
        identity: Identity | None = None,
        **more: object,
    ) -> tuple[RelayedTransport, PeerAddress]:
        identity = identity or Identity.generate()
        inner = (Walled if walled else MemoryTransport)(self.hub, identity)
        made = RelayedTransport(inner, identity, **more)  # type: ignore[arg-type]
        self.transports.append(made)
        address = await made.bind()
        if handler is not None:
            self.tasks.append(asyncio.create_task(made.serve(handler)))
            await asyncio.sleep(0)
        return made, address

    async def plain(self, handler: StreamHandler, identity: Identity) -> PeerAddress:
        """A node that speaks for itself, message by message."""
        made = self.hub.transport(identity)
        self.transports.append(made)
        address = await made.bind()
        self.tasks.append(asyncio.create_task(made.serve(handler)))
        return address

    async def close(self) -> None:
        await asyncio.gather(*(transport.close() for transport in self.transports))
        await asyncio.wait_for(asyncio.gather(*self.tasks), 5)


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    made = Net()
    yield made
    await made.close()
    for _ in range(50):
        if len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0.01)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "unisono" in repr(task.get_coro())]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("this did not happen in 5 s")


async def ask(transport: Transport, relay: PeerAddress, message: Message) -> tuple[Stream, Message]:
    stream = await transport.dial(relay)
    await stream.send(encode_frame(message))
    return stream, decode_frame(await stream.receive())[0]


async def bare(net: Net) -> MemoryTransport:
    """A transport without relays, for messages by hand."""
    made = net.hub.transport(Identity.generate())
    net.transports.append(made)
    await made.bind()
    return made


async def test_a_node_behind_a_wall_is_reached_through_its_relay(net: Net) -> None:
    relay, relay_at = await net.add(serve_relay=True)
    _, home = await net.add(walled=True, relays=[relay_at])
    caller, _ = await net.add()
    assert home.addresses[1] == f"relay/memory://{relay_at.node}@{relay_at.addresses[0]}"
    stream = await caller.dial(home)
    assert stream.peer == home.node
    for body in (b"", b"x" * 70_000, b"y" * 300_000):
        await stream.send(frame(1, body))
        assert await stream.receive() == frame(1, body)
    assert relay.relay is not None
    assert relay.relay.circuits == 1
    assert relay.relay.carried > 700_000
    await stream.close()
    await until(lambda: relay.relay is not None and relay.relay.circuits == 0)


async def test_the_called_node_knows_who_calls(net: Net) -> None:
    _, relay_at = await net.add(serve_relay=True)
    seen: asyncio.Queue[NodeId] = asyncio.Queue()

    async def note(stream: Stream) -> None:
        await seen.put(stream.peer)

    _, home = await net.add(walled=True, relays=[relay_at], handler=note)
    caller, own = await net.add()
    await caller.dial(home)
    assert await asyncio.wait_for(seen.get(), 5) == own.node


async def test_two_walled_nodes_meet_at_a_relay(net: Net) -> None:
    _, relay_at = await net.add(serve_relay=True)
    _, home = await net.add(walled=True, relays=[relay_at])
    other, _ = await net.add(walled=True, relays=[relay_at])
    stream = await other.dial(home)
    await stream.send(frame(5))
    assert await stream.receive() == frame(5)


async def test_the_relay_itself_reaches_its_guest(net: Net) -> None:
    relay, relay_at = await net.add(serve_relay=True)
    _, home = await net.add(walled=True, relays=[relay_at])
    stream = await relay.dial(home)
    assert stream.peer == home.node
    await stream.send(frame(5, b"z" * 100_000))
    assert await stream.receive() == frame(5, b"z" * 100_000)
    await stream.close()


async def test_the_last_frames_before_a_close_arrive(net: Net) -> None:
    _, relay_at = await net.add(serve_relay=True)
    got: list[bytes] = []
    ended = asyncio.Event()

    async def collect(stream: Stream) -> None:
        try:
            while True:
                got.append(await stream.receive())
        except PeerGone:
            ended.set()

    _, home = await net.add(walled=True, relays=[relay_at], handler=collect)
    caller, _ = await net.add()
    stream = await caller.dial(home)
    sent = [frame(i, bytes(1000 * i)) for i in range(50)]
    for each in sent:
        await stream.send(each)
    await stream.close()
    await asyncio.wait_for(ended.wait(), 5)
    assert got == sent


async def test_a_relay_that_dies_ends_its_circuits_and_another_takes_over(net: Net) -> None:
    first, first_at = await net.add(serve_relay=True)
    _, second_at = await net.add(serve_relay=True)
    home, home_at = await net.add(walled=True, relays=[first_at, second_at])
    assert len(home_at.addresses) == 3
    caller, _ = await net.add()
    stream = await caller.dial(PeerAddress(home_at.node, "memory", home_at.addresses[1:2]))
    await stream.send(frame(1))
    await stream.receive()
    dead = first if str(first_at.node) in home_at.addresses[1] else None
    victim = first_at.node if dead else second_at.node
    net.hub.kill(victim)
    with pytest.raises(PeerGone):
        await stream.receive()
    await until(lambda: len(home.address.addresses) == 2)
    stream = await caller.dial(home_at)
    await stream.send(frame(2))
    assert await stream.receive() == frame(2)


async def test_a_place_that_was_lost_is_taken_again(net: Net) -> None:
    _, relay_at = await net.add(serve_relay=True)
    home, home_at = await net.add(walled=True, relays=[relay_at])
    net.hub.kill(relay_at.node)
    await until(lambda: len(home.address.addresses) == 1)
    net.hub.revive(relay_at.node)
    await until(lambda: len(home.address.addresses) == 2)
    caller, _ = await net.add()
    await caller.dial(home_at)


async def test_new_streams_are_direct_once_the_wall_is_gone(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous_module, "PAUSES", (0.0, 0.05, 0.05, 0.05, 0.05, 0.05))
    relay, relay_at = await net.add(serve_relay=True)
    home, home_at = await net.add(walled=True, relays=[relay_at])
    caller, _ = await net.add()
    through = await caller.dial(home_at)
    assert relay.relay is not None
    assert relay.relay.circuits == 1
    inner = home.inner
    assert isinstance(inner, Walled)
    inner.wall = False
    await until(lambda: caller._rendezvous.found(home_at.node) != ())
    direct = await caller.dial(home_at)
    await direct.send(frame(2))
    assert await direct.receive() == frame(2)
    assert relay.relay.circuits == 1
    # The stream that goes through the relay stays there.
    await through.send(frame(3))
    assert await through.receive() == frame(3)


async def test_a_stranger_at_an_address_of_a_home_is_no_proof_of_cheating(net: Net) -> None:
    _, relay_at = await net.add(serve_relay=True)
    _, stranger_at = await net.add()
    caller, _ = await net.add()
    target = Identity.generate().node_id
    way = f"relay/memory://{relay_at.node}@{relay_at.addresses[0]}"
    address = PeerAddress(target, "memory", (*stranger_at.addresses, way))
    with pytest.raises(PeerGone, match="held by the node"):
        await caller.dial(address)
    # Without a relay, the address is all that the record says, and it is wrong.
    with pytest.raises(PeerCheating):
        await caller.dial(PeerAddress(target, "memory", stranger_at.addresses))


async def test_relays_can_be_given_later_and_must_be_dialled_themselves(net: Net) -> None:
    _, relay_at = await net.add(serve_relay=True)
    home, home_at = await net.add(walled=True)
    assert len(home_at.addresses) == 1
    nested = PeerAddress(relay_at.node, "memory", (f"relay/memory://{'ab' * 32}@1.2.3.4:5",))
    await home.use_relays([nested])
    assert len((await home.bind()).addresses) == 1
    await home.use_relays([nested, relay_at])
    address = await home.bind()
    assert len(address.addresses) == 2
    caller, _ = await net.add()
    stream = await caller.dial(address)
    await stream.send(frame(5))
    assert await stream.receive() == frame(5)


async def test_a_node_that_can_be_dialled_is_not_called_through_its_relay(net: Net) -> None:
    relay, relay_at = await net.add(serve_relay=True)
    _, home = await net.add(relays=[relay_at])
    caller, _ = await net.add()
    await caller.dial(home)
    assert relay.relay is not None
    assert relay.relay.circuits == 0


# What a relay could try


class Tampering:
    """A relay that joins a caller with a target as the real one does, and changes frames."""

    def __init__(self, change: Callable[[int, bytes], bytes | None]) -> None:
        self.change = change
        self.place: Stream | None = None
        self.answers: dict[str, asyncio.Future[Stream]] = {}
        self.over = asyncio.Event()

    async def serve(self, stream: Stream) -> None:
        message, _ = decode_frame(await stream.receive())
        if isinstance(message, Reserve):
            self.place = stream
            await stream.send(encode_frame(Reserved(None, 60_000)))
            await self.over.wait()
        elif isinstance(message, Answer):
            await stream.send(encode_frame(Joined()))
            self.answers[message.ticket].set_result(stream)
            await self.over.wait()
        elif isinstance(message, Call):
            assert self.place is not None
            ticket = "ab" * 16
            self.answers[ticket] = asyncio.get_running_loop().create_future()
            await self.place.send(encode_frame(Knock(ticket, stream.peer)))
            far = await self.answers[ticket]
            await stream.send(encode_frame(Joined()))
            await asyncio.gather(self.copy(stream, far, True), self.copy(far, stream, False))

    async def copy(self, source: Stream, to: Stream, changed: bool) -> None:
        for count in range(1 << 30):
            data: bytes | None = await source.receive()
            assert data is not None
            if changed:
                data = self.change(count, data)
            if data is not None:
                await to.send(data)


@contextlib.asynccontextmanager
async def tampering(
    net: Net, change: Callable[[int, bytes], bytes | None], handler: StreamHandler = echo
) -> AsyncIterator[tuple[RelayedTransport, PeerAddress, Tampering]]:
    mallory = Tampering(change)
    relay_at = await net.plain(mallory.serve, Identity.generate())
    _, home = await net.add(walled=True, relays=[relay_at], handler=handler)
    caller, _ = await net.add()
    yield caller, home, mallory
    mallory.over.set()


def flip(data: bytes) -> bytes:
    body = bytearray(sealed_body(data))
    body[-1] ^= 1
    return sealed_frame(bytes(body))


async def test_an_honest_copy_passes(net: Net) -> None:
    async with tampering(net, lambda _, data: data) as (caller, home, _):
        stream = await caller.dial(home)
        await stream.send(frame(1))
        assert await stream.receive() == frame(1)


@pytest.mark.parametrize("kind", ["altered", "dropped", "repeated"])
async def test_what_a_relay_changes_is_noticed_and_not_blamed_on_the_peer(
    net: Net, kind: str
) -> None:
    outcome: asyncio.Queue[object] = asyncio.Queue()
    kept: list[bytes] = []

    def change(count: int, data: bytes) -> bytes | None:
        # Frames 0 and 1 are the handshake; then come the frames of this test.
        if kind == "altered" and count == 3:
            return flip(data)
        if kind == "dropped" and count == 3:
            return None
        if kind == "repeated":
            kept.append(data)
            return kept[2] if count == 3 else data
        return data

    async def note(stream: Stream) -> None:
        try:
            while True:
                await outcome.put(await stream.receive())
        except WireError as error:
            await outcome.put(error)
            raise

    async with tampering(net, change, note) as (caller, home, _):
        stream = await caller.dial(home)
        for number in (1, 2, 3):
            with contextlib.suppress(PeerGone):
                await stream.send(frame(number))
        assert await asyncio.wait_for(outcome.get(), 5) == frame(1)
        got = await asyncio.wait_for(outcome.get(), 5)
        assert isinstance(got, PeerGone)
        assert "relay broke" in str(got)


@pytest.mark.parametrize("count", [0, 1])
async def test_a_handshake_that_a_relay_alters_fails(net: Net, count: int) -> None:
    change: Callable[[int, bytes], bytes] = lambda at, data: flip(data) if at == count else data  # noqa: E731
    async with tampering(net, change) as (caller, home, _):
        try:
            stream = await caller.dial(home)
            await stream.send(frame(1))
            await asyncio.wait_for(stream.receive(), 5)
        except PeerGone:
            return
        raise AssertionError("the handshake passed")


async def test_a_relay_cannot_answer_in_the_name_of_the_target(net: Net) -> None:
    from unisono.wire.transports.circuit import CircuitLink
    from unisono.wire.transports.sealed import shake_as_listener

    mallory = Identity.generate()

    async def impersonate(stream: Stream) -> None:
        message, _ = decode_frame(await stream.receive())
        assert isinstance(message, Call)
        await stream.send(encode_frame(Joined()))
        link = CircuitLink(stream, lambda _: None)
        try:
            await shake_as_listener(link, mallory)
        finally:
            link.abort()
            await link.closed.wait()

    relay_at = await net.plain(impersonate, mallory)
    caller, _ = await net.add()
    target = Identity.generate().node_id
    address = PeerAddress(
        target, "memory", (f"relay/memory://{relay_at.node}@{relay_at.addresses[0]}",)
    )
    with pytest.raises(PeerGone, match="does not lead to"):
        await caller.dial(address)


async def test_a_relay_cannot_announce_a_false_caller(net: Net) -> None:
    handled = asyncio.Event()

    async def note(stream: Stream) -> None:
        handled.set()

    class Lying(Tampering):
        async def serve(self, stream: Stream) -> None:
            message, _ = decode_frame(await stream.receive())
            if isinstance(message, Reserve):
                await stream.send(encode_frame(Reserved(None, 60_000)))
                self.place = stream
                await self.over.wait()
            elif isinstance(message, Answer):
                await stream.send(encode_frame(Joined()))
                self.answers[message.ticket].set_result(stream)
                await self.over.wait()

    mallory = Identity.generate()
    lying = Lying(lambda _, data: data)
    relay_at = await net.plain(lying.serve, mallory)
    _, _ = await net.add(walled=True, relays=[relay_at], handler=note)
    assert lying.place is not None
    ticket = "cd" * 16
    future: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
    lying.answers[ticket] = future
    victim = Identity.generate().node_id
    await lying.place.send(encode_frame(Knock(ticket, victim)))
    from unisono.wire.transports.circuit import CircuitLink
    from unisono.wire.transports.sealed import shake_as_dialler

    link = CircuitLink(await asyncio.wait_for(future, 5), lambda _: None)
    home = lying.place.peer
    stream = await shake_as_dialler(link, mallory, home)
    with pytest.raises(PeerGone):
        await asyncio.wait_for(stream.receive(), 5)
    assert not handled.is_set()
    link.abort()
    await link.closed.wait()
    lying.over.set()


async def test_the_relay_sees_no_plain_text(net: Net) -> None:
    seen = bytearray()

    def look(_: int, data: bytes) -> bytes:
        seen.extend(data)
        return data

    secret = b"the most beautiful thing about the sea" * 20
    async with tampering(net, look) as (caller, home, _):
        stream = await caller.dial(home)
        await stream.send(frame(1, secret))
        assert await stream.receive() == frame(1, secret)
    assert len(seen) > len(secret)
    assert secret[:16] not in seen


# Limits


async def place(net: Net, relay_at: PeerAddress) -> tuple[MemoryTransport, Stream]:
    """A guest that only holds a place."""
    guest = await bare(net)
    stream, answer = await ask(guest, relay_at, Reserve(()))
    assert isinstance(answer, Reserved)
    return guest, stream


def refused(message: Message) -> str:
    assert isinstance(message, Refused)
    return message.code


async def test_a_full_relay_says_so(net: Net) -> None:
    _, relay_at = await net.add(serve_relay=True, limits=RelayLimits(places=1))
    guest, _ = await place(net, relay_at)
    other = await bare(net)
    _, answer = await ask(other, relay_at, Reserve(()))
    assert refused(answer) == "relay_full"
    # The holder itself may come again, and its older stream ends.
    _, again = await ask(guest, relay_at, Reserve(()))
    assert isinstance(again, Reserved)


async def test_a_node_that_is_no_relay_refuses(net: Net) -> None:
    _, at = await net.add()
    stranger = await bare(net)
    for request in (Reserve(()), Call(at.node), Answer("ab" * 16), Introduce(at.node, ())):
        _, answer = await ask(stranger, at, request)
        assert refused(answer) == "no_relay"


async def test_a_call_of_someone_without_a_place_is_refused(net: Net) -> None:
    _, relay_at = await net.add(serve_relay=True)
    caller = await bare(net)
    nobody = Identity.generate().node_id
    for request in (Call(nobody), Introduce(nobody, ())):
        _, answer = await ask(caller, relay_at, request)
        assert refused(answer) == "no_place"


async def test_a_ticket_is_good_once_and_for_its_target_only(net: Net) -> None:
    _, relay_at = await net.add(serve_relay=True)
    guest, place_stream = await place(net, relay_at)
    caller, thief = await bare(net), await bare(net)
    calling = asyncio.create_task(ask(caller, relay_at, Call(guest.node_id)))
    knock, _ = decode_frame(await place_stream.receive())
    assert isinstance(knock, Knock)
    assert knock.caller == caller.node_id
    _, answer = await ask(thief, relay_at, Answer(knock.ticket))
    assert refused(answer) == "unknown_ticket"
    far, answer = await ask(guest, relay_at, Answer(knock.ticket))
    assert isinstance(answer, Joined)
    near, joined = await calling
    assert isinstance(joined, Joined)
    _, answer = await ask(guest, relay_at, Answer(knock.ticket))
    assert refused(answer) == "unknown_ticket"
    await near.send(sealed_frame(b"abc"))
    assert await far.receive() == sealed_frame(b"abc")


async def test_a_target_that_does_not_answer_is_given_up(net: Net) -> None:
    limits = RelayLimits(answer_seconds=0.05)
    relay, relay_at = await net.add(serve_relay=True, limits=limits)
    guest, _ = await place(net, relay_at)
    caller = await bare(net)
    _, answer = await ask(caller, relay_at, Call(guest.node_id))
    assert refused(answer) == "no_answer"
    assert relay.relay is not None
    await until(lambda: relay.relay is not None and relay.relay.circuits == 0)


async def circuit(
    net: Net, relay_at: PeerAddress, caller: MemoryTransport | None = None
) -> tuple[Stream, Stream]:
    """Both ends of a new circuit, bare."""
    guest, place_stream = await place(net, relay_at)
    caller = caller or await bare(net)
    calling = asyncio.create_task(ask(caller, relay_at, Call(guest.node_id)))
    knock, _ = decode_frame(await asyncio.wait_for(place_stream.receive(), 5))
    assert isinstance(knock, Knock)
    far, _ = await ask(guest, relay_at, Answer(knock.ticket))
    near, answer = await calling
    assert isinstance(answer, Joined)
    return near, far


async def test_circuits_are_counted_per_peer_and_in_total(net: Net) -> None:
    limits = RelayLimits(circuits=3, circuits_per_peer=2, answer_seconds=0.2)
    _, relay_at = await net.add(serve_relay=True, limits=limits)
    greedy = await bare(net)
    first, _ = await circuit(net, relay_at, greedy)
    await circuit(net, relay_at, greedy)
    guest, _ = await place(net, relay_at)
    _, answer = await ask(greedy, relay_at, Call(guest.node_id))
    assert refused(answer) == "too_many_circuits"
    await circuit(net, relay_at)
    other = await bare(net)
    _, answer = await ask(other, relay_at, Call(guest.node_id))
    assert refused(answer) == "relay_full"
    await first.close()
    await asyncio.sleep(0.05)
    _, answer = await ask(other, relay_at, Call(guest.node_id))
    assert refused(answer) == "no_answer"  # it was let in: nobody answers this guest's knock


async def test_bytes_per_hour_are_limited(net: Net) -> None:
    limits = RelayLimits(bytes_per_hour_of_peer=1000, answer_seconds=0.05)
    _, relay_at = await net.add(serve_relay=True, limits=limits)
    caller = await bare(net)
    near, far = await circuit(net, relay_at, caller)
    for _ in range(3):
        await near.send(sealed_frame(bytes(600)))
    assert await far.receive() == sealed_frame(bytes(600))
    assert await far.receive() == sealed_frame(bytes(600))
    with pytest.raises(PeerGone):
        await asyncio.wait_for(far.receive(), 5)
    guest, _ = await place(net, relay_at)
    _, answer = await ask(caller, relay_at, Call(guest.node_id))
    assert refused(answer) == "quota"


async def test_a_fast_sender_waits_for_its_rate(net: Net) -> None:
    clock = VirtualClock()
    limits = RelayLimits(bytes_per_second_of_peer=10_000)
    _, relay_at = await net.add(serve_relay=True, limits=limits, clock=clock)
    near, far = await circuit(net, relay_at)
    got: list[bytes] = []

    async def collect() -> None:
        with contextlib.suppress(PeerGone):
            while True:
                got.append(await far.receive())

    collecting = asyncio.create_task(collect())
    for _ in range(30):
        await near.send(sealed_frame(bytes(1000)))
    await asyncio.sleep(0.05)
    assert 8 <= len(got) <= 10  # one second's worth at once
    await clock.advance(1.0)
    await asyncio.sleep(0.05)
    assert 17 <= len(got) <= 20
    await near.close()
    await clock.advance(10.0)
    await asyncio.wait_for(collecting, 5)


@pytest.mark.parametrize(
    "data", [frame(1), sealed_frame(b""), sealed_frame(bytes((64 << 10) + 65)), frame(1, b"x" * 99)]
)
async def test_only_sealed_frames_of_some_size_pass(net: Net, data: bytes) -> None:
    _, relay_at = await net.add(serve_relay=True)
    near, far = await circuit(net, relay_at)
    await near.send(data)
    with pytest.raises(PeerGone):
        await asyncio.wait_for(far.receive(), 5)
    with pytest.raises(PeerGone):
        await asyncio.wait_for(near.receive(), 5)


async def test_idle_circuits_and_silent_places_end(net: Net) -> None:
    clock = VirtualClock()
    relay, relay_at = await net.add(serve_relay=True, clock=clock)
    near, far = await circuit(net, relay_at)
    assert relay.relay is not None
    await clock.advance(100)
    await near.send(sealed_frame(b"still here"))
    await far.receive()
    await asyncio.sleep(0.01)
    assert relay.relay.places == 0  # its holder never said anything
    await clock.advance(100)
    await asyncio.sleep(0.01)
    assert relay.relay.circuits == 1
    await clock.advance(21)
    for end in (near, far):
        with pytest.raises(PeerGone):
            await asyncio.wait_for(end.receive(), 5)
    await until(lambda: relay.relay is not None and relay.relay.circuits == 0)


async def test_a_place_is_kept_by_asking_in_time(net: Net) -> None:
    clock = VirtualClock()
    relay, relay_at = await net.add(serve_relay=True, clock=clock)
    await net.add(walled=True, relays=[relay_at], clock=clock)
    assert relay.relay is not None
    for _ in range(40):
        await clock.advance(10)
        await asyncio.sleep(0.001)
        assert relay.relay.places == 1


async def test_introductions_reach_the_target_and_are_rare(net: Net) -> None:
    _, relay_at = await net.add(serve_relay=True, clock=VirtualClock())
    guest = await bare(net)
    place_stream, _ = await ask(guest, relay_at, Reserve(("1.2.3.4:5",)))
    caller = await bare(net)
    for _ in range(8):
        _, answer = await ask(caller, relay_at, Introduce(guest.node_id, ("6.7.8.9:1",)))
        assert answer == Introduced(("1.2.3.4:5",))
        told, _ = decode_frame(await place_stream.receive())
        assert told == DialBack(caller.node_id, ("6.7.8.9:1",))
    _, answer = await ask(caller, relay_at, Introduce(guest.node_id, ()))
    assert refused(answer) == "too_often"


async def test_a_stream_that_starts_with_something_else_is_closed(net: Net) -> None:
    _, at = await net.add()
    stranger = await bare(net)
    for first in (frame(1), encode_frame(Sealed(), b"x"), encode_frame(Joined())):
        stream = await stranger.dial(at)
        await stream.send(first)
        with pytest.raises(PeerGone):
            await asyncio.wait_for(stream.receive(), 5)


async def test_a_peer_over_tcp_says_where_it_sees_this_node() -> None:
    identity = Identity.generate()
    server = RelayedTransport(TcpTransport(identity), identity)
    at = await server.bind()
    serving = asyncio.create_task(server.serve(echo))
    client = TcpTransport(Identity.generate())
    await client.bind()
    _, answer = await ask(client, at, Look())
    assert isinstance(answer, Seen)
    assert answer.address is not None
    assert answer.address.startswith("127.0.0.1:")
    await client.close()
    await server.close()
    await serving


async def test_a_circuit_over_tcp(net: Net) -> None:
    made: list[RelayedTransport] = []
    serving: list[asyncio.Task[None]] = []

    async def add(**more: object) -> tuple[RelayedTransport, PeerAddress]:
        identity = Identity.generate()
        transport = RelayedTransport(TcpTransport(identity), identity, **more)  # type: ignore[arg-type]
        made.append(transport)
        address = await transport.bind()
        serving.append(asyncio.create_task(transport.serve(echo)))
        return transport, address

    _, relay_at = await add(serve_relay=True)
    _, home = await add(relays=[relay_at])
    caller, _ = await add()
    through = PeerAddress(home.node, "tcp", home.addresses[1:])
    stream = await caller.dial(through)
    await stream.send(frame(7, bytes(2_000_000)))
    assert await asyncio.wait_for(stream.receive(), 20) == frame(7, bytes(2_000_000))
    for transport in made:
        await transport.close()
    await asyncio.gather(*serving)
