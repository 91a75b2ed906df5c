"""Members are given their task until they have committed, or say that they never will."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.compose.cases import COMMIT, NODE, Committee
from tests.compose.test_jury_duty import CASE, DOMAIN, MEMBER, OPENER, task
from unisono.clock import VirtualClock
from unisono.compose.instruction import Instruction
from unisono.errors import LedgerUnreachable, PeerGone
from unisono.settlement.committees import Phase
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.jury_messages import JuryTaken
from unisono.wire.messages import Message, Pong, Refused

ADDRESS = PeerAddress(NodeId(NODE.hex()), "memory", ("memory:member",))
Answer = Callable[[], Message]


class Member:
    """A transport to one member, and its stream."""

    def __init__(self, clock: VirtualClock, answer: Answer) -> None:
        self.clock, self.answer = clock, answer
        self.asked: list[float] = []

    async def dial(self, address: PeerAddress) -> Member:
        assert address == ADDRESS
        return self

    async def send(self, frame: bytes) -> None:
        message, body = decode_frame(frame)
        assert (message, bytes(body)) == task()
        self.asked.append(self.clock.now())

    async def receive(self) -> bytes:
        return encode_frame(self.answer())

    async def close(self) -> None:
        pass


class Office:
    """An opener with a case about which one member sits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
        self.clock = VirtualClock()
        self.committee = Committee(self.clock)
        self.committee.drawn(CASE, OPENER.address, MEMBER.address)
        self.member = Member(self.clock, answer)
        self.address: PeerAddress | None = ADDRESS
        monkeypatch.setattr(Instruction, "_frame", lambda *rest: encode_frame(*task()))
        instruction = Instruction(
            self.committee,  # type: ignore[arg-type]
            OPENER,
            DOMAIN,
            self.member,  # type: ignore[arg-type]
            lambda node: self.address,
            self.clock,
            1.0,
        )
        brief: Any = None
        self.giving = asyncio.create_task(instruction.give(CASE, brief))

    async def passing(self, seconds: float) -> list[float]:
        """When the member was asked, in seconds from now."""
        began = self.clock.now()
        for _ in range(5):
            await asyncio.sleep(0.01)  # a thread encodes
        for _ in range(int(4 * seconds)):
            await self.clock.advance(0.25)
        return [at - began for at in self.member.asked]

    async def over(self) -> None:
        self.giving.cancel()
        with suppress(asyncio.CancelledError):
            await self.giving

    def change(self, **fields: Any) -> None:
        self.committee.states[CASE] = replace(self.committee.states[CASE], **fields)


async def test_a_member_is_given_its_task_until_it_has_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = Office(monkeypatch, lambda: JuryTaken(CASE.hex()))
    assert await it.passing(65) == [0, 60]
    it.change(committed=1)
    assert len(await it.passing(120)) == 2
    assert it.giving.done()


async def test_who_has_not_heard_of_its_seat_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = Office(monkeypatch, lambda: Refused("not_seated", "not yet"))
    assert await it.passing(4) == [0, 1, 3]
    await it.over()


@pytest.mark.parametrize("code", ["not_held", "too_long", "another_task"])
async def test_who_never_will_is_left_alone(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    it = Office(monkeypatch, lambda: Refused(code, "never"))
    assert await it.passing(30) == [0]
    assert it.giving.done()


@pytest.mark.parametrize("how", ["gone", "strange", "unknown"])
async def test_who_is_not_reached_is_tried_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def answer() -> Message:
        if how == "gone":
            raise PeerGone("it hung up")
        return Pong(1)

    it = Office(monkeypatch, answer)
    if how == "unknown":
        it.address = None
    asked = await it.passing(COMMIT)
    assert asked == ([] if how == "unknown" else [0, 1, 3, 7, 15, 31, 63])
    it.change(phase=Phase.ACCUSED)
    await it.passing(130)
    assert it.giving.done()


async def test_nobody_is_asked_before_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Office(monkeypatch, lambda: JuryTaken(CASE.hex()))
    it.change(phase=Phase.DRAWING)
    assert await it.passing(10) == []
    it.change(phase=Phase.VOTING)
    await it.passing(2)
    await asyncio.sleep(0.02)
    await it.passing(1)
    assert it.member.asked
    await it.over()


async def test_a_chain_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Office(monkeypatch, lambda: JuryTaken(CASE.hex()))
    state = it.committee.state

    async def away(case: bytes) -> Any:
        raise LedgerUnreachable("away")

    monkeypatch.setattr(it.committee, "state", away)
    assert await it.passing(10) == []
    monkeypatch.setattr(it.committee, "state", state)
    await it.passing(2)
    assert await it.passing(2)
    await it.over()
