"""Notices among members that know each other, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.routing.records import KEYS, record
from unisono.clock import VirtualClock
from unisono.errors import PeerCheating, PeerGone
from unisono.routing.limits import PEER_BURST
from unisono.routing.membership import Membership
from unisono.routing.notices import ASK_SECONDS, NoticeBoard
from unisono.types import PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Ping, Refused
from unisono.wire.notices import Notice, NoticesAsked, NoticesTold, pack_notices
from unisono.wire.transports.base import Stream
from unisono.wire.transports.memory import MemoryNetwork, MemoryTransport


class Reader:
    """A member that believes everything but "lie", and keeps one notice per first letter."""

    def __init__(self, place: Square, number: int) -> None:
        self.number = number
        self.judged: list[bytes] = []
        self.old: set[str] = set()
        self.transport: MemoryTransport = place.hub.transport(KEYS[number])
        self.members = Membership(place.clock, KEYS[number].node_id)
        self.board = NoticeBoard(
            self.transport, self.members, place.clock, self.take, lambda s: s not in self.old
        )

    def take(self, notice: Notice) -> str | None:
        self.judged.append(notice.body)
        if notice.body == b"lie":
            raise PeerCheating("nobody believes that")
        return None if notice.body == b"noise" else notice.body[:1].decode()

    @property
    def bodies(self) -> list[bytes]:
        return [n.body for n in self.board.notices]

    async def serve(self, stream: Stream) -> None:
        message, body = decode_frame(await stream.receive())
        await self.board.handle(stream, message, body)


class Square:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.hub = MemoryNetwork(self.clock)
        self.readers: list[Reader] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.addresses: list[PeerAddress] = []

    async def add(self) -> Reader:
        reader = Reader(self, len(self.readers))
        self.readers.append(reader)
        self.addresses.append(await reader.transport.bind())
        self.tasks.append(asyncio.create_task(reader.transport.serve(reader.serve)))
        self.tasks.append(asyncio.create_task(reader.board.run()))
        return reader

    def introduce(self) -> None:
        """Everybody knows everybody."""
        now = int(self.clock.now() * 1000)
        for number, address in enumerate(self.addresses):
            made = record(
                number, 0, 1, sign=True, sequence=now, expires=now + 15_000, address=address
            )
            for reader in self.readers:
                if reader.number != number:
                    reader.members.accept(made)

    async def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.introduce()
            await self.clock.advance(1.0)
            for _ in range(20):
                await asyncio.sleep(0)


@asynccontextmanager
async def square(count: int) -> AsyncIterator[Square]:
    place = Square()
    try:
        for _ in range(count):
            await place.add()
        place.introduce()
        yield place
    finally:
        for task in place.tasks:
            task.cancel()
        await asyncio.gather(*place.tasks, return_exceptions=True)
        for reader in place.readers:
            await reader.transport.close()


def link(text: bytes) -> Notice:
    return Notice("link", text)


async def test_a_notice_reaches_everybody_at_once_and_newcomers_when_they_ask() -> None:
    async with square(9) as place:
        assert place.readers[0].board.post(link(b"a1"))
        await place.pass_time(1)
        reached = sum(r.bodies == [b"a1"] for r in place.readers)
        assert reached >= 7  # told on and on, before anybody asks
        await place.pass_time(3 * ASK_SECONDS)
        assert all(r.bodies == [b"a1"] for r in place.readers)
        late = await place.add()
        place.introduce()
        await place.pass_time(2)
        assert late.bodies == [b"a1"]


async def test_a_newer_notice_takes_the_place_of_an_older_one() -> None:
    async with square(4) as place:
        place.readers[0].board.post(link(b"a1"))
        await place.pass_time(2)
        place.readers[1].board.post(link(b"a2"))
        place.readers[1].board.post(link(b"b1"))
        await place.pass_time(3 * ASK_SECONDS)
        assert all(sorted(r.bodies) == [b"a2", b"b1"] for r in place.readers)


async def test_each_is_judged_once_and_what_is_of_no_use_is_not_passed_on() -> None:
    async with square(4) as place:
        first, *others = place.readers
        assert not first.board.post(link(b"noise"))
        first.board.post(link(b"a1"))
        await place.pass_time(4 * ASK_SECONDS)
        assert all(r.judged == [b"a1"] for r in others)
        assert first.judged == [b"noise", b"a1"]


async def test_what_is_out_of_date_is_forgotten() -> None:
    async with square(3) as place:
        place.readers[0].board.post(link(b"a1"))
        await place.pass_time(2)
        for reader in place.readers:
            reader.old.add("a")
        await place.pass_time(2 * ASK_SECONDS)
        assert all(r.bodies == [] for r in place.readers)


async def test_who_tells_lies_or_asks_too_often_is_not_heard() -> None:
    async with square(2) as place:
        liar, reader = place.readers
        with pytest.raises(PeerCheating):
            liar.board.post(link(b"lie"))

        async def say(frame: bytes) -> object:
            stream = await liar.transport.dial(place.addresses[1])
            await stream.send(frame)
            try:
                return decode_frame(await stream.receive())[0]
            finally:
                await stream.close()

        answers = [await say(encode_frame(NoticesAsked(0))) for _ in range(int(PEER_BURST) + 1)]
        assert answers[0] == NoticesTold()
        assert isinstance(answers[-1], Refused)
        await place.pass_time(60)
        told = encode_frame(NoticesTold(), pack_notices([link(b"lie")]))
        with pytest.raises(PeerGone):
            await say(told)
        assert isinstance(await say(encode_frame(NoticesAsked(0))), Refused)
        assert reader.bodies == []
        await place.pass_time(120)
        with pytest.raises(PeerGone):
            await say(encode_frame(Ping(1)))
