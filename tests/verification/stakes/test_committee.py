from __future__ import annotations

import random
from itertools import permutations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.stakes.audits import EPOCH, World, hold, identity
from unisono.clock import VirtualClock
from unisono.errors import PeerCheating
from unisono.simulation.adversaries_stakes import (
    ChangingItsMind,
    Colluding,
    Copying,
    CopyingTheOpening,
    Hearing,
    Juror,
    Late,
    Lazy,
    LazyByAgreement,
    ReplayedEpoch,
    Resending,
    Silent,
    TwoFaced,
    Withholding,
)
from unisono.verification.stakes.committee import Committee, Phase, majority
from unisono.verification.stakes.faults import PROVABLE, CommitteeFault, PlantOpening
from unisono.wire.verification_messages import ResultCommit, ResultReveal, Work


def jurors(world: World, *kinds: type[Juror]) -> list[Juror]:
    return [
        kind(world.members[i], random.Random(world.chance.random())) for i, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("lie", [False, True])
async def test_honest_members_find_the_truth_and_nobody_is_blamed(lie: bool, claimed: bool) -> None:
    world = World()
    held = await hold(world, jurors(world, *[Juror] * 5), lie=lie, claimed=claimed)
    outcome = held.committee.outcome
    assert outcome is not None
    assert outcome.unanimous
    assert held.faults == {}
    verdict = held.verdict
    assert verdict.verdict == ("INVALID" if lie else "VALID")
    if lie:
        assert verdict.fault is not None
        assert (verdict.fault.kind, verdict.fault.node) == ("rows_out", world.node.node_id)


CONDUCT = [
    (Lazy, False, "dissent"),
    (Lazy, True, "uncomputed"),
    (LazyByAgreement, True, "uncomputed"),
    (Copying, False, "copied_commit"),
    (CopyingTheOpening, False, "copied_commit"),
    (Silent, False, "no_commit"),
    (Withholding, False, "no_reveal"),
    (Late, False, "late_reveal"),
    (TwoFaced, False, "double_commit"),
    (ChangingItsMind, False, "wrong_opening"),
    (Colluding, False, "dissent"),
]


@pytest.mark.parametrize(("kind", "claimed", "fault"), CONDUCT)
async def test_every_misconduct_of_a_member_has_its_name(
    kind: type[Juror], claimed: bool, fault: str
) -> None:
    for seed in range(5):
        world = World(seed)
        members = jurors(world, Juror, kind, Juror, Juror, Juror)
        held = await hold(world, members, claimed=claimed)
        assert held.kinds(members) == ["", fault, "", "", ""]
        assert held.committee.outcome is not None
        assert held.verdict.verdict == "VALID"
        found = held.committee.faults[0]
        assert found.proven() == (fault in PROVABLE)
        assert found.kind in found.message
        decided = fault in PROVABLE - {"dissent", "uncomputed"}
        assert found.verdict().verdict == ("INVALID" if decided else "INCONCLUSIVE")


async def test_an_old_digest_is_named_when_it_comes_again() -> None:
    world = World()
    members = jurors(world, Juror, ReplayedEpoch, Juror)
    first = await hold(world, members)
    assert first.faults == {}
    earlier = {c.digest: c for c in first.committee.commits}
    later = await hold(world, members, epoch=EPOCH + 4, earlier=earlier)
    assert later.kinds(members) == ["", "stale_epoch", ""]
    assert later.committee.faults[0].proven()
    # without that memory the digest still does not open
    again = await hold(world, members, epoch=EPOCH + 8)
    assert again.kinds(members) == ["", "wrong_opening", ""]


async def test_old_messages_that_are_sent_again_are_refused() -> None:
    world = World()
    members = jurors(world, Juror, Resending, Juror)
    await hold(world, members)
    later = await hold(world, members, epoch=EPOCH + 4)
    assert "of epoch 1000" in later.refused[members[1].node]
    assert later.kinds(members) == ["", "no_commit", ""]


@pytest.mark.parametrize("claimed", [False, True])
async def test_planted_checks_expose_even_a_majority_that_does_not_compute(claimed: bool) -> None:
    world = World()
    members = jurors(world, LazyByAgreement, LazyByAgreement, LazyByAgreement, Juror, Juror)
    fooled = await hold(world, members, claimed=claimed)
    assert fooled.committee.outcome is not None
    assert fooled.committee.outcome.votes == 3  # a majority that has agreed not to compute
    caught = await hold(world, members, claimed=claimed, planted=True)
    assert caught.kinds(members) == ["planted_check"] * 3 + ["", ""]
    assert all(fault.proven() for fault in caught.committee.faults)
    assert caught.committee.outcome is not None
    assert caught.committee.outcome.result is None


@pytest.mark.parametrize("planted", [False, True])
async def test_a_minority_cannot_change_a_verdict(planted: bool) -> None:
    for order in set(permutations((Juror, Juror, Juror, Colluding, Colluding))):
        world = World()
        members = jurors(world, *order)
        held = await hold(world, members, planted=planted)
        assert held.committee.outcome is not None
        assert held.verdict.verdict == "VALID"
        assert not held.committee.outcome.unanimous
        kind = "planted_check" if planted else "dissent"
        assert held.kinds(members) == [kind if k is Colluding else "" for k in order]


async def test_without_a_majority_of_the_seats_there_is_no_verdict_and_no_dissent() -> None:
    world = World()
    members = jurors(world, Juror, Juror, Colluding, Colluding)
    held = await hold(world, members)
    assert held.committee.outcome is not None
    verdict = held.verdict
    assert verdict.verdict == "INCONCLUSIVE"
    assert "draw a larger committee" in verdict.message
    assert held.faults == {}
    world = World()
    withheld = await hold(world, jurors(world, Juror, Juror, Withholding, Silent, Late))
    assert withheld.committee.outcome is not None
    assert withheld.verdict.verdict == "INCONCLUSIVE"


KINDS = [
    Juror, Lazy, LazyByAgreement, Copying, CopyingTheOpening, Silent, Withholding, Late,
    TwoFaced, ChangingItsMind, Colluding, ReplayedEpoch, Resending,
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.lists(st.sampled_from(KINDS), max_size=4),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
async def test_the_honest_are_never_blamed_while_they_are_most(
    seed: int, others: list[type[Juror]], lie: bool, claimed: bool, planted: bool
) -> None:
    world = World(seed, members=2 * len(others) + 1)
    honest = [Juror] * (len(others) + 1)
    members = jurors(world, *honest, *others)
    held = await hold(world, members, lie=lie, claimed=claimed, planted=planted)
    blamed = set(held.faults)
    assert not blamed & {m.node for m in members if type(m) in (Juror, ReplayedEpoch, Resending)}
    assert all(f.proven() for f in held.committee.faults if f.kind in PROVABLE)
    assert held.committee.outcome is not None
    expected = "INVALID" if lie else "VALID"
    assert held.verdict.verdict == expected


async def test_altered_evidence_convicts_nobody() -> None:
    world = World()
    for kind, claimed, fault in CONDUCT:
        if fault not in PROVABLE:
            continue
        members = jurors(world, Juror, kind, Juror)
        (found,) = (await hold(world, members, claimed=claimed)).committee.faults
        honest = members[0]
        assert found.proven()
        framed = msgspec.structs.replace(found, node=honest.node)
        assert not framed.proven()
        for name in ("commits", "reveals"):
            if getattr(found, name):
                assert not msgspec.structs.replace(found, **{name: ()}).proven()
        for commit in found.commits:
            bad = msgspec.structs.replace(commit, signature=bytes(64))
            assert not msgspec.structs.replace(found, commits=(bad, *found.commits[1:])).proven()
        other = msgspec.structs.replace(found.work, task="cd" * 32)
        elsewhere = msgspec.structs.replace(found, work=other)
        assert not elsewhere.proven()


class ByHand:
    """The steps of a round that no kind of member takes."""

    def __init__(self) -> None:
        self.world = World()
        self.clock = VirtualClock()
        self.claim = self.world.claim()
        ticket = self.world.ticket(self.claim)
        self.work = Work(ticket.audit(), EPOCH, "12" * 32)
        self.members = jurors(self.world, Juror, Juror, Juror)
        plant = PlantOpening(ticket.audit(), bytes(32), None)
        self.committee = Committee(
            self.work, [j.node for j in self.members], self.world.auditor, self.clock, plant
        )
        self.hearing = Hearing(self.work, None, ())
        self.truth = self.world.truth()

    def commit(self, member: int) -> ResultCommit:
        return self.members[member].commits(self.hearing, self.truth)[0]

    def reveal(self, member: int) -> ResultReveal:
        opening = self.members[member].opening
        assert opening is not None
        return opening


def test_messages_of_others_are_refused_and_nobody_is_blamed_for_them() -> None:
    hand = ByHand()
    commit = hand.commit(0)
    one, two = (m.node for m in hand.members[:2])
    outsider = identity(77)
    with pytest.raises(PeerCheating, match="not in the committee"):
        hand.committee.commit(outsider.node_id, commit)
    with pytest.raises(PeerCheating, match="of node"):
        hand.committee.commit(two, commit)
    with pytest.raises(PeerCheating, match="signature"):
        hand.committee.commit(one, msgspec.structs.replace(commit, digest="ab" * 32))
    with pytest.raises(PeerCheating, match="this is epoch"):
        hand.committee.commit(
            one,
            msgspec.structs.replace(commit, work=Work(hand.work.audit, EPOCH + 1, hand.work.task)),
        )
    assert hand.committee.commits == ()
    assert hand.committee.faults == ()


async def test_a_reveal_before_the_closing_is_refused_and_a_second_message_changes_nothing() -> (
    None
):
    hand = ByHand()
    nodes = [m.node for m in hand.members]
    first = hand.commit(0)
    hand.committee.commit(nodes[0], first)
    hand.committee.commit(nodes[0], first)
    with pytest.raises(PeerCheating, match="before the commits were closed"):
        hand.committee.reveal(nodes[0], hand.reveal(0))
    hand.committee.commit(nodes[1], hand.commit(1))
    await hand.clock.advance(31)
    hand.committee.tick()
    assert hand.committee.phase is Phase.REVEALING
    hand.committee.commit(nodes[2], hand.commit(2))  # a moment too late
    assert [f.kind for f in hand.committee.faults] == ["no_commit"]
    for i in (0, 0, 1):
        hand.committee.reveal(nodes[i], hand.reveal(i))
    assert hand.committee.over
    hand.committee.reveal(nodes[2], hand.reveal(2))
    assert [f.kind for f in hand.committee.faults] == ["no_commit"]
    outcome = hand.committee.outcome
    assert outcome is not None
    assert (outcome.votes, outcome.seats, outcome.unanimous) == (2, 3, False)


async def test_a_committee_of_which_nobody_commits_ends_at_once() -> None:
    hand = ByHand()
    await hand.clock.advance(31)
    hand.committee.tick()
    assert hand.committee.over
    assert [f.kind for f in hand.committee.faults] == ["no_commit"] * 3


def test_a_majority_is_more_than_half() -> None:
    assert [majority(n) for n in range(1, 8)] == [1, 2, 2, 3, 3, 4, 4]


def test_members_are_named_once() -> None:
    hand = ByHand()
    node = hand.members[0].node
    plant = PlantOpening("ab" * 32, bytes(32), None)
    for members in ([], [node, node], [identity(i).node_id for i in range(65)]):
        with pytest.raises(ValueError, match="1 to 64"):
            Committee(hand.work, members, hand.world.auditor, hand.clock, plant)


def test_a_plant_cannot_be_opened_in_another_way() -> None:
    world = World()
    opening = PlantOpening("ab" * 32, bytes(32), world.truth())
    seals = {
        opening.seal(),
        msgspec.structs.replace(opening, result=None).seal(),
        msgspec.structs.replace(opening, result=world.truth()).seal(),
        msgspec.structs.replace(opening, salt=b"\1" * 32).seal(),
        msgspec.structs.replace(opening, audit="cd" * 32).seal(),
    }
    assert len(seals) == 5


async def test_a_fault_travels_as_bytes() -> None:
    world = World()
    held = await hold(world, jurors(world, Juror, Lazy, Juror), claimed=True, planted=True)
    (fault,) = held.committee.faults
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(fault), type=CommitteeFault)
    assert read == fault
    assert read.proven()
