"""The notice board of a member: what it was told, what it passes on, and to whom.

A new notice goes at once to some members, who pass it on if it was new to them; and every some
seconds each member asks a random one for what it lacks. So a notice reaches everybody who is
there in a few steps, and everybody who comes later when they first ask.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerGone, UnisonoError
from unisono.routing.limits import PeerLimits
from unisono.routing.membership import Membership
from unisono.routing.recent import Recent
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Message, Refused
from unisono.wire.notices import (
    KINDS,
    MAX_NOTICES,
    Notice,
    NoticesAsked,
    NoticesTold,
    pack_notices,
    read_known,
    unpack_notices,
)
from unisono.wire.transports.base import Stream, Transport

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0
"""How often a member asks another for what it lacks."""
FAN_OUT = 4
"""Members that are told of a new notice at once."""
TALK_SECONDS = 5.0
"""For one conversation, dialling included."""
REFUSED_SECONDS = 60.0
"""A notice that was not kept is looked at again after this long."""
MAX_RUNNING = 16
_MAX_REFUSED = 4096

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Kept:
    """A notice that counts."""

    notice: Notice
    key: bytes


class NoticeBoard:
    """Use: `post` what this member has to say, `run` until cancelled, `handle` what others ask."""

    def __init__(
        self,
        transport: Transport,
        members: Membership,
        clock: Clock,
        take: Callable[[Notice], str | None],
        keeps: Callable[[str], bool],
        rng: random.Random | None = None,
    ) -> None:
        """
        Args:
            take: judges a notice: the slot under which it is kept, in place of an older one; None
                if it says nothing of use here or now. Raises `PeerCheating` if no honest member
                passes it on.
            keeps: whether a slot is still of use.
        """
        self._transport = transport
        self._members = members
        self._clock = clock
        self._take = take
        self._keeps = keeps
        self._rng = rng or random.Random()
        self._kept: dict[str, Kept] = {}
        self._keys: set[bytes] = set()
        self._refused: Recent[bytes, float] = Recent(_MAX_REFUSED)
        self._limits = PeerLimits(clock)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Those that are kept, in the order in which they make sense."""
        ranked = sorted(self._kept.values(), key=lambda k: KINDS.index(k.notice.kind))
        return tuple(k.notice for k in ranked)

    def post(self, notice: Notice) -> bool:
        """Say something; whether it counts here too.

        Raises:
            PeerCheating: nobody would believe it.
        """
        if not self._consider(notice):
            return notice.key() in self._keys
        self._pass_on([notice])
        return True

    async def run(self) -> None:
        """Ask others until cancelled. Failures of others are noted, never raised."""
        try:
            while True:
                self._forget()
                live = self._members.sure()
                if live:
                    await self._try(self._ask(self._rng.choice(live).record.address))
                pause = ASK_SECONDS if live else ASK_SECONDS / 20
                await self._clock.sleep(pause * self._rng.uniform(0.8, 1.2))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def handle(self, stream: Stream, message: Message, body: memoryview) -> None:
        """Serve a stream whose first message was about notices.

        Raises:
            WireError: the stream failed, or the peer broke the protocol.
        """
        if not self._limits.allow(stream.peer):
            await stream.send(encode_frame(Refused("too_often", "ask less often for notices")))
            return
        try:
            if isinstance(message, NoticesAsked):
                known = read_known(message, body)
                self._forget()
                lacking = [n for n in self.notices if n.key() not in known]
                await stream.send(encode_frame(NoticesTold(), pack_notices(lacking)))
            elif isinstance(message, NoticesTold):
                self._hear(stream.peer, body)
                await stream.send(encode_frame(NoticesTold()))
            else:
                raise PeerCheating(f"no notices begin with {type(message).__name__}")
        except PeerCheating:
            self._limits.punish(stream.peer)
            raise

    def _hear(self, sender: NodeId, body: bytes | memoryview) -> None:
        told = [n for n in unpack_notices(body) if n.key() not in self._keys]
        now = self._clock.monotonic()
        told = [n for n in told if now >= (self._refused.get(n.key()) or 0.0)]
        told = told[: self._limits.allow_records(sender, len(told))]
        self._pass_on([n for n in told if self._consider(n)])

    def _consider(self, notice: Notice) -> bool:
        """Whether a notice was new and counts."""
        key = notice.key()
        if key in self._keys:
            return False
        slot = self._take(notice)
        if slot is None:
            self._refused.put(key, self._clock.monotonic() + REFUSED_SECONDS)
            return False
        older = self._kept.pop(slot, None)
        if older is not None:
            self._keys.discard(older.key)
        self._kept[slot] = Kept(notice, key)
        if notice.kind != KINDS[-1]:
            self._refused.clear()  # what could not be judged without it may be good now
        self._keys.add(key)
        return True

    def _forget(self) -> None:
        for slot in [s for s in self._kept if not self._keeps(s)]:
            self._keys.discard(self._kept.pop(slot).key)

    def _pass_on(self, notices: list[Notice]) -> None:
        live = self._members.sure()
        if not notices or not live:
            return
        frame = encode_frame(NoticesTold(), pack_notices(notices))
        for entry in self._rng.sample(live, min(FAN_OUT, len(live))):
            if len(self._tasks) >= MAX_RUNNING:
                return  # who is not told asks
            self._start(self._tell(entry.record.address, frame))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._try(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await _within(self._clock, TALK_SECONDS, work)
        except UnisonoError as error:
            log.debug("notices: %s", error)

    async def _ask(self, address: PeerAddress) -> None:
        keys = sorted(self._keys)[:MAX_NOTICES]
        frame = encode_frame(NoticesAsked(len(keys)), b"".join(keys))
        body = await self._talk(address, frame)
        self._hear(address.node, body)

    async def _tell(self, address: PeerAddress, frame: bytes) -> None:
        await self._talk(address, frame)

    async def _talk(self, address: PeerAddress, frame: bytes) -> memoryview:
        stream = await self._transport.dial(address)
        try:
            await stream.send(frame)
            message, body = decode_frame(await stream.receive())
            if isinstance(message, Refused):
                return memoryview(b"")
            if not isinstance(message, NoticesTold):
                raise PeerCheating(f"{type(message).__name__} in reply to notices")
            return body
        finally:
            await stream.close()


async def _within(clock: Clock, seconds: float, work: Coroutine[Any, Any, _T]) -> _T:
    task = asyncio.create_task(work)
    timer = asyncio.create_task(clock.sleep(seconds))
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise PeerGone(f"no answer in {seconds:.0f} s")
        return task.result()
    finally:
        timer.cancel()
        task.cancel()
        await asyncio.gather(task, timer, return_exceptions=True)
