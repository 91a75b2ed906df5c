from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.routing.town import Member, Town, answered, town
from unisono.errors import PeerGone, PeerRefused
from unisono.routing.exchange import BEAT_SECONDS
from unisono.routing.limits import PEER_BURST
from unisono.types import LayerRange, PeerAddress, canonical
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.gossip_messages import Beat, Exchange, Newer, pack
from unisono.wire.identity import Identity
from unisono.wire.messages import Ping, Pong, Refused
from unisono.wire.records import LEASE_SECONDS, NodeRecord, Probe


async def test_a_newcomer_is_known_to_everyone_within_two_seconds() -> None:
    async with town(20) as place:
        await place.until(place.all_know_all, 10)
        fresh = await place.add(place.members[7])
        took = await place.until(
            lambda: all(m.knows(fresh.node) for m in place.members if m is not fresh), 5
        )
        assert took < 2
        await place.until(place.all_know_all, 5)


async def test_changed_layers_are_known_to_everyone_soon() -> None:
    async with town(16) as place:
        await place.until(place.all_know_all, 10)
        changing = place.members[3]
        changing.layers = LayerRange(2, 4)
        changing.gossip.changed()

        def everywhere() -> bool:
            return all(
                r.layers == LayerRange(2, 4)
                for m in place.members
                for r in m.members.records()
                if r.node == changing.node
            )

        assert await place.until(everywhere, 5) < 2


async def test_any_member_is_as_good_an_entrance_as_another() -> None:
    async with town(6) as place:
        first = place.members[0]
        place.kill(first)
        nobody = PeerAddress(Identity.generate().node_id, "memory", ("memory:none",))
        fresh = await place.add(first, nobody, place.members[4])
        rest = [m for m in place.members if m is not first]
        await place.until(lambda: place.all_know_all(rest), 15)
        await place.run(LEASE_SECONDS)
        assert not any(m.holds(first.node) for m in rest)
        assert fresh in rest


async def test_a_join_without_anybody_there_fails_in_time_and_backs_off() -> None:
    async with town() as place:
        nobody = PeerAddress(Identity.generate().node_id, "memory", ("memory:none",))
        member = Member(place, 7, [nobody], 256)
        await member.transport.bind()
        dials = 0

        async def dial(peer: PeerAddress) -> Any:
            nonlocal dials
            dials += 1
            raise PeerGone("nobody is there")

        member.transport.dial = dial  # type: ignore[method-assign]
        member.address = PeerAddress(member.node, "memory", ("memory:1",))
        import asyncio

        joining = asyncio.create_task(member.gossip.join(60))
        await place.run(70)
        with pytest.raises(PeerGone, match="no member answers"):
            await joining
        assert 5 < dials < 15


async def test_a_killed_node_is_left_out_by_its_neighbours_within_two_beats() -> None:
    async with town(12) as place:
        await place.until(place.all_know_all, 10)
        victim = place.members[5]
        near = [
            m
            for m in place.members
            if victim.node in [a.node for a in m.gossip.exchanges.neighbours()]
        ]
        assert len(near) == 4
        place.kill(victim)
        took = await place.until(lambda: not any(m.knows(victim.node) for m in near), 20)
        assert took <= 2 * BEAT_SECONDS + 0.1


async def test_a_killed_node_is_gone_everywhere_when_its_lease_ends() -> None:
    async with town(12) as place:
        await place.until(place.all_know_all, 10)
        victim = place.members[5]
        others = place.kill(victim)
        took = await place.until(lambda: not any(m.holds(victim.node) for m in others), 20)
        assert took <= LEASE_SECONDS + 0.1
        await place.run(30)
        assert not any(m.holds(victim.node) for m in others)
        assert place.all_know_all(others)


async def test_a_node_that_leaves_is_gone_everywhere_in_a_second() -> None:
    async with town(20) as place:
        await place.until(place.all_know_all, 10)
        leaving = place.members[4]
        others = [m for m in place.members if m is not leaving]
        import asyncio

        farewell = asyncio.create_task(leaving.gossip.leave())
        await place.until(lambda: not any(m.holds(leaving.node) for m in others), 2)
        await place.run(1)
        await farewell
        await leaving.stop()
        await place.run(20)
        assert not any(m.holds(leaving.node) for m in others)
        assert place.all_know_all(others)


async def test_a_node_that_restarts_with_its_key_is_known_again_at_once() -> None:
    async with town(6) as place:
        await place.until(place.all_know_all, 10)
        old = place.members.pop(2)
        import asyncio

        farewell = asyncio.create_task(old.gossip.leave())
        await place.run(1.2)
        await farewell
        await old.stop()
        again = Member(place, 3, [place.members[0].address], 256)
        assert again.node == old.node
        place.members.append(again)
        await again.start()
        await place.until(lambda: all(m.knows(old.node) for m in place.members[:-1]), 5)


async def test_a_node_whose_clock_ran_ahead_before_it_restarted_catches_up() -> None:
    async with town(4) as place:
        await place.until(place.all_know_all, 10)
        member = place.members[1]
        ahead = msgspec.structs.replace(
            member.gossip.exchanges.own().record, sequence=int(place.clock.now() * 1000) + 10**8
        ).signed_by(member.identity)
        for other in place.members:
            if other is not member:
                other.members.accept(ahead)
        member.layers = LayerRange(3, 4)

        def current() -> bool:
            return all(
                r.layers == LayerRange(3, 4)
                for m in place.members
                for r in m.members.records()
                if r.node == member.node
            )

        await place.until(current, 15)


async def test_a_partition_heals_long_after_every_lease_has_ended() -> None:
    async with town(12) as place:
        await place.until(place.all_know_all, 10)
        one, other = place.members[::2], place.members[1::2]
        place.cut(one, other)
        await place.run(LEASE_SECONDS + 1)
        for side, away in ((one, other), (other, one)):
            assert place.all_know_all(side)
            assert not any(m.holds(a.node) for m in side for a in away)
        await place.run(60)
        place.heal()
        await place.until(place.all_know_all, 60)


async def test_coordinates_tell_round_trips_that_were_never_measured() -> None:
    async with town(16) as place:
        delays: dict[frozenset[str], float] = {}
        for i, a in enumerate(place.members):
            for j, b in enumerate(place.members[:i]):
                far = 0.1 if i % 2 != j % 2 else 0.05
                delays[frozenset((a.node, b.node))] = far
                place.hub.set_delay(a.node, b.node, far)
        await place.run(60)
        from unisono.routing.coordinates import estimated_rtt

        errors = []
        places = {m.node: m.gossip.exchanges.position.coordinate for m in place.members}
        for i, a in enumerate(place.members):
            for b in place.members[:i]:
                true = 2e6 * delays[frozenset((a.node, b.node))]
                errors.append(abs(estimated_rtt(places[a.node], places[b.node]) - true) / true)
        errors.sort()
        assert errors[len(errors) // 2] < 0.3


async def test_regions_of_a_larger_network_stay_connected() -> None:
    async with town(40, view=16) as place:
        await place.run(10)
        assert all(m.members.count <= 32 for m in place.members)
        assert max(m.members.depth for m in place.members) >= 1
        from unisono.routing.entry import contains

        def complete() -> bool:
            for m in place.members:
                region = m.members.region
                wanted = {
                    o.node for o in place.members if o is not m and contains(region, o.members.key)
                }
                if wanted - {r.node for r in m.members.records()}:
                    return False
            return True

        await place.until(complete, 60)
        fresh = await place.add(place.members[0], view=16)
        region = fresh.members.region
        await place.until(complete, 20)
        region = fresh.members.region
        assert region.depth > 0
        assert fresh.members.records()
        wide = await place.add(place.members[1], view=512)
        everyone = {m.node for m in place.members} - {wide.node}
        await place.until(lambda: {r.node for r in wide.members.records()} >= everyone, 40)


# what strangers send


def described(
    place: Town, identity: Identity, seconds: float = 15, *, sign: bool = True, **changes: Any
) -> NodeRecord:
    now = int(place.clock.now() * 1000)
    fields: dict[str, Any] = {
        "node": identity.node_id,
        "address": PeerAddress(identity.node_id, "memory", ("memory:999",)),
        "model": "7b" * 32,
        "layers": LayerRange(0, 2),
        "free_positions": 1,
        "sessions": 0,
        "sequence": now,
        "expires": now + int(1000 * seconds),
    }
    made = NodeRecord(**(fields | changes))
    return made.signed_by(identity) if sign else made


async def ask(place: Town, transport: Any, member: Member, frame: bytes) -> Any:
    """The reply to a frame on a new stream; None: the stream ended."""
    stream = await transport.dial(member.address)
    await stream.send(frame)
    reply = await answered(stream)
    await stream.close()
    return None if reply is None else decode_frame(reply)[0]


def beat(*records: NodeRecord) -> bytes:
    return encode_frame(Beat(), pack(canonical(r) for r in records))


async def test_a_record_of_a_stranger_is_answered_and_known() -> None:
    async with town(1) as place:
        (member,) = place.members
        identity, transport = await place.peer()
        assert isinstance(
            await ask(place, transport, member, beat(described(place, identity))), Beat
        )
        assert member.knows(identity.node_id)


@pytest.mark.parametrize(("seconds", "code"), [(-1, "expired"), (60, "future")])
async def test_a_peer_with_a_wrong_clock_is_told_so(seconds: float, code: str) -> None:
    async with town(1) as place:
        (member,) = place.members
        identity, transport = await place.peer()
        reply = await ask(place, transport, member, beat(described(place, identity, seconds)))
        assert isinstance(reply, Refused)
        assert reply.code == code
        assert member.members.refused == {code: 1}
        joining = Member(place, 999, [member.address], 256)
        await joining.transport.bind()
        joining.address = PeerAddress(identity.node_id, "memory", ("memory:999",))
        real = place.clock.now
        joining.gossip.exchanges._own._clock = type(
            "Wrong", (), {"now": lambda _: real() - 15 + seconds, "monotonic": lambda _: real()}
        )()
        with pytest.raises(PeerRefused) as refused:
            await joining.gossip.join(5)
        assert refused.value.code == code


async def test_forged_records_are_refused_counted_and_their_bearer_ignored_for_a_while() -> None:
    async with town(1) as place:
        (member,) = place.members
        identity, transport = await place.peer()
        good, other = described(place, identity), Identity.generate()
        forged = msgspec.structs.replace(described(place, other), sessions=5)
        assert await ask(place, transport, member, beat(good, forged)) is None
        assert member.members.refused["forged"] == 1
        assert not member.holds(other.node_id)
        later = await ask(place, transport, member, beat(good))
        assert isinstance(later, Refused)
        await place.run(61)
        again = described(place, identity)
        assert isinstance(await ask(place, transport, member, beat(again)), Beat)


async def test_a_replayed_record_changes_nothing_and_is_counted() -> None:
    async with town(2) as place:
        one, other = place.members
        await place.until(place.all_know_all, 5)
        old = one.gossip.exchanges.own().record
        one.gossip.changed()
        await place.run(2)
        identity, transport = await place.peer()
        before = other.members.refused["old"]
        await ask(place, transport, other, beat(described(place, identity), old))
        assert other.members.refused["old"] == before + 1
        entry = other.members.find(one.node)
        assert entry is not None
        assert entry.record.sequence > old.sequence


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(Beat()),
        encode_frame(Beat(), b"no zlib at all"),
        encode_frame(Beat(), pack([bytes(3000)])),
        encode_frame(Beat(), pack([b"no record"])),
        encode_frame(Beat(), pack([bytes(60_000)] * 6)),
        encode_frame(Exchange(0, 0, None, 0, b"")),
        encode_frame(Newer(0, 0, 0, 0)),
        encode_frame(Probe()),
    ],
    ids=["no-record", "no-zlib", "oversized", "garbage", "bomb", "empty", "newer", "probe"],
)
async def test_a_peer_that_breaks_the_protocol_is_dropped(frame: bytes) -> None:
    async with town(1) as place:
        (member,) = place.members
        _, transport = await place.peer()
        reply = await ask(place, transport, member, frame)
        assert reply is None or (isinstance(reply, Refused) and reply.code == "not_ready")
        assert member.members.records() == []


async def test_a_peer_that_asks_without_pause_is_told_to_wait() -> None:
    async with town(1) as place:
        (member,) = place.members
        identity, transport = await place.peer()
        frame = beat(described(place, identity))
        replies = [
            type(await ask(place, transport, member, frame)) for _ in range(int(PEER_BURST) + 5)
        ]
        assert replies.count(Beat) == PEER_BURST
        assert member.members.refused["too_often"] == 5
        await place.run(2)
        frame = beat(described(place, identity))
        assert isinstance(await ask(place, transport, member, frame), Beat)


async def test_a_peer_that_never_answers_is_left_out_and_holds_nobody_up() -> None:
    async with town(3) as place:
        await place.until(place.all_know_all, 5)
        identity, transport = await place.peer()
        import asyncio

        async def swallow(stream: Any) -> None:
            await asyncio.sleep(3600)

        address = await transport.bind()
        serving = asyncio.create_task(transport.serve(swallow))
        member = place.members[0]
        record = described(place, identity, address=address)
        member.members.accept(record)
        await place.until(lambda: not member.knows(identity.node_id), 8)
        assert place.all_know_all()
        serving.cancel()


async def test_a_ping_is_answered() -> None:
    async with town(1) as place:
        _, transport = await place.peer()
        assert await ask(place, transport, place.members[0], encode_frame(Ping(9))) == Pong(9)
