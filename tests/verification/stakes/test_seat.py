from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.verification.stakes.audits import World, identity
from unisono.errors import PeerCheating
from unisono.types import LayerRange, ModelId
from unisono.verification.stakes.seat import Seat
from unisono.wire.verification_messages import CommitsClosed, ReplayTask

WORLD = World()
TICKET = WORLD.ticket(WORLD.claim())
SEAL = "ef" * 32
TASK = ReplayTask(
    ticket=TICKET,
    sealed=SEAL,
    model=ModelId("ab" * 32),
    layers=LayerRange(0, 4),
    prompt=3,
    positions=9,
    sampling=None,
    widths=b"",
    seats=3,
    commit_ms=1000,
    reveal_ms=1000,
)
BODY = bytes(range(36))
TRUTH = WORLD.truth()


def closing(seat: Seat, **changes: Any) -> tuple[CommitsClosed, CommitsClosed]:
    """A closing list with the seat's commit, and the same with changes."""
    commit = seat.commit(TRUTH)
    good = CommitsClosed(
        work=TASK.work(BODY),
        auditor=WORLD.auditor.node_id,
        sealed=SEAL,
        commits=((commit.node, commit.digest),),
    )
    changed = msgspec.structs.replace(good, **changes)
    return good.signed_by(WORLD.auditor), changed.signed_by(WORLD.auditor)


def test_a_member_opens_what_it_sealed_once_the_list_is_closed() -> None:
    seat = Seat(TASK, BODY, identity(9))
    good, _ = closing(seat)
    opening = seat.reveal(good)
    assert opening.signature_is_good()
    assert opening.result == TRUTH
    assert seat.reveal(good) == opening


def test_the_same_task_set_again_gets_the_same_commit() -> None:
    first = Seat(TASK, BODY, identity(9)).commit(TRUTH)
    assert Seat(TASK, BODY, identity(9)).commit(TRUTH) == first
    assert Seat(TASK, bytes(36), identity(9)).commit(TRUTH).work != first.work
    assert Seat(TASK, BODY, identity(8)).commit(TRUTH).digest != first.digest


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"commits": ()}, "not in it"),
        ({"commits": ((identity(9).node_id, "ab" * 32),)}, "not in it"),
        ({"work": TASK.work(bytes(36))}, "another task"),
        ({"auditor": identity(8).node_id}, "another task"),
        ({"sealed": "ab" * 32}, "another seal"),
    ],
)
def test_nothing_is_opened_to_a_list_that_no_honest_auditor_sends(
    changes: dict[str, Any], problem: str
) -> None:
    seat = Seat(TASK, BODY, identity(9))
    _, bad = closing(seat, **changes)
    with pytest.raises(PeerCheating, match=problem):
        seat.reveal(bad)


def test_an_unsigned_list_or_one_before_the_commit_opens_nothing() -> None:
    seat = Seat(TASK, BODY, identity(9))
    good, _ = closing(seat)
    with pytest.raises(PeerCheating, match="did not sign"):
        seat.reveal(msgspec.structs.replace(good, signature=bytes(64)))
    with pytest.raises(PeerCheating, match="before this member"):
        Seat(TASK, BODY, identity(9)).reveal(good)


def test_an_auditor_that_closes_twice_is_convicted_by_its_own_lists() -> None:
    seat = Seat(TASK, BODY, identity(9))
    good, other = closing(seat, commits=())
    assert seat.two_faced(other) is None  # nothing to compare with yet
    seat.reveal(good)
    assert seat.two_faced(good) is None
    fault = seat.two_faced(other)
    assert fault is not None
    assert (fault.kind, fault.node) == ("two_faced", WORLD.auditor.node_id)
    assert fault.proven()
    assert seat.two_faced(msgspec.structs.replace(other, signature=bytes(64))) is None
