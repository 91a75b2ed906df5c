from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from tests.routing.records import KEYS, MODEL, record
from tests.scenarios.network import is_dropped, receive
from unisono.clock import VirtualClock
from unisono.errors import PeerRefused
from unisono.routing.directory import Directory
from unisono.routing.placement import even_blocks
from unisono.types import LayerRange, ModelId
from unisono.wire.frames import encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Ping, Pong, Refused
from unisono.wire.records import Announce, Announced, NodeRecord, Probe
from unisono.wire.transports.base import Stream
from unisono.wire.transports.memory import MemoryNetwork

BLOCKS = even_blocks(6, 3)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def directory(clock: VirtualClock) -> Directory:
    return Directory(clock, {MODEL: BLOCKS})


def fresh(clock: VirtualClock, key: int = 0, seconds: float = 15, **changes: Any) -> NodeRecord:
    """A record that is good for some seconds from now."""
    now = int(clock.now() * 1000)
    fields = {"sequence": now, "expires": now + round(1000 * seconds)} | changes
    return record(key, 0, 2, sign=True, **fields)


def take(directory: Directory, *records: NodeRecord) -> None:
    for r in records:
        directory.accept(r, r.node)


def refusal(directory: Directory, r: NodeRecord, sender: str | None = None) -> str:
    with pytest.raises(PeerRefused) as refused:
        directory.accept(r, sender or r.node)  # type: ignore[arg-type]
    return refused.value.code


def test_a_signed_record_of_its_sender_is_known_until_its_lease_ends(
    clock: VirtualClock, directory: Directory
) -> None:
    take(directory, fresh(clock))
    assert [r.node for r in directory.records()] == [KEYS[0].node_id]


async def test_a_lease_that_is_not_renewed_ends(clock: VirtualClock, directory: Directory) -> None:
    take(directory, fresh(clock, 0), fresh(clock, 1))
    await clock.advance(14.9)
    take(directory, fresh(clock, 1))
    assert len(directory.records()) == 2
    await clock.advance(0.2)
    assert [r.node for r in directory.records()] == [KEYS[1].node_id]
    assert [r.node for r, _ in directory.all_records()] == [KEYS[1].node_id]
    await clock.advance(15)
    assert directory.records() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"free_positions": 10**9},
        {"layers": LayerRange(0, 6)},
        {"sessions": 1},
        {"sequence": 10**15},
        {"model": ModelId("11" * 32)},
        {"signature": b""},
        {"signature": b"\0" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_that_was_altered_after_it_was_signed_is_refused(
    clock: VirtualClock, directory: Directory, changes: dict[str, Any]
) -> None:
    assert refusal(directory, msgspec.structs.replace(fresh(clock), **changes)) == "forged"
    assert directory.records() == []


def test_a_record_of_somebody_else_is_refused(clock: VirtualClock, directory: Directory) -> None:
    assert refusal(directory, fresh(clock, 0), KEYS[1].node_id) == "forged"
    stolen = msgspec.structs.replace(fresh(clock, 0), signature=b"").signed_by(KEYS[1])
    assert refusal(directory, stolen) == "forged"


def test_a_replayed_record_is_refused(clock: VirtualClock, directory: Directory) -> None:
    first, second = fresh(clock, sessions=1), fresh(clock, sessions=2, sequence=10**14)
    take(directory, first, second)
    assert refusal(directory, first) == "old"
    assert refusal(directory, second) == "old"
    assert [r.sessions for r in directory.records()] == [2]


async def test_an_old_record_cannot_bring_back_a_node_that_has_gone(
    clock: VirtualClock, directory: Directory
) -> None:
    old = fresh(clock)
    take(directory, old)
    await clock.advance(16)
    assert directory.records() == []
    assert refusal(directory, old) == "bad_lease"


@pytest.mark.parametrize("seconds", [-1, 0, 20.1, 3600])
def test_a_record_that_has_expired_or_is_dated_in_the_future_is_refused(
    clock: VirtualClock, directory: Directory, seconds: float
) -> None:
    assert refusal(directory, fresh(clock, seconds=seconds)) == "bad_lease"


def test_a_clock_that_is_a_little_ahead_is_tolerated(
    clock: VirtualClock, directory: Directory
) -> None:
    take(directory, fresh(clock, seconds=19.9))


async def test_a_suspect_is_left_out_until_it_announces_itself_again(
    clock: VirtualClock, directory: Directory
) -> None:
    take(directory, fresh(clock, 0), fresh(clock, 1))
    directory.suspect(KEYS[0].node_id)
    directory.suspect(KEYS[9].node_id)
    assert [r.node for r in directory.records()] == [KEYS[1].node_id]
    assert sorted(alive for _, alive in directory.all_records()) == [False, True]
    await clock.advance(3)
    take(directory, fresh(clock, 0))
    assert len(directory.records()) == 2


async def test_a_suspect_whose_lease_ends_is_forgotten(
    clock: VirtualClock, directory: Directory
) -> None:
    take(directory, fresh(clock))
    directory.suspect(KEYS[0].node_id)
    await clock.advance(16)
    assert directory.all_records() == []
    assert not directory._unreachable


async def test_a_full_directory_refuses_newcomers_renews_leases_and_makes_room(
    clock: VirtualClock, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.routing.directory.MAX_NODES", 2)
    take(directory, fresh(clock, 0), fresh(clock, 1))
    assert refusal(directory, fresh(clock, 2)) == "full"
    await clock.advance(10)
    take(directory, fresh(clock, 1))
    await clock.advance(6)
    take(directory, fresh(clock, 2))
    assert {r.node for r in directory.records()} == {KEYS[1].node_id, KEYS[2].node_id}


def test_newcomers_without_layers_are_given_the_blocks_that_are_missing_most(
    clock: VirtualClock, directory: Directory
) -> None:
    newcomer = fresh(clock, 5, model=ModelId(""), layers=LayerRange(0, 0))
    given = []
    for key in range(4):
        assigned = directory.assignment(newcomer)
        assert assigned is not None
        given.append(assigned[1])
        take(directory, fresh(clock, key, layers=assigned[1]))
    assert given == [*BLOCKS, BLOCKS[0]]
    directory.suspect(KEYS[1].node_id)
    assert directory.assignment(newcomer) == (MODEL, BLOCKS[1])
    assert directory.assignment(fresh(clock, 6)) is None


@asynccontextmanager
async def served(directory: Directory, key: int = 0) -> AsyncIterator[Stream]:
    """A stream from node `key` to a directory that is served."""
    hub = MemoryNetwork()
    server, client = hub.transport(Identity.generate()), hub.transport(KEYS[key])
    address = await server.bind()
    await client.bind()
    serving = asyncio.create_task(server.serve(directory.handle))
    try:
        yield await client.dial(address)
    finally:
        serving.cancel()
        await server.close()
        await client.close()


async def test_a_node_announces_itself_over_and_over_on_one_stream(
    clock: VirtualClock, directory: Directory
) -> None:
    async with served(directory) as stream:
        for _ in range(3):
            await stream.send(encode_frame(Announce(fresh(clock))))
            assert await receive(stream) == Announced(15_000, None, None)
            await clock.advance(3)
        await stream.send(encode_frame(Ping(5)))
        assert await receive(stream) == Pong(5)
        assert len(directory.records()) == 1


async def test_a_newcomer_is_told_what_to_hold(clock: VirtualClock, directory: Directory) -> None:
    async with served(directory) as stream:
        empty = fresh(clock, model=ModelId(""), layers=LayerRange(0, 0))
        await stream.send(encode_frame(Announce(empty)))
        assert await receive(stream) == Announced(15_000, BLOCKS[0], MODEL)


async def test_a_node_whose_record_is_refused_hears_why_and_is_dropped(
    clock: VirtualClock, directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with served(directory, key=1) as stream:
        await stream.send(encode_frame(Announce(fresh(clock, 0))))
        reply = await receive(stream)
        assert isinstance(reply, Refused)
        assert reply.code == "forged"
        assert await is_dropped(stream)
        assert "not signed by the node that sent it" in caplog.text
        assert directory.records() == []


async def test_a_peer_that_says_something_else_is_dropped(directory: Directory) -> None:
    async with served(directory) as stream:
        await stream.send(encode_frame(Probe()))
        assert await is_dropped(stream)


async def test_a_peer_that_says_nothing_is_dropped_too(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.routing.directory.SILENCE_SECONDS", 0.05)
    async with served(directory) as stream:
        assert await is_dropped(stream)
