"""Exchanges without a network: what one side makes of what the other says."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.records import KEYS, MODEL
from unisono.clock import VirtualClock
from unisono.errors import PeerRefused, WireError
from unisono.routing.coordinates import ORIGIN
from unisono.routing.entry import WHOLE
from unisono.routing.exchange import URGENT_PER_SECOND, Exchanges
from unisono.routing.membership import Membership
from unisono.routing.own_record import RENEW_SECONDS
from unisono.types import LayerRange, NodeId, PeerAddress, canonical
from unisono.wire.frames import decode_frame
from unisono.wire.gossip_messages import (
    MAX_DEPTH,
    MAX_DIGEST,
    Beat,
    Exchange,
    Newer,
    Region,
    Wanted,
    pack,
)
from unisono.wire.identity import Identity
from unisono.wire.messages import Refused
from unisono.wire.records import NodeRecord

CLOCK = VirtualClock()
NOW = int(CLOCK.now() * 1000)
STRANGERS = [Identity.from_seed(bytes([100 + i]) * 32) for i in range(8)]


def record_of(identity: Identity, sequence: int = NOW, **changes: Any) -> NodeRecord:
    fields: dict[str, Any] = {
        "node": identity.node_id,
        "address": PeerAddress(identity.node_id, "memory", (f"memory:{identity.node_id[:4]}",)),
        "model": MODEL,
        "layers": LayerRange(0, 2),
        "free_positions": 1,
        "sessions": 0,
        "sequence": sequence,
        "expires": NOW + 15_000,
    }
    return NodeRecord(**(fields | changes)).signed_by(identity)


POOL = [record_of(identity, NOW + i) for identity in STRANGERS for i in range(3)]


def side(number: int, *records: NodeRecord, clock: VirtualClock = CLOCK) -> Exchanges:
    identity = KEYS[number]
    members = Membership(clock, identity.node_id)
    made = Exchanges(
        identity, members, clock, lambda: record_of(identity), rng=random.Random(number)
    )
    made.own()
    for r in records:
        try:
            members.accept(r)
        except PeerRefused:
            continue
    return made


def state(one: Exchanges) -> dict[NodeId, tuple[int, bool]]:
    found = one.membership.inside(WHOLE)
    return {e.record.node: (e.record.sequence, e.record.leaving) for e in found}


def exchange(one: Exchanges, other: Exchanges) -> int:
    """A whole exchange that `one` opens; the number of its frames."""
    a, b = one.membership.own, other.membership.own
    message, body = decode_frame(one.begin(b))
    assert isinstance(message, Exchange)
    reply, reply_body = decode_frame(other.answer_any(a, message, body))
    assert isinstance(reply, Newer), reply
    last = one.conclude(b, reply, reply_body, 0.02)
    if last is None:
        return 2
    wanted, wanted_body = decode_frame(last)
    assert isinstance(wanted, Wanted)
    other.take_wanted(a, wanted_body)
    return 3


@settings(deadline=None)
@given(st.lists(st.sampled_from(POOL)), st.lists(st.sampled_from(POOL)))
def test_after_an_exchange_both_know_what_either_knew(
    mine: list[NodeRecord], yours: list[NodeRecord]
) -> None:
    one, other = side(0, *mine), side(1, *yours)
    newest: dict[NodeId, int] = {}
    for r in mine + yours:
        newest[r.node] = max(newest.get(r.node, 0), r.sequence)
    exchange(one, other)
    exchange(other, one)
    assert state(one) == state(other)
    known = {n: s for n, (s, _) in state(one).items()}
    assert {n: s for n, s in known.items() if n in newest} == newest
    assert len(known) == len(newest) + 2
    assert exchange(one, other) == 2, "there is nothing left to say"


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.sampled_from(POOL), max_size=6), min_size=3, max_size=5),
    st.randoms(use_true_random=False),
)
def test_everybody_ends_with_the_same_records_whoever_spoke_to_whom(
    starts: list[list[NodeRecord]], rng: random.Random
) -> None:
    sides = [side(i, *records) for i, records in enumerate(starts)]
    for _ in range(2):
        order = sides[:]
        rng.shuffle(order)
        for one, other in pairwise(order):
            exchange(one, other)
        for one, other in pairwise(order[::-1]):
            exchange(one, other)
    assert all(state(s) == state(sides[0]) for s in sides)


brought = st.sampled_from([canonical(r) for r in POOL[:4]]) | st.binary(max_size=50)
regions = st.integers(0, MAX_DEPTH).flatmap(
    lambda depth: st.builds(Region, st.integers(0, (1 << depth) - 1), st.just(depth))
)


@settings(deadline=None)
@given(
    st.one_of(
        st.builds(
            Exchange,
            st.integers(0, MAX_DEPTH),
            st.integers(0, (1 << 32) - 1),
            regions,
            st.integers(0, MAX_DIGEST),
            st.just(b"") | st.binary(min_size=8, max_size=8),
        ),
        st.builds(Beat),
        st.builds(Wanted),
    ),
    st.binary(max_size=64),
    st.lists(
        st.sampled_from([canonical(r) for r in POOL[:4]]) | st.binary(max_size=50), max_size=3
    ),
)
def test_whatever_a_stranger_opens_with_is_answered_or_refused(
    message: Exchange | Beat | Wanted, head: bytes, records: list[bytes]
) -> None:
    one = side(0)
    body = memoryview(head + pack(records))
    try:
        reply, _ = decode_frame(one.answer_any(STRANGERS[0].node_id, message, body))
    except WireError:
        return
    assert isinstance(reply, Newer | Beat | Refused)


@settings(deadline=None)
@given(
    st.builds(
        Newer,
        st.integers(0, MAX_DEPTH),
        st.integers(0, (1 << 32) - 1),
        st.integers(0, MAX_DIGEST),
        st.integers(0, 8),
    ),
    st.binary(max_size=64),
    st.lists(
        st.sampled_from([canonical(r) for r in POOL[:4]]) | st.binary(max_size=50), max_size=3
    ),
)
def test_whatever_a_partner_replies_is_taken_or_refused(
    message: Newer, head: bytes, records: list[bytes]
) -> None:
    one = side(0)
    one.begin(STRANGERS[0].node_id)
    try:
        one.conclude(STRANGERS[0].node_id, message, memoryview(head + pack(records)), 0.1)
    except WireError:
        return
    assert one.membership.depth <= MAX_DEPTH


async def test_the_own_record_is_renewed_three_times_per_lease() -> None:
    clock = VirtualClock()
    one = side(0, clock=clock)
    first = one.own().record
    await clock.advance(RENEW_SECONDS - 0.1)
    assert one.own().record == first
    await clock.advance(0.2)
    second = one.own().record
    assert second.sequence > first.sequence
    assert second.expires > first.expires
    assert second.signature_is_good()


def test_a_newer_record_of_ones_own_is_overtaken() -> None:
    one = side(0)
    one.membership.accept(record_of(KEYS[0], NOW + 500_000))
    assert one.own().record.sequence > NOW + 500_000


def test_a_node_that_leaves_says_so_in_every_further_record() -> None:
    one = side(0)
    one.renew(leaving=True)
    assert one.own().record.leaving
    assert one.renew().record.leaving


def test_a_measured_exchange_moves_the_own_coordinate_and_is_told() -> None:
    one, other = side(0), side(1)
    exchange(one, other)
    exchange(one, other)
    assert one.renew().record.coordinate != ORIGIN
    assert one.renew().record.uncertainty <= 1_000_000


def test_news_is_told_to_a_few_at_once_and_not_without_limit() -> None:
    clock = VirtualClock()
    one = side(0, *POOL, clock=clock)
    told = one.urgent()
    assert told is not None
    addresses, frame = told
    assert len(addresses) == 3
    assert isinstance(decode_frame(frame)[0], Beat)
    assert one.urgent() is None, "it is told once"
    sent = 0
    for i in range(100):
        identity = Identity.from_seed(bytes([200]) * 30 + i.to_bytes(2, "big"))
        one.membership.accept(record_of(identity))
        sent += one.urgent() is not None
    assert sent <= 2 * URGENT_PER_SECOND


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_everybody_has_watchers_on_the_ring(count: int) -> None:
    identities = [Identity.from_seed(bytes([50 + i]) * 32) for i in range(count + 1)]
    watchers: dict[NodeId, int] = {}
    for own in identities:
        members = Membership(CLOCK, own.node_id)
        one = Exchanges(own, members, CLOCK, lambda own=own: record_of(own))
        one.own()
        for identity in identities:
            if identity is not own:
                members.accept(record_of(identity))
        near = [a.node for a in one.neighbours()]
        assert len(near) == len(set(near)) == min(4, count)
        for node in near:
            watchers[node] = watchers.get(node, 0) + 1
    assert set(watchers.values()) == {min(4, count)}
