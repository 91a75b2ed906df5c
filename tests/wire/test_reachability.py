"""The parts that relays are made of: addresses, witnesses, allowances, races, meetings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.clock import VirtualClock
from unisono.errors import PeerCheating, PeerGone
from unisono.types import NodeId, PeerAddress
from unisono.wire.bounds import MAX_ADDRESS_CHARACTERS
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Ping
from unisono.wire.relay_messages import (
    Answer,
    Call,
    DialBack,
    Direct,
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
from unisono.wire.transports import make_transport
from unisono.wire.transports.addresses import (
    is_own_host,
    may_dial,
    relay_address,
    split_address,
    split_relay_address,
)
from unisono.wire.transports.allowance import MAX_REMEMBERED, Allowances, Bucket
from unisono.wire.transports.base import Located, Meeting, Stream
from unisono.wire.transports.circuit import sealed_body, sealed_frame
from unisono.wire.transports.memory import MemoryNetwork
from unisono.wire.transports.observed import MAX_WITNESSES, WITNESS_SECONDS, ObservedAddresses
from unisono.wire.transports.race import Attempt, race
from unisono.wire.transports.relayed import RelayedTransport
from unisono.wire.transports.sealed import SealedStream

NODE = NodeId("ab" * 32)
nodes = st.binary(min_size=32, max_size=32).map(lambda b: NodeId(b.hex()))
tickets = st.binary(min_size=16, max_size=16).map(bytes.hex)
addresses = st.lists(st.text(min_size=1, max_size=MAX_ADDRESS_CHARACTERS), max_size=8).map(tuple)
relay_messages = st.one_of(
    st.builds(Direct),
    st.builds(Look),
    st.builds(Seen, st.none() | st.text(min_size=1, max_size=MAX_ADDRESS_CHARACTERS)),
    st.builds(Reserve, addresses),
    st.builds(Reserved, st.none() | st.just("1.2.3.4:5"), st.integers(1000, 3_600_000)),
    st.builds(Call, nodes),
    st.builds(Knock, tickets, nodes),
    st.builds(Answer, tickets),
    st.builds(Joined),
    st.builds(Sealed),
    st.builds(Introduce, nodes, addresses),
    st.builds(Introduced, addresses),
    st.builds(DialBack, nodes, addresses),
)


@given(relay_messages, st.binary(max_size=50))
def test_messages_of_relays_come_back_as_they_were_sent(message, body) -> None:
    found, found_body = decode_frame(encode_frame(message, body))
    assert found == message
    assert type(found) is type(message)
    assert bytes(found_body) == body


@pytest.mark.parametrize(
    "message",
    [
        Reserve(("x",) * 9),
        Reserve(("x" * (MAX_ADDRESS_CHARACTERS + 1),)),
        Seen(""),
        Reserved(None, 10),
        Answer("AB" * 16),
        Knock("ab" * 15, NODE),
        Call(NodeId("zz" * 32)),
    ],
)
def test_messages_out_of_bounds_are_not_sent(message) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        encode_frame(message)


@given(st.binary(min_size=1, max_size=1000))
def test_sealed_frames_are_what_the_encoder_makes(data: bytes) -> None:
    assert sealed_frame(data) == encode_frame(Sealed(), data)
    assert bytes(sealed_body(sealed_frame(data))) == data


@given(st.binary(max_size=120))
def test_anything_else_is_no_sealed_frame(data: bytes) -> None:
    frame = bytearray(sealed_frame(b"abc"))
    for bad in (data, encode_frame(Ping(1), data), bytes(frame[:-1]), bytes(frame) + b"x"):
        with pytest.raises(PeerCheating):
            sealed_body(bad)


# Addresses


@pytest.mark.parametrize("at", ["1.2.3.4:5", "[2001:db8::1]:443", "relay.example.org:7000"])
def test_a_relay_address_has_one_written_form(at: str) -> None:
    relay = PeerAddress(NODE, "iroh", (at,))
    text = relay_address(relay)
    assert text == f"relay/iroh://{NODE}@{at}"
    assert split_relay_address(text) == PeerAddress(NODE, "iroh", (at,))
    whole = PeerAddress(NodeId("cd" * 32), "iroh", ("10.0.0.1:1", text))
    assert PeerAddress.parse(str(whole)) == whole


def test_a_relay_is_named_by_its_most_public_address() -> None:
    for ways in (("10.0.0.1:1", "8.8.8.8:1"), ("127.0.0.1:1", "8.8.8.8:1", "9.9.9.9:1")):
        assert relay_address(PeerAddress(NODE, "iroh", ways)).endswith("@8.8.8.8:1")
    named = PeerAddress(NODE, "iroh", ("10.0.0.1:1", "relay.example.org:1"))
    assert relay_address(named).endswith("@relay.example.org:1")


@pytest.mark.parametrize(
    "text",
    [
        "1.2.3.4:5",
        "relay/",
        f"relay/iroh://{NODE}@",
        f"relay/iroh://{NODE}@1.2.3.4",
        f"relay/iroh://{NODE}@1.2.3.4:05",
        f"relay/iroh://{NODE}@1.2.3.4:99999",
        f"relay/iroh://{NODE}@1.2.3.4:5,6.7.8.9:1",
        f"relay/iroh://{NODE}@relay/iroh://{NODE}@1.2.3.4:5",
        f"relay/relay/iroh://{NODE}@1.2.3.4:5",
        f"relay/iroh://{NODE[:-2]}@1.2.3.4:5",
        f"relay/iroh://{NODE.upper()}@1.2.3.4:5",
        f"relay/IROH://{NODE}@1.2.3.4:5",
        f"relay/iroh:/{NODE}@1.2.3.4:5",
        f" relay/iroh://{NODE}@1.2.3.4:5",
        f"relay/iroh://{NODE}@1.2.3.4:5 ",
        f"relay/{'x' * 17}://{NODE}@1.2.3.4:5",
    ],
)
def test_anything_else_is_no_relay_address(text: str) -> None:
    assert split_relay_address(text) is None


@given(st.text(max_size=60))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    for each in (text, f"relay/{text}", f"relay/iroh://{NODE}@{text}"):
        found = split_relay_address(each)
        assert found is None or relay_address(found) == each


@pytest.mark.parametrize(
    ("address", "told_by", "allowed"),
    [
        ("8.8.8.8:1", "9.9.9.9:1", True),
        ("192.168.0.2:1", "9.9.9.9:1", False),
        ("127.0.0.1:1", "9.9.9.9:1", False),
        ("192.168.0.2:1", "192.168.0.9:1", True),
        ("127.0.0.1:1", "192.168.0.9:1", False),
        ("127.0.0.1:1", "127.0.0.1:9", True),
        ("8.8.8.8:1", "127.0.0.1:9", True),
        ("8.8.8.8:0", "9.9.9.9:1", False),
        ("224.0.0.1:1", "9.9.9.9:1", False),
        ("0.0.0.0:1", "127.0.0.1:9", False),
        ("[fe80::1]:1", "9.9.9.9:1", False),
        ("[2606:4700::1]:1", "9.9.9.9:1", True),
        ("example.org:1", "127.0.0.1:9", False),
        ("nonsense", "127.0.0.1:9", False),
    ],
)
def test_strangers_cannot_send_a_node_into_its_own_home(
    address: str, told_by: str, allowed: bool
) -> None:
    assert may_dial(address, told_by) is allowed


# Witnesses


def witness(number: int) -> NodeId:
    return NodeId(f"{number:064x}")


def test_an_address_counts_once_two_machines_agree() -> None:
    observed = ObservedAddresses()
    observed.report("5.5.5.5", witness(1), "1.1.1.1:9", 0)
    assert observed.believed(1) == ()
    observed.report("6.6.6.6", witness(2), "1.1.1.1:9", 1)
    assert observed.believed(1) == ("1.1.1.1:9",)
    assert observed.hosts(1) == {"1.1.1.1"}


def test_many_ids_on_one_machine_or_one_id_on_many_count_once() -> None:
    observed = ObservedAddresses()
    for number in range(10):
        observed.report("5.5.5.5", witness(number), "6.6.6.6:6", 0)
        observed.report(f"7.7.7.{number}", witness(99), "6.6.6.6:6", 0)
    assert observed.believed(0) == ("6.6.6.6:6",)  # by one machine and by one id: two
    alone = ObservedAddresses()
    for number in range(10):
        alone.report(f"7.7.7.{number}", witness(99), "6.6.6.6:6", 0)
    assert alone.believed(0) == ()


def test_another_port_for_everyone_is_never_believed() -> None:
    observed = ObservedAddresses()
    for number in range(30):
        observed.report(f"5.5.5.{number}", witness(number), f"1.1.1.1:{1000 + number}", 0)
    assert observed.believed(0) == ()


def test_reports_expire_and_are_bounded() -> None:
    observed = ObservedAddresses()
    for number in range(2 * MAX_WITNESSES):
        observed.report(f"5.5.{number}.1", witness(number), "1.1.1.1:9", 0)
    assert len(observed._reports) == MAX_WITNESSES
    assert observed.is_known("5.5.1.1", 0)
    assert not observed.is_known("5.5.1.1", WITNESS_SECONDS * 0.6)
    assert observed.believed(WITNESS_SECONDS - 1) == ("1.1.1.1:9",)
    assert observed.believed(WITNESS_SECONDS) == ()
    assert observed._reports == {}


# Allowances


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 500)), min_size=1, max_size=80))
async def test_a_bucket_never_gives_more_than_its_rate(uses: list[tuple[float, int]]) -> None:
    clock = VirtualClock()
    bucket = Bucket(100.0, 200.0, clock)
    start, given_away = clock.monotonic(), 0
    for pause, amount in uses:
        await clock.advance(pause)
        wait = bucket.take(amount)
        given_away += amount
        await clock.advance(wait)
        assert given_away <= 200 + 100 * (clock.monotonic() - start) + 1e-3


async def test_a_quota_is_for_an_hour() -> None:
    clock = VirtualClock()
    allowances = Allowances(1e9, 1000, clock)
    mine = allowances.of(NODE)
    mine.use(999)
    assert not mine.spent
    mine.use(1)
    assert mine.spent
    await clock.advance(3600)
    assert not allowances.of(NODE).spent


def test_peers_are_forgotten_unless_they_have_circuits() -> None:
    allowances = Allowances(1.0, 1, VirtualClock())
    busy = allowances.of(NODE)
    busy.circuits = 1
    for number in range(2 * MAX_REMEMBERED):
        allowances.of(witness(number))
    assert allowances.of(NODE) is busy
    assert len(allowances._of) <= MAX_REMEMBERED + 1


# Races


class Sham:
    """A stream that only knows whether it is open."""

    peer = NODE

    def __init__(self) -> None:
        self.open = True

    async def close(self) -> None:
        self.open = False


def attempt(clock: VirtualClock, seconds: float, result: object, patience: float) -> Attempt:
    async def run() -> Stream:
        await clock.sleep(seconds)
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[return-value]

    return Attempt(run, patience)


async def pass_time(clock: VirtualClock, seconds: float) -> None:
    """Let time pass once everyone waits, and let everyone see that it has."""
    for _ in range(20):
        await asyncio.sleep(0)
    await clock.advance(seconds)
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_later_way_starts_when_patience_is_over_and_the_first_to_open_wins() -> None:
    clock = VirtualClock()
    slow, fast = Sham(), Sham()
    racing = asyncio.create_task(
        race([attempt(clock, 5, slow, 0), attempt(clock, 1, fast, 0.3)], clock)
    )
    await pass_time(clock, 0.3)
    await pass_time(clock, 0.9)
    assert not racing.done()
    await pass_time(clock, 0.2)
    won = await racing
    assert won.stream is fast
    assert won.index == 1
    await pass_time(clock, 5)
    assert await won.others[0] is slow


async def test_a_way_that_fails_makes_room_for_the_next_at_once() -> None:
    clock = VirtualClock()
    stream = Sham()
    racing = asyncio.create_task(
        race([attempt(clock, 0, PeerGone("no"), 0), attempt(clock, 0, stream, 100)], clock)
    )
    await pass_time(clock, 0.1)
    await pass_time(clock, 0.1)
    assert (await asyncio.wait_for(racing, 1)).stream is stream


@pytest.mark.parametrize(
    ("errors", "raised"),
    [
        ([PeerGone("one"), PeerGone("two")], PeerGone),
        ([PeerCheating("one"), PeerGone("two")], PeerCheating),
    ],
)
async def test_if_all_ways_fail_all_reasons_are_given(errors, raised) -> None:
    clock = VirtualClock()
    ways = [attempt(clock, 0, error, 0) for error in errors]
    racing = asyncio.create_task(race(ways, clock))
    for _ in range(4):
        await pass_time(clock, 0.1)
    with pytest.raises(raised, match="one; two"):
        await racing


async def test_a_race_that_is_given_up_leaves_nothing_open() -> None:
    clock = VirtualClock()
    stream = Sham()

    async def stubborn() -> Stream:
        try:
            await clock.sleep(10)
        except asyncio.CancelledError:
            return stream  # type: ignore[return-value]
        raise AssertionError

    racing = asyncio.create_task(race([Attempt(stubborn)], clock))
    await asyncio.sleep(0.01)
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert not stream.open


# Meetings, with iroh on this machine


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


async def until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("this did not happen in 5 s")


def test_iroh_can_meet_and_others_cannot() -> None:
    identity = Identity.generate()
    assert isinstance(make_transport("iroh", identity).inner, Meeting)
    assert not isinstance(make_transport("tcp", identity).inner, Meeting)
    assert not isinstance(MemoryNetwork().transport(identity), Meeting)


Add = Callable[..., Awaitable[tuple[RelayedTransport, PeerAddress]]]


@pytest.fixture
async def add() -> AsyncIterator[Add]:
    """Makes nodes over iroh and closes them after the test."""
    made: list[RelayedTransport] = []
    serving: list[asyncio.Task[None]] = []

    async def new(**more) -> tuple[RelayedTransport, PeerAddress]:
        transport = make_transport("iroh", Identity.generate(), **more)
        made.append(transport)
        address = await transport.bind()
        serving.append(asyncio.create_task(transport.serve(echo)))
        return transport, address

    yield new
    for transport in made:
        await transport.close()
    await asyncio.gather(*serving)


async def test_nodes_that_know_only_a_relay_of_each_other_meet_directly(add: Add) -> None:
    relay, relay_at = await add(serve_relay=True)
    home, home_at = await add(relays=[relay_at])
    caller, _ = await add()
    through = PeerAddress(home_at.node, "iroh", home_at.addresses[1:])
    assert len(through.addresses) == 1
    first = await caller.dial(through)
    assert isinstance(first, SealedStream)
    ping = encode_frame(Ping(1), bytes(200_000))
    await first.send(ping)
    assert await asyncio.wait_for(first.receive(), 5) == ping
    await until(lambda: caller.inner.connected(home_at.node))  # type: ignore[attr-defined]
    second = await caller.dial(through)
    assert not isinstance(second, SealedStream)
    assert isinstance(second, Located)
    assert second.remote is not None  # iroh may have found another of this machine's addresses
    assert is_own_host(split_address(second.remote)[0])
    await second.send(ping)
    assert await asyncio.wait_for(second.receive(), 5) == ping
    assert relay.relay is not None
    assert relay.relay.circuits == 1
    assert home.behind_nat is False  # the relay sees it where it is


def test_a_machine_knows_its_own_addresses() -> None:
    assert is_own_host("127.0.0.1")
    assert not is_own_host("192.0.2.1")
    assert not is_own_host("nonsense")
