from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.stakes.audits import identity
from unisono.clock import VirtualClock
from unisono.errors import ConfigurationError, PeerCheating
from unisono.verification.stakes.beacon import (
    ChainBeacon,
    ChainSource,
    JointBeacon,
    OperatorBeacon,
)
from unisono.wire.claims import EPOCH_SECONDS

FIRST = 50
SOURCE = ChainSource(bytes(32), FIRST, 3000)
ANCHOR = SOURCE.anchor(identity(1))


def followed(epoch: int) -> ChainBeacon:
    beacon = ChainBeacon(ANCHOR)
    beacon.accept(epoch, SOURCE.link(epoch))
    return beacon


def test_links_are_the_secret_hashed_back_from_the_end() -> None:
    link = bytes(32)
    for epoch in range(FIRST + 2999, FIRST + 2990, -1):
        assert SOURCE.link(epoch) == link
        link = hashlib.sha256(b"unisono/beacon-link/1\0" + link).digest()


@given(st.lists(st.integers(FIRST, FIRST + 2999), min_size=1, max_size=5), st.randoms())
def test_everyone_gets_the_same_values_whatever_links_they_saw(
    epochs: list[int], chance: object
) -> None:
    beacon = ChainBeacon(ANCHOR)
    for epoch in epochs:
        beacon.accept(epoch, SOURCE.link(epoch))
    latest = max(epochs)
    assert beacon.latest == latest
    other = followed(FIRST + 2999)
    for epoch in (FIRST, latest, min(epochs)):
        assert beacon.value(epoch) == other.value(epoch) is not None
    assert beacon.value(latest + 1) is None
    assert beacon.value(FIRST - 1) is None


def test_values_differ_between_epochs_and_are_not_the_links() -> None:
    beacon = followed(FIRST + 100)
    values = [beacon.value(FIRST + i) for i in range(100)]
    assert len(set(values)) == 100
    assert SOURCE.link(FIRST + 5) not in values


@given(st.integers(FIRST, FIRST + 50), st.binary(min_size=32, max_size=32))
def test_a_link_that_the_operator_did_not_make_is_refused(epoch: int, link: bytes) -> None:
    beacon = followed(FIRST + 20)
    with pytest.raises(PeerCheating, match="link"):
        beacon.accept(epoch, link)
    assert beacon.latest == FIRST + 20


@pytest.mark.parametrize(("epoch", "link"), [(FIRST - 1, bytes(32)), (FIRST + 3000, bytes(32))])
def test_links_outside_the_chain_are_refused(epoch: int, link: bytes) -> None:
    with pytest.raises(PeerCheating, match="no link"):
        ChainBeacon(ANCHOR).accept(epoch, link)
    with pytest.raises(PeerCheating, match="no link"):
        ChainBeacon(ANCHOR).accept(FIRST, bytes(31))


def test_an_anchor_that_was_altered_is_not_used() -> None:
    with pytest.raises(ConfigurationError, match="not signed"):
        ChainBeacon(msgspec.structs.replace(ANCHOR, first=FIRST + 1))


def test_the_end_of_a_chain_is_said_in_time() -> None:
    with pytest.raises(ConfigurationError, match="start a new chain"):
        SOURCE.link(FIRST + 3000)
    with pytest.raises(ConfigurationError, match="32 bytes"):
        ChainSource(b"short", 0, 10)


def test_a_joint_value_needs_every_operator_and_depends_on_each() -> None:
    second = ChainSource(b"\1" * 32, FIRST, 100)
    other = ChainBeacon(second.anchor(identity(2)))
    joint = JointBeacon([followed(FIRST + 9), other])
    assert joint.value(FIRST) is None
    other.accept(FIRST + 4, second.link(FIRST + 4))
    assert joint.value(FIRST + 4) not in (None, other.value(FIRST + 4))
    assert joint.value(FIRST + 5) is None
    assert joint.value(FIRST + 4) != JointBeacon([other, followed(FIRST + 9)]).value(FIRST + 4)
    with pytest.raises(ConfigurationError):
        JointBeacon([])


async def test_the_operator_publishes_a_value_when_its_epoch_begins_and_not_before() -> None:
    clock = VirtualClock(FIRST * EPOCH_SECONDS - 1.0)
    operator = OperatorBeacon(SOURCE, clock)
    assert operator.due() is None
    assert operator.value(FIRST) is None
    await clock.advance(1)
    assert operator.due() == (FIRST, SOURCE.link(FIRST))
    await clock.advance(EPOCH_SECONDS * 2)
    assert operator.value(FIRST + 2) == followed(FIRST + 2).value(FIRST + 2)
    assert operator.value(FIRST + 3) is None
