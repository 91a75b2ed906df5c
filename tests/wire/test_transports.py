"""What a transport promises, asked of each of them; then what is particular to one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace

import pytest

from unisono.clock import VirtualClock
from unisono.errors import ConfigurationError, PeerCheating, PeerGone, WireError
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import MAX_BODY, VERSION, decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Ping
from unisono.wire.transports import (
    direct_transport,
    iroh_endpoint,
    iroh_stream,
    make_transport,
    sealed,
)
from unisono.wire.transports import iroh as iroh_module
from unisono.wire.transports import tcp as tcp_module
from unisono.wire.transports.addresses import join_address, split_address
from unisono.wire.transports.base import Stream, StreamHandler, Transport
from unisono.wire.transports.iroh import IrohTransport
from unisono.wire.transports.iroh_stream import IrohStream
from unisono.wire.transports.memory import MemoryNetwork, MemoryStream
from unisono.wire.transports.relay import RelayLimits
from unisono.wire.transports.relayed import RelayedTransport
from unisono.wire.transports.sealed import SealedStream

KINDS = ["memory", "tcp", "iroh", "relayed", "circuit"]
"""`relayed` is the wrapped memory transport on the direct path, `circuit` through a relay."""


def frame(number: int, body: bytes = b"") -> bytes:
    return encode_frame(Ping(number), body)


def number_of(data: bytes) -> int:
    message, _ = decode_frame(data)
    assert isinstance(message, Ping)
    return message.nonce


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


class Net:
    """Makes transports of one kind and closes them after the test."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.hub = MemoryNetwork()
        self.transports: list[Transport] = []
        self.relay: PeerAddress | None = None
        self.tasks: list[asyncio.Task[None]] = []

    async def node(
        self,
        handler: StreamHandler | None = None,
        identity: Identity | None = None,
        bind: str = "127.0.0.1:0",
    ) -> tuple[Transport, PeerAddress]:
        identity = identity or Identity.generate()
        transport = await self.transport(identity, bind)
        self.transports.append(transport)
        address = await transport.bind()
        if self.kind == "circuit":
            through = tuple(a for a in address.addresses if a.startswith("relay/"))
            address = PeerAddress(address.node, address.transport, through)
        if handler is not None:
            self.tasks.append(asyncio.create_task(transport.serve(handler)))
        return transport, address

    async def transport(self, identity: Identity, bind: str = "127.0.0.1:0") -> Transport:
        """One that is not bound."""
        if self.kind in ("tcp", "iroh"):
            return direct_transport(self.kind, identity, bind)
        inner = self.hub.transport(identity)
        if self.kind == "memory":
            return inner
        if self.kind == "relayed":
            return RelayedTransport(inner, identity)
        if self.relay is None:
            name = Identity.generate()
            limits = RelayLimits(bytes_per_second=1 << 32, bytes_per_second_of_peer=1 << 32)
            relay = RelayedTransport(
                self.hub.transport(name), name, serve_relay=True, limits=limits
            )
            self.relay = await relay.bind()
            self.tasks.append(asyncio.create_task(relay.serve(echo)))
            self.transports.append(relay)
        return RelayedTransport(inner, identity, relays=[self.relay])

    async def pair(self, handler: StreamHandler = echo) -> tuple[Stream, Transport, Transport]:
        """A dialled stream, the transport that serves it, the transport that dialled."""
        server, address = await self.node(handler)
        client, _ = await self.node()
        return await client.dial(address), server, client

    async def close(self) -> None:
        await asyncio.gather(*(transport.close() for transport in self.transports))
        # Every `serve` returns once its transport is closed.
        await asyncio.wait_for(asyncio.gather(*self.tasks), 5)


@pytest.fixture(params=KINDS)
async def net(request: pytest.FixtureRequest) -> AsyncIterator[Net]:
    made = Net(request.param)
    yield made
    await made.close()
    # Whatever a transport starts it also ends.
    for _ in range(50):
        if len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0.01)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "unisono" in repr(task.get_coro())]


async def write_raw(stream: Stream, data: bytes) -> None:
    """Send bytes that `send` would refuse, as a hostile peer does."""
    if isinstance(stream, MemoryStream):
        stream.push(data)
    elif isinstance(stream, SealedStream):
        stream._link.write(stream._seal.seal(data))
    elif isinstance(stream, IrohStream):
        await stream._send.write_all(data)


async def test_frames_come_back_from_an_echo(net: Net) -> None:
    stream, _, _ = await net.pair()
    for number, body in enumerate((b"", b"x", b"y" * 8192, b"z" * 70_000)):
        await stream.send(frame(number, body))
        assert await stream.receive() == frame(number, body)


async def test_a_frame_of_five_megabytes_arrives_whole(net: Net) -> None:
    stream, _, _ = await net.pair()
    big = frame(1, bytes(range(256)) * (5 * 4096))
    await stream.send(big)
    assert await asyncio.wait_for(stream.receive(), 20) == big


@pytest.mark.parametrize("extra", [-1, 0, 1])
async def test_frames_that_end_at_a_boundary_of_chunks_arrive(net: Net, extra: int) -> None:
    stream, _, _ = await net.pair()
    empty = len(frame(1))
    for chunk in (sealed.MAX_RECORD, 2 * sealed.MAX_RECORD, iroh_stream.WRITE_SIZE):
        data = frame(1, bytes(chunk - empty + extra))
        await stream.send(data)
        assert await stream.receive() == data


async def test_frames_arrive_in_the_order_in_which_they_were_sent(net: Net) -> None:
    stream, _, _ = await net.pair()
    for number in range(100):
        await stream.send(frame(number, bytes(number * 7)))
    assert [number_of(await stream.receive()) for _ in range(100)] == list(range(100))


async def test_concurrent_senders_do_not_mix_their_frames(net: Net) -> None:
    received: list[bytes] = []
    done = asyncio.Event()

    async def collect(stream: Stream) -> None:
        while len(received) < 24:
            received.append(await stream.receive())
        done.set()

    stream, _, _ = await net.pair(collect)
    frames = [frame(n, bytes([n]) * (n % 3) * 90_000) for n in range(24)]
    await asyncio.gather(*(stream.send(f) for f in frames))
    await asyncio.wait_for(done.wait(), 20)
    assert sorted(received) == sorted(frames)


async def test_both_sides_know_who_the_other_is(net: Net) -> None:
    seen: asyncio.Queue[NodeId] = asyncio.Queue()

    async def note(stream: Stream) -> None:
        await seen.put(stream.peer)
        await stream.receive()

    server, address = await net.node(note)
    client, own = await net.node()
    stream = await client.dial(address)
    assert stream.peer == address.node
    assert await asyncio.wait_for(seen.get(), 5) == own.node
    assert address.transport == (net.kind if net.kind in ("tcp", "iroh") else "memory")
    assert PeerAddress.parse(str(address)) == address
    if net.kind != "circuit":  # there `address` is without the node's own ones
        assert await server.bind() == address


async def test_streams_of_one_pair_are_independent(net: Net) -> None:
    _, address = await net.node(echo)
    client, _ = await net.node()
    streams = await asyncio.gather(*(client.dial(address) for _ in range(8)))
    await streams[3].close()
    for number, stream in enumerate(streams):
        if number != 3:
            await stream.send(frame(number))
            assert number_of(await stream.receive()) == number


async def test_two_nodes_dial_each_other(net: Net) -> None:
    one, address = await net.node(echo)
    other, back = await net.node(echo)
    for stream in await asyncio.gather(one.dial(back), other.dial(address), one.dial(back)):
        await stream.send(frame(5))
        assert number_of(await stream.receive()) == 5


async def test_dialling_an_address_under_a_wrong_key_fails(net: Net) -> None:
    _, address = await net.node(echo)
    client, _ = await net.node()
    wrong = PeerAddress(Identity.generate().node_id, address.transport, address.addresses)
    # A relay that does not lead to the right node is no proof of who is to blame.
    with pytest.raises(PeerGone if net.kind == "circuit" else PeerCheating):
        await client.dial(wrong)
    stream = await client.dial(address)
    await stream.send(frame(1))
    assert await stream.receive() == frame(1)


async def test_dialling_where_nobody_is_fails(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iroh_module, "DIAL_SECONDS", 0.5)
    client, own = await net.node()
    gone, address = await net.node()
    await gone.close()
    for node in (address.node, NodeId("ff" * 32)):
        with pytest.raises(PeerGone):
            await client.dial(PeerAddress(node, own.transport, address.addresses))
    with pytest.raises(PeerGone):
        await client.dial(PeerAddress(address.node, own.transport, ("nonsense",)))
    with pytest.raises(PeerGone):
        await client.dial(PeerAddress(address.node, own.transport, ()))


async def test_a_live_address_is_found_among_dead_ones(net: Net) -> None:
    _, address = await net.node(echo)
    dead, other = await net.node()
    await dead.close()
    client, _ = await net.node()
    both = PeerAddress(address.node, address.transport, other.addresses + address.addresses)
    stream = await client.dial(both)
    await stream.send(frame(1))
    assert await stream.receive() == frame(1)


async def test_what_was_sent_before_the_close_still_arrives(net: Net) -> None:
    async def answer_and_leave(stream: Stream) -> None:
        await stream.receive()
        for number in range(20):
            await stream.send(frame(number, bytes(20_000)))

    stream, _, _ = await net.pair(answer_and_leave)
    await stream.send(frame(0))
    # Bytes that the handler never reads must not destroy what it sent.
    await stream.send(frame(1, bytes(1000)))
    assert [number_of(await stream.receive()) for _ in range(20)] == list(range(20))
    with pytest.raises(PeerGone):
        await stream.receive()
    with pytest.raises(PeerGone):
        await stream.receive()


async def test_frames_sent_just_before_the_transport_closes_arrive(net: Net) -> None:
    received: list[int] = []
    done = asyncio.Event()

    async def collect(stream: Stream) -> None:
        try:
            while True:
                received.append(number_of(await stream.receive()))
        finally:
            done.set()

    stream, _, client = await net.pair(collect)
    for number in range(5):
        await stream.send(frame(number, bytes(30_000)))
    await client.close()
    await asyncio.wait_for(done.wait(), 5)
    assert received == [0, 1, 2, 3, 4]


async def test_close_ends_a_pending_receive_on_both_sides(net: Net) -> None:
    ended: asyncio.Queue[type[Exception]] = asyncio.Queue()

    async def wait(stream: Stream) -> None:
        try:
            await stream.receive()
        except PeerGone as error:
            await ended.put(type(error))
            raise

    stream, _, _ = await net.pair(wait)
    pending = asyncio.create_task(stream.receive())
    await asyncio.sleep(0.05)
    await stream.close()
    await stream.close()
    with pytest.raises(PeerGone):
        await asyncio.wait_for(pending, 2)
    assert await asyncio.wait_for(ended.get(), 2) is PeerGone
    with pytest.raises(PeerGone):
        await stream.receive()
    with pytest.raises(PeerGone):
        await stream.send(frame(1))


async def test_sending_to_a_peer_that_closed_fails_soon(net: Net) -> None:
    async def leave(stream: Stream) -> None:
        return

    stream, _, _ = await net.pair(leave)

    async def send_on() -> None:
        while True:
            await stream.send(frame(1, bytes(1000)))
            await asyncio.sleep(0.01)

    with pytest.raises(PeerGone):
        await asyncio.wait_for(send_on(), 5)


async def test_a_receive_that_was_given_up_loses_nothing(net: Net) -> None:
    release = asyncio.Event()

    async def slow(stream: Stream) -> None:
        await release.wait()
        for number in range(4):
            await stream.send(frame(number, bytes(200_000)))
        await stream.receive()

    stream, _, _ = await net.pair(slow)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.receive(), 0.02)
    release.set()
    received: list[int] = []
    while len(received) < 4:
        # Short waits cut reads in the middle of frames.
        with contextlib.suppress(TimeoutError):
            received.append(number_of(await asyncio.wait_for(stream.receive(), 0.002)))
    assert received == [0, 1, 2, 3]


async def test_a_send_that_was_given_up_leaves_whole_frames(net: Net) -> None:
    read = asyncio.Event()
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def late(stream: Stream) -> None:
        await read.wait()
        while True:
            await received.put(await stream.receive())

    stream, _, _ = await net.pair(late)
    # A relay has windows of its own on both sides.
    big = frame(1, bytes((60 if net.kind == "circuit" else 40) << 20))
    gave_up = 0
    for _ in range(3):
        try:
            await asyncio.wait_for(stream.send(big), 0.3)
        except TimeoutError:
            gave_up += 1
    assert gave_up
    read.set()
    await stream.send(frame(2))
    while number_of(data := await asyncio.wait_for(received.get(), 20)) != 2:
        assert data == big


async def test_closing_a_transport_ends_its_streams_and_refuses_dials(net: Net) -> None:
    stream, server, client = await net.pair()
    await stream.send(frame(1))
    await stream.receive()
    pending = asyncio.create_task(stream.receive())
    await asyncio.sleep(0.01)
    await server.close()
    await server.close()
    with pytest.raises(PeerGone):
        await asyncio.wait_for(pending, 3)
    await client.close()
    with pytest.raises(PeerGone):
        await client.dial(await server.bind())


async def test_a_handler_that_fails_ends_its_own_stream_only(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    async def moody(stream: Stream) -> None:
        match number_of(await stream.receive()):
            case 0:
                raise PeerCheating("no")
            case 1:
                raise KeyError("bug")
            case _:
                await stream.send(frame(9))

    _, address = await net.node(moody)
    client, _ = await net.node()
    with caplog.at_level(logging.INFO):
        for number in (0, 1):
            stream = await client.dial(address)
            await stream.send(frame(number))
            with pytest.raises(PeerGone):
                await stream.receive()
    # An expected error is one line; a bug has a traceback.
    assert [bool(r.exc_info) for r in caplog.records if r.name == "unisono.wire.transports"] == [
        False,
        True,
    ]
    stream = await client.dial(address)
    await stream.send(frame(2))
    assert number_of(await stream.receive()) == 9


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<2sBBII", b"UN", VERSION, 0, 100, MAX_BODY + 1),
        struct.pack("<2sBBII", b"UN", 9, 0, 0, 0),
        struct.pack("<2sBBII", b"UN", VERSION, 0, 0xFFFFFFFF, 0),
    ],
)
async def test_bytes_that_are_no_frame_end_the_stream_as_cheating(net: Net, data: bytes) -> None:
    outcome: asyncio.Queue[WireError] = asyncio.Queue()

    async def judge(stream: Stream) -> None:
        try:
            await stream.receive()
        except WireError as error:
            await outcome.put(error)
            with pytest.raises(PeerGone):
                await stream.receive()
            with pytest.raises(PeerGone):
                await stream.send(frame(1))

    stream, server, client = await net.pair(judge)
    await write_raw(stream, data)
    assert isinstance(await asyncio.wait_for(outcome.get(), 5), PeerCheating)
    with pytest.raises(PeerGone):
        await asyncio.wait_for(stream.receive(), 5)
    with contextlib.suppress(PeerGone):
        await (await client.dial(await server.bind())).close()


async def test_what_is_no_frame_is_not_sent(net: Net) -> None:
    stream, _, _ = await net.pair()
    with pytest.raises(ValueError, match="frame"):
        await stream.send(frame(1) + b"x")
    await stream.send(frame(2))
    assert number_of(await stream.receive()) == 2


async def test_a_dial_before_serve_waits_for_it(net: Net) -> None:
    server, address = await net.node()
    client, _ = await net.node()
    dial = asyncio.create_task(client.dial(address))
    await asyncio.sleep(0.1)
    net.tasks.append(asyncio.create_task(server.serve(echo)))
    stream = await dial
    await stream.send(frame(1))
    assert await stream.receive() == frame(1)


async def test_dialling_and_serving_need_a_bound_transport(net: Net) -> None:
    _, address = await net.node()
    identity = Identity.generate()
    transport = await net.transport(identity)
    with pytest.raises(ConfigurationError):
        await transport.dial(address)
    with pytest.raises(ConfigurationError):
        await transport.serve(echo)
    await transport.close()


async def test_a_node_that_restarts_on_its_address_is_reached_again(net: Net) -> None:
    if net.kind not in ("tcp", "iroh"):
        pytest.skip("addresses of the memory network are never used again")
    identity = Identity.generate()
    server, address = await net.node(echo, identity)
    client, _ = await net.node()
    stream = await client.dial(address)
    await stream.send(frame(1))
    await stream.receive()
    await server.close()
    _, again = await net.node(echo, identity, bind=address.addresses[0])
    assert again == address
    stream = await client.dial(address)
    await stream.send(frame(2))
    assert await asyncio.wait_for(stream.receive(), 5) == frame(2)


@pytest.mark.parametrize("kind", ["tcp", "iroh"])
async def test_an_address_that_is_taken_or_malformed_is_a_configuration_error(kind: str) -> None:
    first = make_transport(kind, Identity.generate())
    taken = (await first.bind()).addresses[0]
    try:
        for bind in (taken, "nonsense", "127.0.0.1", "127.0.0.1:99999", "::1:5", ":1", "h:"):
            transport = make_transport(kind, Identity.generate(), bind)
            with pytest.raises(ConfigurationError, match="HOST:PORT"):
                await transport.bind()
            await transport.close()
    finally:
        await first.close()


@pytest.mark.parametrize("kind", ["tcp", "iroh"])
async def test_a_node_on_all_interfaces_gives_an_address_that_can_be_dialled(kind: str) -> None:
    server = make_transport(kind, Identity.generate(), "0.0.0.0:0")
    client = make_transport(kind, Identity.generate(), "0.0.0.0:0")
    address = await server.bind()
    await client.bind()
    serving = asyncio.create_task(server.serve(echo))
    assert not address.addresses[0].startswith("0.0.0.0")
    stream = await client.dial(address)
    await stream.send(frame(1))
    assert await stream.receive() == frame(1)
    await client.close()
    await server.close()
    await serving


def test_there_are_two_transports_by_name() -> None:
    with pytest.raises(ConfigurationError, match="expected 'iroh' or 'tcp'"):
        make_transport("carrier-pigeon", Identity.generate())


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("[::1]:0", "::1", 0),
        ("a.example:65535", "a.example", 65535),
    ],
)
def test_an_address_has_host_and_port(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)
    assert join_address(host, port) == text


# The memory network


async def test_a_killed_node_vanishes_with_what_was_in_flight() -> None:
    net = Net("memory")
    server, address = await net.node(echo)
    client, own = await net.node(echo)
    stream = await client.dial(address)
    await stream.send(frame(1))
    net.hub.kill(address.node)
    for action in (stream.receive(), stream.send(frame(2)), client.dial(address), server.dial(own)):
        with pytest.raises(PeerGone):
            await action
    net.hub.revive(address.node)
    stream = await client.dial(address)
    await stream.send(frame(3))
    assert number_of(await stream.receive()) == 3
    await net.close()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_slow_link_takes_the_time_of_its_clock() -> None:
    net = Net("memory")
    clock = VirtualClock()
    net.hub = MemoryNetwork(clock)
    stream, _, client = await net.pair()
    own = (await client.bind()).node
    net.hub.set_delay(own, stream.peer, 0.1)
    await stream.send(frame(1))
    reply = asyncio.create_task(stream.receive())
    await settle()
    await clock.advance(0.19)
    assert not reply.done()
    await clock.advance(0.02)
    assert number_of(await reply) == 1

    await stream.send(frame(2))
    reply = asyncio.create_task(stream.receive())
    await settle()
    await clock.advance(0.15)
    net.hub.kill(own)
    with pytest.raises(PeerGone):
        await asyncio.wait_for(reply, 1)
    await net.close()


# TCP

Wire = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def open_raw(address: PeerAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = split_address(address.addresses[0])
    return await asyncio.open_connection(host, port)


@pytest.fixture
async def tcp() -> AsyncIterator[Net]:
    net = Net("tcp")
    yield net
    await net.close()


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n" + bytes(200), b"\xff" * 100_000]
)
async def test_garbage_on_a_socket_does_not_disturb_the_server(tcp: Net, garbage: bytes) -> None:
    _, address = await tcp.node(echo)
    reader, writer = await open_raw(address)
    writer.write(garbage)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        writer.write_eof()
        assert await reader.read() in (b"",)
    writer.close()
    client, _ = await tcp.node()
    stream = await client.dial(address)
    await stream.send(frame(1))
    assert await stream.receive() == frame(1)


async def test_a_silent_caller_is_dropped_after_the_handshake_time(
    tcp: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_module, "HANDSHAKE_SECONDS", 0.1)
    _, address = await tcp.node(echo)
    reader, writer = await open_raw(address)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()


async def test_a_silent_listener_is_given_up(tcp: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_module, "HANDSHAKE_SECONDS", 0.1)
    client, own = await tcp.node()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(PeerGone):
            await client.dial(PeerAddress(own.node, "tcp", (where,)))


async def test_handshakes_under_way_are_bounded(tcp: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_module, "MAX_PENDING_HANDSHAKES", 2)
    _, address = await tcp.node(echo)
    silent = [await open_raw(address) for _ in range(2)]
    await asyncio.sleep(0.05)
    reader, writer = await open_raw(address)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 2) == b""
    for other in (writer, *(w for _, w in silent)):
        other.close()


class Middle:
    """A man in the middle who sees every chunk of bytes from dialler to listener."""

    def __init__(self, target: PeerAddress, change: Callable[[int, bytes], bytes]) -> None:
        self._target = target
        self._change = change
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> PeerAddress:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return PeerAddress(self._target.node, "tcp", (f"127.0.0.1:{port}",))

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await open_raw(self._target)

        async def forward() -> None:
            count = 0
            while data := await reader.read(1 << 16):
                far_writer.write(self._change(count, data))
                count += 1
            far_writer.close()

        async def back() -> None:
            while data := await far_reader.read(1 << 16):
                writer.write(data)
            writer.close()

        self._tasks |= {asyncio.create_task(forward()), asyncio.create_task(back())}


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def send_through(
    tcp: Net, change: Callable[[int, bytes], bytes]
) -> tuple[list[int], list[Exception]]:
    """What a server receives, and how it ends, if `change` happens on the way."""
    received: list[int] = []
    errors: list[Exception] = []
    done = asyncio.Event()

    async def collect(stream: Stream) -> None:
        try:
            while True:
                received.append(number_of(await stream.receive()))
        except WireError as error:
            errors.append(error)
        done.set()

    _, address = await tcp.node(collect)
    client, _ = await tcp.node()
    async with Middle(address, change) as middle:
        stream = await client.dial(middle)
        for number in range(3):
            await asyncio.sleep(0.05)
            with contextlib.suppress(PeerGone):
                await stream.send(frame(number))
        await asyncio.sleep(0.05)
        await stream.close()
        await asyncio.wait_for(done.wait(), 5)
    return received, errors


# Chunk 0 is the dialler's hello, chunk 1 its proof, chunk 2 the first frame.


async def test_a_man_in_the_middle_may_pass_everything_on(tcp: Net) -> None:
    received, errors = await send_through(tcp, lambda count, data: data)
    assert received == [0, 1, 2]
    assert isinstance(errors[0], PeerGone)


@pytest.mark.parametrize("at", [4, 20, -1])
async def test_an_altered_record_ends_the_stream_as_cheating(tcp: Net, at: int) -> None:
    received, errors = await send_through(
        tcp, lambda count, data: flip(data, at % len(data)) if count == 3 else data
    )
    assert received == [0]
    assert isinstance(errors[0], PeerCheating)


async def test_a_repeated_record_ends_the_stream_as_cheating(tcp: Net) -> None:
    received, errors = await send_through(
        tcp, lambda count, data: data + data if count == 3 else data
    )
    assert received == [0, 1]
    assert isinstance(errors[0], PeerCheating)


async def test_a_dropped_record_ends_the_stream_as_cheating(tcp: Net) -> None:
    received, errors = await send_through(tcp, lambda count, data: b"" if count == 3 else data)
    assert received == [0]
    assert isinstance(errors[0], PeerCheating)


async def test_a_record_that_claims_too_many_bytes_is_refused_unread(tcp: Net) -> None:
    received, errors = await send_through(
        tcp, lambda count, data: b"\xff\xff\xff\xff" if count == 3 else data
    )
    assert received == [0]
    assert "claims 4294967295" in str(errors[0])


async def test_nothing_of_a_frame_can_be_read_on_the_wire(tcp: Net) -> None:
    seen = bytearray()

    def watch(count: int, data: bytes) -> bytes:
        seen.extend(data)
        return data

    _, address = await tcp.node(echo)
    client, _ = await tcp.node()
    async with Middle(address, watch) as middle:
        stream = await client.dial(middle)
        await stream.send(frame(1, b"attack at dawn"))
        await stream.receive()
        await stream.close()
    assert b"attack" not in seen
    assert b"ping" not in seen


@pytest.mark.parametrize("at", [0, 14, 46, 78])
async def test_an_altered_hello_fails_the_handshake(tcp: Net, at: int) -> None:
    _, address = await tcp.node(echo)
    client, _ = await tcp.node()
    async with Middle(address, lambda count, data: flip(data, at) if count == 0 else data) as m:
        with pytest.raises((PeerCheating, PeerGone)):
            await client.dial(m)


async def test_a_recorded_conversation_cannot_be_played_again(tcp: Net) -> None:
    sent: list[bytes] = []
    handled: list[NodeId] = []

    async def note(stream: Stream) -> None:
        handled.append(stream.peer)
        await echo(stream)

    def record(count: int, data: bytes) -> bytes:
        sent.append(data)
        return data

    _, address = await tcp.node(note)
    client, _ = await tcp.node()
    async with Middle(address, record) as middle:
        stream = await client.dial(middle)
        await stream.send(frame(1))
        await stream.receive()
        await stream.close()
    assert len(handled) == 1
    reader, writer = await open_raw(address)
    writer.write(b"".join(sent))
    hello = await reader.read()
    assert hello == b"" or hello.startswith(b"unisono-tcp/1\n")
    writer.close()
    assert len(handled) == 1


async def test_a_caller_cannot_claim_an_id_whose_key_it_lacks(tcp: Net) -> None:
    handled: list[NodeId] = []

    async def note(stream: Stream) -> None:
        handled.append(stream.peer)

    _, address = await tcp.node(note)
    mallory, victim = Identity.generate(), Identity.generate()
    forged = SimpleNamespace(node_id=victim.node_id, sign=mallory.sign)
    client = tcp_module.TcpTransport(forged)  # type: ignore[arg-type]
    await client.bind()
    # The dialler learns of it only when the listener hangs up.
    stream = await client.dial(address)
    with pytest.raises(PeerGone):
        await asyncio.wait_for(stream.receive(), 5)
    assert handled == []
    await client.close()


async def test_an_ephemeral_key_of_small_order_is_refused(tcp: Net) -> None:
    _, address = await tcp.node(echo)
    reader, writer = await open_raw(address)
    writer.write(b"unisono-tcp/1\n" + bytes.fromhex(Identity.generate().node_id) + bytes(64))
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()


# iroh


async def test_the_copy_patch_is_active_and_right_for_every_size() -> None:
    assert iroh_endpoint.PATCHED
    net = Net("iroh")
    stream, _, _ = await net.pair()
    for size in (0, 1, 15, 16, 17, 255, 4096, 65535, 65536):
        data = frame(1, bytes(range(256)) * (size // 256) + bytes(size % 256))
        await stream.send(data)
        assert await stream.receive() == data
    await net.close()


async def test_streams_to_one_peer_share_a_connection() -> None:
    net = Net("iroh")
    server, address = await net.node(echo)
    client, own = await net.node(echo)
    assert isinstance(client, IrohTransport)
    assert isinstance(server, IrohTransport)
    await asyncio.gather(*(client.dial(address) for _ in range(5)))
    assert len(client._connections) == 1
    # And the way back needs no address that the dialler could be reached at.
    nowhere = PeerAddress(own.node, "iroh", ("127.0.0.1:9",))
    stream = await server.dial(nowhere)
    await stream.send(frame(1))
    assert await stream.receive() == frame(1)
    assert len(server._connections) == 1
    await net.close()


async def test_a_connection_whose_other_end_vanished_silently_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(iroh_module, "STALE_SECONDS", 0.3)
    net = Net("iroh")
    identity = Identity.generate()
    _, address = await net.node(echo, identity)
    client, _ = await net.node()
    assert isinstance(client, IrohTransport)
    await client.dial(address)
    stuck = client._peers[address.node]

    # A crash sends no goodbye: the cached connection looks well and never answers.
    async def never() -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(stuck, "connection", SimpleNamespace(open_bi=never, close=lambda *_: None))
    stream = await client.dial(address)
    await stream.send(frame(1))
    assert await stream.receive() == frame(1)
    assert client._peers[address.node] is not stuck
    await net.close()


async def test_a_loopback_endpoint_listens_on_loopback_only() -> None:
    transport = direct_transport("iroh", Identity.generate())
    await transport.bind()
    assert isinstance(transport, IrohTransport)
    assert transport._endpoint is not None
    hosts = {split_address(text)[0] for text in transport._endpoint.bound_sockets()}
    assert hosts <= {"127.0.0.1", "::1"}
    await transport.close()
