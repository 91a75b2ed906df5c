from __future__ import annotations

from tests.routing.records import KEYS
from unisono.clock import VirtualClock
from unisono.routing.limits import (
    BURST,
    PEER_BURST,
    PEER_RATE,
    PUNISHED_SECONDS,
    RECORD_BURST,
    PeerLimits,
)
from unisono.types import NodeId

ONE, OTHER = KEYS[0].node_id, KEYS[1].node_id


async def test_a_peer_may_burst_and_then_ask_at_its_rate() -> None:
    clock = VirtualClock()
    limits = PeerLimits(clock)
    assert sum(limits.allow(ONE) for _ in range(100)) == PEER_BURST
    assert limits.allow(OTHER)
    await clock.advance(2)
    assert sum(limits.allow(ONE) for _ in range(100)) == 2 * PEER_RATE


def test_many_ids_together_are_limited_too() -> None:
    limits = PeerLimits(VirtualClock())
    ids = [NodeId(f"{i:064x}") for i in range(3000)]
    assert sum(limits.allow(node) for node in ids) == BURST


def test_records_that_a_peer_brings_are_limited() -> None:
    limits = PeerLimits(VirtualClock())
    taken = [limits.allow_records(ONE, 256) for _ in range(6)]
    assert taken == [256] * 4 + [0] * 2
    assert sum(taken) == RECORD_BURST
    assert limits.allow_records(OTHER, 10) == 10


async def test_a_punished_peer_waits() -> None:
    clock = VirtualClock()
    limits = PeerLimits(clock)
    limits.punish(ONE)
    assert not limits.allow(ONE)
    assert limits.allow(OTHER)
    await clock.advance(PUNISHED_SECONDS + 1)
    assert limits.allow(ONE)
