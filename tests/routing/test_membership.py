from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.records import KEYS, MODEL, record
from unisono.clock import VirtualClock
from unisono.errors import PeerRefused
from unisono.routing.entry import WHOLE, contains, node_key, region_of
from unisono.routing.membership import FEW, Membership
from unisono.types import LayerRange, ModelId, PeerAddress, canonical
from unisono.wire.gossip_messages import MAX_RECORD_BYTES
from unisono.wire.identity import Identity
from unisono.wire.records import NodeRecord

OWN = KEYS[23].node_id


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def members(clock: VirtualClock) -> Membership:
    return Membership(clock, OWN)


def fresh(clock: VirtualClock, key: int = 0, seconds: float = 15, **changes: Any) -> NodeRecord:
    """A record that is good for some seconds from now."""
    now = int(clock.now() * 1000)
    fields = {"sequence": now, "expires": now + round(1000 * seconds)} | changes
    return record(key, 0, 2, sign=True, **fields)


def refusal(members: Membership, r: NodeRecord) -> str:
    before = members.refused.copy()
    with pytest.raises(PeerRefused) as refused:
        members.accept(r)
    assert members.refused - before == {refused.value.code: 1}
    return refused.value.code


def nodes(members: Membership) -> list[str]:
    return [r.node for r in members.records()]


def test_a_signed_record_is_known_until_its_lease_ends(
    clock: VirtualClock, members: Membership
) -> None:
    assert members.accept(fresh(clock))
    assert nodes(members) == [KEYS[0].node_id]


async def test_a_lease_that_is_not_renewed_ends(clock: VirtualClock, members: Membership) -> None:
    members.accept(fresh(clock, 0))
    members.accept(fresh(clock, 1))
    await clock.advance(14.9)
    members.accept(fresh(clock, 1))
    assert len(members.records()) == 2
    await clock.advance(0.2)
    assert nodes(members) == [KEYS[1].node_id]
    assert [r.node for r, _ in members.all_records()] == [KEYS[1].node_id]
    await clock.advance(15)
    assert members.records() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"free_positions": 10**9},
        {"layers": LayerRange(0, 6)},
        {"sessions": 1},
        {"sequence": 10**15},
        {"model": ModelId("11" * 32)},
        {"leaving": True},
        {"signature": b""},
        {"signature": b"\0" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_that_was_altered_after_it_was_signed_is_refused(
    clock: VirtualClock, members: Membership, changes: dict[str, Any]
) -> None:
    assert refusal(members, msgspec.structs.replace(fresh(clock), **changes)) == "forged"
    assert members.records() == []


def test_a_record_sent_first_hand_must_be_the_senders_own(
    clock: VirtualClock, members: Membership
) -> None:
    with pytest.raises(PeerRefused) as refused:
        members.accept_first_hand(canonical(fresh(clock, 0)), KEYS[1].node_id)
    assert refused.value.code == "forged"
    assert members.records() == []


def test_of_a_node_the_newest_record_counts_and_older_ones_are_refused(
    clock: VirtualClock, members: Membership
) -> None:
    now = int(clock.now() * 1000)
    members.accept(fresh(clock, sequence=now + 5))
    assert refusal(members, fresh(clock, sequence=now + 4)) == "old"
    assert members.accept(fresh(clock, sequence=now + 6, sessions=3))
    assert not members.accept(fresh(clock, sequence=now + 6, sessions=3))
    assert members.records()[0].sessions == 3
    assert members.refused.total() == 1


@pytest.mark.parametrize(("seconds", "code"), [(0, "expired"), (-1, "expired"), (20.1, "future")])
def test_a_lease_that_is_over_or_too_long_is_refused(
    clock: VirtualClock, members: Membership, seconds: float, code: str
) -> None:
    assert refusal(members, fresh(clock, seconds=seconds)) == code


def test_the_clocks_of_two_machines_may_differ_by_five_seconds(
    clock: VirtualClock, members: Membership
) -> None:
    assert members.accept(fresh(clock, seconds=19.9))


def test_an_oversized_record_is_refused(clock: VirtualClock, members: Membership) -> None:
    hosts = tuple(f"{'x' * 255}:{i}" for i in range(8))
    address = PeerAddress(KEYS[0].node_id, "tcp", hosts)
    assert refusal(members, fresh(clock, address=address)) == "oversized"
    with pytest.raises(PeerRefused) as refused:
        members.accept_encoded(bytes(MAX_RECORD_BYTES + 1))
    assert refused.value.code == "oversized"


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xc1" * 40, canonical({"node": "x"})])
def test_bytes_that_are_no_record_are_refused(members: Membership, data: bytes) -> None:
    with pytest.raises(PeerRefused) as refused:
        members.accept_encoded(data)
    assert refused.value.code == "malformed"
    assert members.refused["malformed"] == 1


def test_a_record_that_is_not_in_its_canonical_form_is_refused(
    clock: VirtualClock, members: Membership
) -> None:
    fields = msgspec.to_builtins(fresh(clock), builtin_types=(bytes,))
    turned = msgspec.msgpack.encode(dict(reversed(fields.items())))
    with pytest.raises(PeerRefused) as refused:
        members.accept_encoded(turned)
    assert refused.value.code == "malformed"


async def test_a_node_that_leaves_is_gone_at_once_and_stays_so(
    clock: VirtualClock, members: Membership
) -> None:
    now = int(clock.now() * 1000)
    before = fresh(clock, sequence=now)
    members.accept(before)
    members.accept(fresh(clock, sequence=now + 2, leaving=True))
    assert members.records() == []
    assert refusal(members, fresh(clock, sequence=now + 1)) == "left"
    await clock.advance(14)
    assert refusal(members, before) == "left"
    await clock.advance(2)
    assert refusal(members, before) == "expired"


def test_a_node_that_left_may_come_back_with_a_newer_record(
    clock: VirtualClock, members: Membership
) -> None:
    now = int(clock.now() * 1000)
    members.accept(fresh(clock, sequence=now, leaving=True))
    assert members.accept(fresh(clock, sequence=now + 1))
    assert nodes(members) == [KEYS[0].node_id]


async def test_a_replaced_record_does_not_come_back_after_the_one_that_replaced_it(
    clock: VirtualClock, members: Membership
) -> None:
    now = int(clock.now() * 1000)
    long = fresh(clock, sequence=now, seconds=15)
    members.accept(long)
    members.accept(fresh(clock, sequence=now + 1, seconds=5))
    await clock.advance(6)
    assert members.records() == []
    assert refusal(members, long) == "old"
    assert members.accept(fresh(clock, sequence=now + 2))


def test_a_suspect_is_left_out_until_it_speaks_itself(
    clock: VirtualClock, members: Membership
) -> None:
    now, node = int(clock.now() * 1000), KEYS[0].node_id
    members.accept(fresh(clock, sequence=now))
    members.suspect(node)
    assert members.records() == []
    assert [alive for _, alive in members.all_records()] == [False]
    members.accept(fresh(clock, sequence=now + 1), node)
    assert nodes(members) == [node]


def test_of_a_suspect_others_must_bring_two_newer_records(
    clock: VirtualClock, members: Membership
) -> None:
    now, node = int(clock.now() * 1000), KEYS[0].node_id
    members.accept(fresh(clock, sequence=now))
    members.suspect(node)
    members.accept(fresh(clock, sequence=now + 1), KEYS[1].node_id)
    assert members.records() == [], "it may have been under way when the node died"
    members.accept(fresh(clock, sequence=now + 2), KEYS[1].node_id)
    assert nodes(members) == [node]


async def test_one_missed_answer_is_forgiven_and_two_in_a_row_are_not(
    clock: VirtualClock, members: Membership
) -> None:
    node = KEYS[0].node_id
    members.accept(fresh(clock))
    for _ in range(3):
        members.missed(node)
        members.heard(node)
    assert nodes(members) == [node]
    for _ in range(5):
        members.missed(node)
    assert nodes(members) == [node], "what fails at the same moment is one failure"
    await clock.advance(1)
    members.missed(node)
    assert members.records() == []


def test_own_records_are_not_among_those_of_others(
    clock: VirtualClock, members: Membership
) -> None:
    members.keep_own(fresh(clock, 23))
    assert members.records() == []
    assert members.count == 1


def test_a_member_learns_that_newer_records_of_its_own_are_about(
    clock: VirtualClock, members: Membership
) -> None:
    now = int(clock.now() * 1000)
    members.keep_own(fresh(clock, 23, sequence=now))
    assert not members.accept(fresh(clock, 23, sequence=now + 9, sessions=1))
    assert members.overtaken == now + 9


# any order


CLOCK = VirtualClock()
NOW = int(CLOCK.now() * 1000)
POOL = [
    record(key, 0, 2, sign=True, sequence=NOW + number, expires=expires, **changes)
    for key in range(4)
    for number in (1, 2, 3)
    for expires in (NOW + 9_000, NOW + 15_000)
    for changes in ({}, {"leaving": True}, {"sessions": 7})
]
BAD = [
    record(0, 0, 2, sign=True, sequence=NOW + 9, expires=NOW),
    record(1, 0, 2, sign=True, sequence=NOW + 9, expires=NOW + 60_000),
    record(2, 0, 2, sequence=NOW + 9, expires=NOW + 15_000),
]


def state(members: Membership) -> dict[str, NodeRecord]:
    return {e.record.node: e.record for e in members.inside(WHOLE)}


def taken(records: list[NodeRecord], view: int = 256) -> Membership:
    members = Membership(CLOCK, OWN, view=view)
    for r in records:
        try:
            members.accept(r)
        except PeerRefused:
            continue
    return members


@given(st.lists(st.sampled_from(POOL + BAD), max_size=30), st.randoms(use_true_random=False))
def test_any_order_of_the_same_records_gives_the_same_state(
    records: list[NodeRecord], rng: random.Random
) -> None:
    shuffled = records + records[:5]
    rng.shuffle(shuffled)
    one, other = taken(records), taken(shuffled)
    assert state(one) == state(other)
    assert sorted(nodes(one)) == sorted(nodes(other))


MANY = [Identity.from_seed(i.to_bytes(2, "big") * 16) for i in range(1, 121)]


def of_many(identity: Identity, sequence: int = 1) -> NodeRecord:
    node = identity.node_id
    return NodeRecord(
        node=node,
        address=PeerAddress(node, "memory", ("memory:1",)),
        model=MODEL,
        layers=LayerRange(0, 2),
        free_positions=1,
        sessions=0,
        sequence=sequence,
        expires=NOW + 15_000,
    ).signed_by(identity)


RECORDS = [of_many(identity) for identity in MANY]


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_region_is_the_same_in_whatever_order_nodes_are_met(rng: random.Random) -> None:
    shuffled = RECORDS[:]
    rng.shuffle(shuffled)
    one, other = taken(RECORDS, 32), taken(shuffled, 32)
    assert one.depth == other.depth > 0
    assert state(one) == state(other)


# the region


def test_a_member_keeps_the_smallest_part_of_a_large_network_that_its_view_allows() -> None:
    members = taken(RECORDS, 32)
    assert members.count <= 32
    kept = {r.node for r in members.records()}
    assert kept == {r.node for r in RECORDS if contains(members.region, node_key(r.node))}
    wider = region_of(members.key, members.depth - 1)
    assert sum(contains(wider, node_key(r.node)) for r in RECORDS) > 32
    assert members.refused["outside"] > 0


def test_a_small_network_is_known_to_everyone() -> None:
    members = taken(RECORDS[:30], 32)
    assert members.depth == 0
    assert len(members.records()) == 30


def test_every_other_region_is_reached_through_some_contacts() -> None:
    members = taken(RECORDS, 32)
    assert 0 < len(members.contacts) <= 3 * members.depth
    assert members.contacts.sparse(members.depth) is None


def test_a_part_with_hardly_anybody_in_it_is_not_cut_off() -> None:
    key = node_key(OWN)
    near = [r for r in RECORDS if contains(region_of(key, 1), node_key(r.node))][: FEW - 2]
    far = [r for r in RECORDS if not contains(region_of(key, 1), node_key(r.node))][:30]
    members = taken(near + far, 32)
    assert members.depth == 0
    assert len(members.records()) == len(near) + len(far)


async def test_a_region_that_empties_grows_again() -> None:
    clock = VirtualClock()
    members = Membership(clock, OWN, view=32)
    for r in RECORDS:
        try:
            members.accept(r)
        except PeerRefused:
            continue
    narrow = members.depth
    await clock.advance(31)
    assert members.records() == []
    for _ in range(4):
        members.regroup()
        await clock.advance(31)
    assert members.depth < narrow


def test_a_digest_lists_all_and_the_comparison_finds_each_difference() -> None:
    rng = random.Random(5)
    one, other = taken(RECORDS[:20]), taken(RECORDS[10:25])
    newer = of_many(MANY[12], 2)
    one.accept(newer)
    region, digest = one.digest(WHOLE, rng)
    assert region == WHOLE
    lacks, wanted = other.compare(region, digest)
    assert {e.record.node for e in lacks} == {r.node for r in RECORDS[20:25]}
    sent = {e.record.node for e in one.select(wanted)}
    assert sent == {r.node for r in RECORDS[:10]} | {newer.node}
