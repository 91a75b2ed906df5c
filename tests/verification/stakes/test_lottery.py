from __future__ import annotations

import pickle
from collections import Counter

import msgspec
import pytest
from chia_rs import AugSchemeMPL, G2Element
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.stakes.audits import EPOCH, World, identity
from unisono.errors import ConfigurationError, PeerCheating
from unisono.simulation.adversaries_stakes import sybil_swarm
from unisono.verification.stakes.beacon import AUDIT_DELAY
from unisono.verification.stakes.docket import Case, Docket
from unisono.verification.stakes.lottery import (
    LotteryKey,
    Roster,
    Verifier,
    binding_is_good,
    draw_committee,
    draw_positions,
    draw_ticket,
    lot_output,
    ticket_is_good,
    verify_lot,
    wins,
)
from unisono.verification.stakes.register import MemoryRegister
from unisono.wire.verification_messages import MILLION, Ticket

WORLD = World()
TICKET = WORLD.ticket(WORLD.claim())


def numbered(ticket: Ticket, number: int) -> Ticket:
    """A ticket with another proof; what is drawn from it depends on the proof alone."""
    return msgspec.structs.replace(ticket, proof=number.to_bytes(96, "little"))


def test_one_key_and_one_input_have_one_lot() -> None:
    key = LotteryKey(identity(9))
    assert key.draw(b"a") == LotteryKey(identity(9)).draw(b"a")
    assert key.draw(b"a") != key.draw(b"b")
    assert key.draw(b"a") != LotteryKey(identity(8)).draw(b"a")
    assert verify_lot(key.public, b"a", key.draw(b"a"))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 96 * 8 - 1))
def test_no_other_bytes_are_a_lot(bit: int) -> None:
    """Uniqueness: neither a flipped bit nor another point of the curve passes."""
    key = LotteryKey(identity(9))
    proof = bytearray(key.draw(b"a"))
    proof[bit // 8] ^= 1 << bit % 8
    assert not verify_lot(key.public, b"a", bytes(proof))


def test_the_inverse_or_a_multiple_of_a_lot_is_none() -> None:
    key = LotteryKey(identity(9))
    point = G2Element.from_bytes(key.draw(b"a"))
    for other in (point + point, point + G2Element.generator(), G2Element()):
        assert not verify_lot(key.public, b"a", bytes(other))


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_malformed_keys_and_proofs_are_just_no_lots(key: bytes, proof: bytes) -> None:
    assert not verify_lot(key, b"a", proof)


def test_the_key_that_binds_to_nothing_is_refused() -> None:
    nothing = b"\xc0" + bytes(47)
    assert not verify_lot(nothing, b"a", b"\xc0" + bytes(95))


def test_a_key_is_bound_to_its_node_by_both() -> None:
    own, other = identity(9), identity(8)
    binding = LotteryKey(own).binding(own, 5)
    assert binding_is_good(binding)
    stolen = msgspec.structs.replace(binding, node=other.node_id).signed_by(other)
    assert stolen.signature_is_good()
    assert not binding_is_good(stolen)
    assert not binding_is_good(msgspec.structs.replace(binding, since=4))
    foreign = AugSchemeMPL.key_gen(bytes(32))
    swapped = msgspec.structs.replace(binding, key=bytes(foreign.get_g1())).signed_by(own)
    assert not binding_is_good(swapped)


def test_a_lottery_key_does_not_travel_and_does_not_show() -> None:
    key = LotteryKey(identity(9))
    with pytest.raises(TypeError):
        pickle.dumps(key)
    assert key.public.hex()[:16] in repr(key)


def test_a_ticket_is_good_only_as_it_was_drawn() -> None:
    assert ticket_is_good(TICKET, WORLD.binding, WORLD.beacon)
    other = WORLD.ticket(WORLD.claim())
    for change in (
        {"claim": other.claim},
        {"epoch": EPOCH + 1},
        {"proof": other.proof},
        {"auditor": identity(8).node_id},
    ):
        assert not ticket_is_good(
            msgspec.structs.replace(TICKET, **change), WORLD.binding, WORLD.beacon
        )
    late = WORLD.key.binding(WORLD.auditor, EPOCH + 1)
    assert not ticket_is_good(TICKET, late, WORLD.beacon)


def test_nothing_is_drawn_before_the_beacon_and_nothing_is_accepted() -> None:
    world = World()
    claim = world.claim()
    assert (
        draw_ticket(world.key, world.auditor.node_id, claim, world.roster, MILLION, world.beacon)
        is None
    )
    assert not ticket_is_good(TICKET, world.binding, world.beacon)
    world.publish(EPOCH + AUDIT_DELAY - 1)
    assert not ticket_is_good(TICKET, world.binding, world.beacon)


def test_a_claim_wins_as_often_as_its_rate_says() -> None:
    for rate in (20_000, 300_000):
        tickets = (numbered(msgspec.structs.replace(TICKET, rate=rate), i) for i in range(20_000))
        won = sum(wins(ticket) for ticket in tickets)
        expected = 20_000 * rate / MILLION
        assert abs(won - expected) < 5 * expected**0.5
    assert all(wins(numbered(TICKET, i)) for i in range(100))  # a rate of one


@given(st.integers(0, 1 << 64), st.integers(1, 30), st.integers(0, 12))
def test_a_committee_has_distinct_members_and_none_that_is_excluded(
    number: int, nodes: int, count: int
) -> None:
    members = [identity(i).node_id for i in range(nodes)]
    roster = Roster.of(EPOCH, (Verifier(n, 1 + i) for i, n in enumerate(members)))
    exclude = frozenset(members[::3])
    chosen = draw_committee(numbered(TICKET, number), roster, count, exclude)
    assert len(chosen) == min(count, nodes - len(exclude))
    assert len(set(chosen)) == len(chosen)
    assert not exclude & set(chosen)
    longer = draw_committee(numbered(TICKET, number), roster, count + 5, exclude)
    assert longer[: len(chosen)] == chosen


def test_seats_fall_to_stake() -> None:
    roster = Roster.of(EPOCH, (Verifier(identity(i).node_id, 1 + i) for i in range(4)))
    first = Counter(draw_committee(numbered(TICKET, i), roster, 1)[0] for i in range(10_000))
    for i in range(4):
        assert abs(first[identity(i).node_id] - 1000 * (1 + i)) < 5 * (1000 * (1 + i)) ** 0.5


def test_a_swarm_of_identities_has_no_more_seats_than_its_stake() -> None:
    """10 % of the stake in 1 or in 100 identities: the same tenth of the seats."""
    shares: list[float] = []
    for count in (1, 100):
        swarm = sybil_swarm(100, count, WORLD.chance)
        swarm_ids = {i.node_id for i, _ in swarm}
        honest = [Verifier(identity(500 + i).node_id, 100) for i in range(9)]
        roster = Roster.of(EPOCH, [*honest, *(Verifier(i.node_id, stake) for i, stake in swarm)])
        seats = [
            n in swarm_ids
            for t in range(3000)
            for n in draw_committee(numbered(TICKET, t), roster, 1)
        ]
        shares.append(sum(seats) / len(seats))
    assert all(0.075 < share < 0.125 for share in shares)


@given(st.integers(0, 1 << 64), st.integers(1, 5000), st.integers(1, 8))
def test_drawn_positions_are_distinct_ordered_and_in_the_answer(
    number: int, positions: int, count: int
) -> None:
    found = draw_positions(numbered(TICKET, number), positions, count)
    assert len(found) == min(count, positions)
    assert list(found) == sorted(set(found))
    assert found[-1] < positions


def test_what_is_drawn_for_one_purpose_says_nothing_of_another() -> None:
    assert lot_output(TICKET.proof) != lot_output(numbered(TICKET, 1).proof)
    assert draw_positions(TICKET, 1 << 20) != draw_positions(numbered(TICKET, 1), 1 << 20)


def test_a_roster_is_bounded_and_names_each_node_once() -> None:
    one = Verifier(identity(1).node_id, 1)
    for bad in ([one, one], [Verifier(one.node, 0)], [Verifier(one.node, 1 << 97)]):
        with pytest.raises(ConfigurationError):
            Roster.of(EPOCH, bad)
    two = Verifier(identity(2).node_id, 1)
    assert Roster.of(EPOCH, [one, two]).hash() == Roster.of(EPOCH, [two, one]).hash()
    assert Roster.of(EPOCH, [one, two]).hash() != Roster.of(EPOCH + 1, [two, one]).hash()


class TestRegister:
    def test_a_key_holds_from_its_epoch_on_and_is_bound_before(self) -> None:
        register, own = MemoryRegister(), identity(9)
        key = LotteryKey(own)
        with pytest.raises(PeerCheating, match="before its first epoch"):
            register.bind(key.binding(own, EPOCH), EPOCH)
        binding = key.binding(own, EPOCH + 1)
        register.bind(binding, EPOCH)
        register.bind(binding, EPOCH + 50)  # heard again later
        assert register.binding(own.node_id, EPOCH) is None
        assert register.binding(own.node_id, EPOCH + 1) == binding

    def test_a_second_key_for_one_epoch_is_cheating(self) -> None:
        register, own = MemoryRegister(), identity(9)
        register.bind(LotteryKey(own).binding(own, 8), 1)
        other = AugSchemeMPL.key_gen(bytes(32))
        stranger = LotteryKey(identity(7))
        with pytest.raises(PeerCheating, match="not signed by node and key"):
            register.bind(
                msgspec.structs.replace(
                    LotteryKey(own).binding(own, 8), key=bytes(other.get_g1())
                ).signed_by(own),
                1,
            )
        # a node may own two keys; it may not choose between them
        from unisono.verification.stakes.lottery import _possession

        second = msgspec.structs.replace(
            LotteryKey(own).binding(own, 8),
            key=stranger.public,
            possession=stranger.draw(_possession(own.node_id)),
        ).signed_by(own)
        assert binding_is_good(second)
        with pytest.raises(PeerCheating, match="two lottery keys"):
            register.bind(second, 1)

    def test_an_epoch_has_one_roster(self) -> None:
        register = MemoryRegister()
        register.appoint(WORLD.roster)
        register.appoint(WORLD.roster)
        assert register.roster(EPOCH) == WORLD.roster
        assert register.roster(EPOCH + 1) is None
        with pytest.raises(ValueError, match="another roster"):
            register.appoint(Roster.of(EPOCH, WORLD.roster.verifiers[:2]))


class TestDocket:
    def case(self, world: World, rate: int, epoch: int = EPOCH) -> Case:
        return Case(world.claim(epoch), "ab" * 16, rate, 3)

    def docket(self, world: World) -> Docket:
        register = MemoryRegister()
        register.appoint(world.roster_at(EPOCH))
        register.appoint(world.roster_at(EPOCH + 1))
        return Docket(world.key, world.auditor.node_id, world.beacon, register)

    def test_cases_wait_for_their_value_and_are_drawn_once(self) -> None:
        world = World()
        docket = self.docket(world)
        docket.add(self.case(world, MILLION))
        docket.add(self.case(world, MILLION, EPOCH + 1))
        assert docket.draw() == []
        world.publish(EPOCH + AUDIT_DELAY)
        ((case, ticket),) = docket.draw()
        assert case.claim.epoch == EPOCH
        assert ticket_is_good(ticket, world.binding, world.beacon)
        assert docket.draw() == []
        assert len(docket) == 1
        world.publish(EPOCH + 1 + AUDIT_DELAY)
        assert len(docket.draw()) == 1
        assert len(docket) == 0

    def test_cases_that_lose_are_let_go(self) -> None:
        world = World()
        docket = self.docket(world)
        for _ in range(40):
            docket.add(self.case(world, MILLION // 2))
        docket.add(self.case(world, 0))
        docket.add(self.case(world, MILLION, EPOCH + 7))
        world.publish(EPOCH + 7 + AUDIT_DELAY)
        assert 8 < len(docket.draw()) < 32
        assert len(docket) == 0
