from __future__ import annotations

from typing import Any

from tests.routing.records import KEYS, record
from unisono.clock import VirtualClock
from unisono.routing.load import Load
from unisono.types import NodeId, PeerAddress
from unisono.wire.records import LEASE_SECONDS, NodeRecord


def made(clock: VirtualClock, **fields: Any) -> NodeRecord:
    """A record that node 0 makes now."""
    return record(0, 0, 2, expires=round((clock.now() + LEASE_SECONDS) * 1000), **fields)


async def test_own_sessions_count_until_a_record_includes_them() -> None:
    clock = VirtualClock()
    load, old = Load(clock), made(clock, sessions=2, free_positions=100)
    await clock.advance(1)
    load.open([old], 30)
    assert (load.sessions(old), load.room(old)) == (3, 70)
    await clock.advance(1)
    new = made(clock, sessions=3, free_positions=70)
    assert (load.sessions(new), load.room(new)) == (3, 70)


async def test_own_sessions_that_ended_are_taken_off_a_record_that_still_has_them() -> None:
    clock = VirtualClock()
    load = Load(clock)
    stay = load.open([made(clock)], 30)
    await clock.advance(1)
    old = made(clock, sessions=3, free_positions=70)
    await clock.advance(1)
    load.close([old], stay)
    assert (load.sessions(old), load.room(old)) == (2, 70)
    await clock.advance(1)
    assert load.sessions(made(clock, sessions=2)) == 2


async def test_a_session_between_two_records_leaves_no_trace() -> None:
    clock = VirtualClock()
    load, old = Load(clock), made(clock, sessions=1)
    await clock.advance(0.5)
    load.close([old], load.open([old], 10))
    assert load.sessions(old) == 1
    assert load.own(old.node) == 0


async def test_a_record_that_denies_own_sessions_is_not_believed() -> None:
    clock = VirtualClock()
    load = Load(clock)
    for _ in range(4):
        load.open([made(clock)], 1)
    await clock.advance(1)
    assert load.sessions(made(clock, sessions=0)) == 4


async def test_nodes_that_have_long_gone_are_forgotten() -> None:
    clock = VirtualClock()
    load = Load(clock)
    for i in range(1000):
        node = NodeId(f"{i:064x}")
        hop = record(0, 0, 2, node=node, address=PeerAddress(node, "memory", ("memory:0",)))
        load.close([hop], load.open([hop], 1))
        await clock.advance(1)
    assert len(load._nodes) < 200


def test_a_path_of_several_nodes_is_counted_on_each() -> None:
    load = Load(VirtualClock())
    path = [record(0, 0, 2), record(1, 2, 5)]
    stay = load.open(path, 5)
    assert [load.own(KEYS[i].node_id) for i in range(3)] == [1, 1, 0]
    load.close(path, stay)
    load.close(path, stay)
    assert [load.own(KEYS[i].node_id) for i in range(3)] == [0, 0, 0]
