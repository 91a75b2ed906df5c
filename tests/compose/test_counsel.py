"""Processes that compute for disputes come and go, and what they were told is told again."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from tests.settlement.test_briefs import PERSON
from unisono.compose.counsel import Pleading, Seats
from unisono.compose.regenerating import Ask, Logged, Plead, Speak, Spoken
from unisono.compose.respondent import Respondent
from unisono.errors import PeerRefused, SettlementError
from unisono.settlement.advocates import CHOOSE, COMMIT, State
from unisono.settlement.briefs import decode_state


class Process:
    """Writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.closed = False
        self.fails = False

    async def ask(self, ask: Ask) -> bytes:
        assert not self.closed
        if self.fails:
            raise PeerRefused("it has ended", "failed")
        self.asked.append(ask)
        if isinstance(ask, Speak):
            return msgspec.msgpack.encode(Spoken("commit", "court", b"call"))
        return b""

    async def close(self) -> None:
        self.closed = True


class Starter:
    """In the place of a respondent."""

    def __init__(self) -> None:
        self.started: list[Process] = []

    async def process(self, nice: int, threads: int) -> Process:
        del nice, threads
        self.started.append(Process())
        return self.started[-1]


def state_of(phase: int, moves: int = 0) -> State:
    words = dict.fromkeys(State._fields, 0) | {"phase": phase, "moves": moves}
    for name, kind in State.__annotations__.items():
        if "bytes" in str(kind):
            words[name] = bytes(32)  # type: ignore[assignment]
    words |= {"challenger": PERSON, "defender": PERSON, "total": (0,) * 5}  # type: ignore[dict-item]
    return State(**cast("dict[str, Any]", words))


def seats_of(count: int) -> tuple[Starter, Seats]:
    starter = Starter()
    return starter, Seats(cast(Respondent, starter), count)


def pleading(seats: Seats) -> Pleading:
    return Pleading(seats, b"brief", state_of(COMMIT), asyncio.get_running_loop())


async def said(side: Pleading) -> object:
    return await asyncio.to_thread(side.appeal)


async def test_a_side_is_asked_in_a_process_at_its_turn_only() -> None:
    starter, seats = seats_of(1)
    side = pleading(seats)
    appeal = await said(side)
    assert appeal == ("commit", (), "court", b"call")
    side.hear(state_of(CHOOSE, 1), b"shown")
    assert await said(side) is None
    side.hear(state_of(COMMIT, 2), b"")
    await said(side)
    (process,) = starter.started
    kinds = [type(ask) for ask in process.asked]
    assert kinds == [Plead, Speak, Logged, Logged, Speak]
    told = [ask for ask in process.asked if isinstance(ask, Logged)]
    assert [decode_state(ask.state).moves for ask in told] == [1, 2]
    assert told[0].shown == b"shown"


async def test_a_side_that_had_to_make_room_is_told_everything_again() -> None:
    starter, seats = seats_of(1)
    first, second = pleading(seats), pleading(seats)
    await said(first)
    await said(second)
    assert [p.closed for p in starter.started] == [True, False]
    first.hear(state_of(COMMIT, 1), b"")
    await said(first)
    assert [p.closed for p in starter.started] == [True, True, False]
    assert [type(ask) for ask in starter.started[2].asked] == [Plead, Logged, Speak]
    await seats.close()
    assert all(p.closed for p in starter.started)


async def test_a_process_that_ended_is_started_again() -> None:
    starter, seats = seats_of(2)
    side = pleading(seats)
    await said(side)
    starter.started[0].fails = True
    with pytest.raises(SettlementError, match="it has ended"):
        await said(side)
    assert starter.started[0].closed
    await said(side)
    assert [type(ask) for ask in starter.started[1].asked] == [Plead, Speak]
