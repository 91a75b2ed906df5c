"""Rows that came in are kept for claims, within bounds."""

from __future__ import annotations

import msgspec
import pytest

from unisono.clock import VirtualClock
from unisono.execution.kept import KeptRows, Recorder
from unisono.types import LayerRange, ModelId, NodeId, SessionId
from unisono.wire.claims import EPOCH_SECONDS, RETENTION_EPOCHS, HopClaim, epoch_at

SIZE = 100


def rows(*values: int) -> list[memoryview]:
    return [memoryview(bytes([v]) * SIZE) for v in values]


def claim(clock: VirtualClock, positions: int, session: int = 0) -> HopClaim:
    return HopClaim(
        session=SessionId(f"{session:032x}"),
        request="00" * 32,
        gateway=NodeId("11" * 32),
        model=ModelId("22" * 32),
        node=NodeId("33" * 32),
        hop=1,
        layers=LayerRange(1, 2),
        positions=positions,
        rows_in="44" * 32,
        rows_out="55" * 32,
        out_tags=b"",
        tokens="",
        epoch=epoch_at(clock.now()),
    )


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def recorded(kept: KeptRows, *values: int) -> Recorder:
    recorder = kept.recorder()
    recorder.put(0, rows(*values))
    return recorder


def test_the_rows_of_a_claim_are_those_that_were_not_replaced(clock: VirtualClock) -> None:
    kept = KeptRows(clock)
    recorder = recorded(kept, 1, 2, 3)
    recorder.put(1, rows(7, 8, 9))
    signed = claim(clock, 3)
    recorder.signed(signed)
    assert kept.rows(signed) == rows(1, 7, 8)
    assert kept.rows(msgspec.structs.replace(signed, hop=2)) is None
    assert kept.bytes == 3 * SIZE


def test_a_session_that_ends_without_a_claim_leaves_nothing(clock: VirtualClock) -> None:
    kept = KeptRows(clock)
    recorder = recorded(kept, 1, 2)
    assert kept.bytes == 2 * SIZE
    recorder.close()
    assert kept.bytes == 0


def test_a_gap_or_too_few_rows_are_not_kept(clock: VirtualClock) -> None:
    kept = KeptRows(clock)
    gap = recorded(kept, 1)
    gap.put(2, rows(3))
    few = recorded(kept, 1)
    for recorder, positions in ((gap, 1), (few, 2)):
        signed = claim(clock, positions)
        recorder.signed(signed)
        assert kept.rows(signed) is None
    assert kept.bytes == 0


def test_the_oldest_claims_make_room(clock: VirtualClock) -> None:
    for kept in (KeptRows(clock, limit=4 * SIZE), KeptRows(clock, most_claims=2)):
        claims = [claim(clock, 2, session) for session in range(3)]
        for signed in claims:
            recorded(kept, 1, 2).signed(signed)
        assert [kept.rows(c) is not None for c in claims] == [False, True, True]


def test_a_session_that_is_too_long_is_not_kept_and_takes_no_room(clock: VirtualClock) -> None:
    kept = KeptRows(clock, limit=3 * SIZE)
    recorder = recorded(kept, 1, 2, 3)
    recorder.put(3, rows(4))
    assert kept.bytes == 0
    signed = claim(clock, 3)
    recorder.signed(signed)
    assert kept.rows(signed) is None


async def test_rows_are_forgotten_when_nobody_may_ask_any_more(clock: VirtualClock) -> None:
    kept = KeptRows(clock)
    signed = claim(clock, 1)
    recorded(kept, 1).signed(signed)
    await clock.advance(RETENTION_EPOCHS * EPOCH_SECONDS)
    assert kept.rows(signed) == rows(1)
    await clock.advance(EPOCH_SECONDS)
    assert kept.rows(signed) is None
    assert kept.bytes == 0
