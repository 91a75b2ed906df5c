"""What a member believes of what it is told about beacon, auditors and convictions."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.verification.stakes.audits import EPOCH, World, identity
from tests.verification.stakes.convictions import Trial, altered, lie
from unisono.clock import VirtualClock
from unisono.errors import PeerCheating
from unisono.types import NodeId, canonical
from unisono.verification.stakes.beacon import AUDIT_DELAY, OPERATOR_EPOCHS, ChainSource
from unisono.verification.stakes.bulletin import (
    CONVICTIONS_KEPT,
    MAX_AUDITORS,
    ROSTERS_KEPT,
    BeaconLink,
    Bulletin,
    Convicted,
    notice_of,
)
from unisono.verification.stakes.conviction import SignedRoster
from unisono.verification.stakes.lottery import LotteryKey, Roster
from unisono.wire.notices import Notice, NoticeKind

LENGTH = 10


class Reader:
    """A member's bulletin, and its clock."""

    def __init__(self, world: World, epoch: int = EPOCH - 1, **options: Any) -> None:
        self.world = world
        self.clock = VirtualClock(float(epoch * LENGTH))
        self.told: list[Convicted] = []
        self.bulletin = Bulletin(
            self.clock, epoch_seconds=LENGTH, on_conviction=self.told.append, **options
        )

    def take(self, kind: NoticeKind, statement: msgspec.Struct) -> str | None:
        notice = notice_of(kind, statement)
        assert notice is not None
        return self.bulletin.take(notice)

    def anchor(self) -> str | None:
        return self.take("anchor", self.world.source.anchor(self.world.operator, LENGTH))

    def link(self, epoch: int) -> str | None:
        link = BeaconLink(self.world.operator.node_id, epoch, self.world.source.link(epoch))
        return self.take("link", link)

    async def until(self, epoch: int) -> None:
        await self.clock.advance(epoch * LENGTH - self.clock.now())


def reader_of(trial: Trial, **options: Any) -> Reader:
    """One that knows beacon, auditor and roster in time."""
    reader = Reader(trial.world, **options)
    assert reader.anchor()
    assert reader.take("binding", trial.world.binding)
    return reader


async def test_the_first_operator_that_is_heard_publishes_the_beacon() -> None:
    world = World()
    reader = Reader(world)
    assert reader.link(EPOCH) is None
    assert reader.anchor() is not None
    assert reader.anchor() is None
    assert reader.bulletin.operators == (world.operator.node_id,)
    other = ChainSource(bytes(32), EPOCH, 10)
    assert reader.take("anchor", other.anchor(identity(50), LENGTH)) is None
    assert reader.link(EPOCH + 1) is None  # nobody publishes so early
    assert reader.link(EPOCH) is not None
    assert reader.bulletin.value(EPOCH) is not None
    assert reader.bulletin.value(EPOCH + 1) is None
    await reader.until(EPOCH + 4)
    assert reader.link(EPOCH + 4) is not None
    assert reader.link(EPOCH + 2) is None
    values = {reader.bulletin.value(EPOCH + i) for i in range(5)}
    assert len(values) == 5
    with pytest.raises(PeerCheating):
        reader.take("link", BeaconLink(world.operator.node_id, EPOCH + 4, bytes(32)))


def test_operators_that_are_named_are_all_needed() -> None:
    world = World()
    second = identity(60)
    reader = Reader(world, operators=(world.operator.node_id, second.node_id))
    assert reader.anchor()
    assert reader.link(EPOCH)
    assert reader.bulletin.value(EPOCH) is None
    assert (
        reader.take("anchor", ChainSource(bytes(32), EPOCH, 9).anchor(identity(50), LENGTH)) is None
    )
    source = ChainSource.of_operator(second, EPOCH)
    assert reader.take("anchor", source.anchor(second, LENGTH))
    assert reader.take("link", BeaconLink(second.node_id, EPOCH, source.link(EPOCH)))
    assert reader.bulletin.value(EPOCH) is not None


def test_an_operators_chain_survives_a_restart_and_is_followed_by_another() -> None:
    operator = identity(60)
    first, again = (ChainSource.of_operator(operator, EPOCH + i) for i in (0, 500))
    assert first.anchor(operator) == again.anchor(operator)
    following = ChainSource.of_operator(operator, first.first + OPERATOR_EPOCHS)
    assert following.first == first.first + OPERATOR_EPOCHS
    assert following.link(following.first) != first.link(EPOCH)


def test_a_network_with_other_epochs_is_not_believed() -> None:
    reader = Reader(World())
    anchor = reader.world.source.anchor(reader.world.operator, LENGTH + 1)
    assert reader.take("anchor", anchor) is None
    assert reader.bulletin.operators == ()


async def test_a_lottery_key_holds_only_for_values_that_were_unknown_when_it_was_heard() -> None:
    world = World()
    reader = Reader(world, epoch=EPOCH + 100)
    node = world.auditor.node_id
    assert reader.take("binding", world.binding) is not None
    assert reader.bulletin.binding(node, EPOCH + 100) == world.binding
    assert reader.bulletin.binding(node, EPOCH + 100 - AUDIT_DELAY + 1) is None
    again = world.key.binding(world.auditor, EPOCH + 101)
    assert reader.take("binding", again) is not None
    assert reader.bulletin.binding(node, EPOCH + 100) == again  # the same key: held ever since
    with pytest.raises(PeerCheating):
        reader.take("binding", altered(world.binding, since=EPOCH + 200))


def test_a_roster_comes_in_time_from_a_known_auditor_and_once() -> None:
    trial = Trial(World())
    signed = trial.signed_roster()
    assert Reader(trial.world).take("roster", signed) is None  # of whom no key is known
    reader = reader_of(trial)
    assert reader.take("roster", signed) is not None
    other = SignedRoster(signed.auditor, Roster(EPOCH, signed.roster.verifiers[:3]))
    assert reader.take("roster", other.signed_by(trial.world.auditor)) is None
    auditor = trial.world.auditor.node_id
    assert reader.bulletin.roster(EPOCH, auditor) == trial.roster
    with pytest.raises(PeerCheating):
        reader.take("roster", other)
    for late in (EPOCH + 2, EPOCH + 50, EPOCH - 2):
        assert reader_of(trial, epoch=late).take("roster", signed) is None


def test_a_roster_that_is_not_like_the_network_is_left_out() -> None:
    trial = Trial(World())
    seen: list[list[NodeId]] = []

    def plausible(nodes: Any) -> bool:
        seen.append(list(nodes))
        return False

    reader = reader_of(trial, plausible=plausible)
    assert reader.take("roster", trial.signed_roster()) is None
    assert seen == [sorted(m.node_id for m in trial.world.members)]


def test_only_so_many_auditors_are_listened_to() -> None:
    reader = Reader(World())
    taken = [
        reader.take("binding", LotteryKey(who).binding(who, 0))
        for who in (identity(1000 + i) for i in range(MAX_AUDITORS + 2))
    ]
    assert taken[-2:] == [None, None]
    assert all(taken[:-2])


async def test_a_conviction_is_believed_by_those_who_were_there_and_told_once() -> None:
    trial = Trial(World())
    conviction = trial.conviction(lie(trial))
    reader = reader_of(trial)
    assert reader.take("roster", trial.signed_roster())
    assert reader.take("conviction", conviction) is None  # the beacon's value is not known
    await reader.until(EPOCH + AUDIT_DELAY)
    assert reader.link(EPOCH + AUDIT_DELAY)
    assert reader.take("conviction", conviction) is not None
    assert reader.take("conviction", conviction) is None
    node = trial.world.node.node_id
    assert [c.node for c in reader.told] == [node]
    assert reader.bulletin.is_convicted(node)
    slot = f"conviction {node}"
    assert reader.bulletin.keeps(slot)
    await reader.until(EPOCH + CONVICTIONS_KEPT)
    assert not reader.bulletin.keeps(slot)
    assert not reader.bulletin.is_convicted(node)


async def test_a_roster_that_was_not_known_in_time_convicts_nobody() -> None:
    trial = Trial(World())
    conviction = trial.conviction(lie(trial))
    reader = reader_of(trial)
    await reader.until(EPOCH + AUDIT_DELAY)
    reader.link(EPOCH + AUDIT_DELAY)
    assert reader.take("conviction", conviction) is None
    assert reader.told == []


@pytest.mark.parametrize("plausible", [True, False])
def test_who_comes_later_believes_a_conviction_by_a_committee_of_nodes_that_are_here(
    plausible: bool,
) -> None:
    trial = Trial(World())
    conviction = trial.conviction(lie(trial))
    late = reader_of(trial, epoch=EPOCH + 50, plausible=lambda nodes: plausible)
    late.link(EPOCH + 50)
    assert (late.take("conviction", conviction) is not None) == plausible


async def test_a_conviction_that_proves_nothing_is_cheating() -> None:
    trial = Trial(World())
    reader = reader_of(trial)
    assert reader.take("roster", trial.signed_roster())
    await reader.until(EPOCH + AUDIT_DELAY)
    reader.link(EPOCH + AUDIT_DELAY)
    with pytest.raises(PeerCheating, match="proves nothing"):
        reader.take("conviction", trial.conviction(trial.claim()))


async def test_old_rosters_are_forgotten() -> None:
    trial = Trial(World())
    reader = reader_of(trial)
    slot = reader.take("roster", trial.signed_roster())
    assert slot is not None
    assert reader.bulletin.keeps(slot)
    await reader.until(EPOCH + ROSTERS_KEPT)
    assert not reader.bulletin.keeps(slot)
    assert reader.bulletin.roster(EPOCH, trial.world.auditor.node_id) is None


@pytest.mark.parametrize("kind", ["anchor", "link", "binding", "roster", "conviction"])
@pytest.mark.parametrize("body", [b"\x00", b"\x80", canonical({"node": 1}), b"\xff" * 40])
def test_bodies_that_are_none_are_cheating(kind: NoticeKind, body: bytes) -> None:
    with pytest.raises(PeerCheating):
        Reader(World()).bulletin.take(Notice(kind, body))
