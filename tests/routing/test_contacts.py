from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.routing.records import record
from unisono.clock import VirtualClock
from unisono.routing.contacts import BUCKET, KEPT_SECONDS, MAX_FAILURES, MAX_LOST, Contacts
from unisono.routing.entry import Entry, make_entry, overlap, region_of, shared_bits
from unisono.types import NodeId, PeerAddress
from unisono.wire.gossip_messages import MAX_DEPTH, Region

OWN = bytes(32)
DEPTH = 3
KEYS = iter(range(1, 1 << 30))


def entry(bit: int | None, sequence: int = 1) -> Entry:
    """An entry whose hash first differs from `OWN` at `bit`, or only far behind."""
    number = next(KEYS)
    first = 0 if bit is None else 1 << (31 - bit)
    key = first.to_bytes(4, "big") + number.to_bytes(28, "big")
    node = NodeId(f"{number:064x}")
    address = PeerAddress(node, "memory", ("memory:1",))
    return make_entry(record(0, 0, 2, node=node, address=address, sequence=sequence), key=key)


def contacts() -> tuple[VirtualClock, Contacts]:
    clock = VirtualClock()
    return clock, Contacts(clock, OWN)


def names(found: Contacts) -> set[str]:
    return {c.entry.record.node for c in found}


def test_every_region_beside_the_own_one_keeps_a_few() -> None:
    _, found = contacts()
    for bit in range(DEPTH):
        for _ in range(BUCKET + 2):
            found.offer(entry(bit), DEPTH, proved=True)
    found.offer(entry(None), DEPTH, proved=True)
    found.offer(entry(DEPTH), DEPTH, proved=True)
    assert len(found) == BUCKET * DEPTH
    assert found.sparse(DEPTH) is None
    assert found.sparse(DEPTH + 1) == DEPTH


def test_a_flood_of_unknown_nodes_displaces_nobody_that_answers() -> None:
    _, found = contacts()
    good = [entry(0) for _ in range(BUCKET)]
    for e in good:
        found.offer(e, DEPTH, proved=True)
    for _ in range(50):
        found.offer(entry(0), DEPTH, proved=False)
        found.offer(entry(0), DEPTH, proved=True)
    assert names(found) == {e.record.node for e in good}


def test_one_that_answers_takes_the_place_of_one_that_was_only_named() -> None:
    _, found = contacts()
    for _ in range(BUCKET):
        found.offer(entry(0), DEPTH, proved=False)
    better = entry(0)
    found.offer(better, DEPTH, proved=True)
    assert better.record.node in names(found)
    assert len(found) == BUCKET


async def test_a_contact_that_fails_is_tried_less_and_less_and_then_forgotten() -> None:
    clock, found = contacts()
    e, rng = entry(0), random.Random(1)
    found.offer(e, DEPTH, proved=True)
    waits = []
    for _ in range(MAX_FAILURES - 1):
        found.failed(e.record.node)
        began = clock.now()
        while found.outside(rng) is None:
            await clock.advance(1)
        waits.append(clock.now() - began)
    assert waits == sorted(waits)
    assert waits[-1] > 10 * waits[0]
    found.failed(e.record.node)
    assert len(found) == 0


async def test_contacts_are_kept_far_longer_than_a_lease_but_not_for_ever() -> None:
    clock, found = contacts()
    rng = random.Random(1)
    found.offer(entry(1), DEPTH, proved=True)
    found.lose(entry(None))
    await clock.advance(KEPT_SECONDS - 1)
    assert found.outside(rng) is not None
    assert found.lost(rng) is not None
    await clock.advance(2)
    assert found.outside(rng) is None
    assert found.lost(rng) is None
    assert len(found) == 0


def test_silent_members_are_remembered_within_bounds() -> None:
    _, found = contacts()
    lost = [entry(None) for _ in range(MAX_LOST + 10)]
    for e in lost:
        found.lose(e)
    assert len(found) == MAX_LOST
    for _ in range(2 * MAX_FAILURES):
        found.failed(lost[-1].record.node)
    assert lost[-1].record.node in names(found), "a partition may last"
    found.found(lost[-1].record.node)
    assert lost[-1].record.node not in names(found)


def test_one_that_was_only_named_is_forgotten_at_its_first_failure() -> None:
    _, found = contacts()
    named = entry(None)
    found.hint(named, DEPTH)
    assert names(found) == {named.record.node}
    found.failed(named.record.node)
    assert len(found) == 0


def test_contacts_move_when_the_region_changes() -> None:
    _, found = contacts()
    inner = entry(2)
    found.offer(inner, DEPTH, proved=True)
    found.regrouped(2)
    lost = found.lost(random.Random(1))
    assert lost is not None
    assert lost.entry is inner
    found.regrouped(3)
    outside = found.outside(random.Random(1))
    assert outside is not None
    assert outside.entry is inner


@st.composite
def regions(draw: st.DrawFn) -> Region:
    depth = draw(st.integers(0, MAX_DEPTH))
    return Region(draw(st.integers(0, (1 << depth) - 1)), depth)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.data())
def test_two_regions_overlap_exactly_if_one_is_inside_the_other(
    one: bytes, other: bytes, data: st.DataObject
) -> None:
    a = region_of(one, data.draw(st.integers(0, MAX_DEPTH)))
    b = region_of(other, data.draw(st.integers(0, MAX_DEPTH)))
    found = overlap(a, b)
    inside = shared_bits(one, other) >= min(a.depth, b.depth)
    assert (found is not None) == inside
    if found is not None:
        assert found == max(a, b, key=lambda r: r.depth)


@given(regions())
def test_a_region_overlaps_itself_and_the_whole(region: Region) -> None:
    assert overlap(region, region) == region
    assert overlap(region, Region(0, 0)) == region
