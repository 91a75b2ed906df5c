"""Gossip on a transport: rounds, beats, farewells, and the streams that others open."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerGone, PeerRefused, UnisonoError, WireError
from unisono.routing.exchange import BEAT_SECONDS, Exchanges
from unisono.routing.membership import Membership
from unisono.routing.own_record import Describe
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import decode_frame
from unisono.wire.gossip_messages import Beat, Exchange, Newer, Wanted
from unisono.wire.identity import Identity
from unisono.wire.messages import Message, Refused
from unisono.wire.transports.base import Stream, Transport

log = logging.getLogger(__name__)

EXCHANGE_SECONDS = 5.0
"""A whole exchange, dialling included."""
FAREWELL_SECONDS = 1.0
FIRST_BACK_OFF, LONGEST_BACK_OFF = 0.25, 10.0
"""Seconds between attempts to reach anybody at all: doubled each time, up to the longest."""
MAX_RUNNING = 64
"""Exchanges and beats that this member has under way."""
JOIN_ROUNDS = 6
"""Exchanges without a pause with which a newcomer looks for its region."""

_T = TypeVar("_T")
_Message = TypeVar("_Message", Newer, Beat)


class Gossip:
    """One member's gossip. Use: `join`, then `run` until cancelled, then `leave`."""

    def __init__(
        self,
        transport: Transport,
        identity: Identity,
        membership: Membership,
        clock: Clock,
        describe: Describe,
        *,
        bootstrap: Sequence[PeerAddress] = (),
        rng: random.Random | None = None,
    ) -> None:
        """See `Exchanges`. The transport is bound before `join`, and closed by its owner."""
        self.membership = membership
        self.exchanges = Exchanges(
            identity, membership, clock, describe, bootstrap=bootstrap, rng=rng
        )
        self.sent: Counter[str] = Counter()
        """Bytes of frames sent, by message."""
        self._transport = transport
        self._clock = clock
        self._rng = rng or random.Random()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reached = clock.monotonic()
        self._stopping = False

    @property
    def silence(self) -> float:
        """Seconds since another member was reached; 0 for one that has nobody to join."""
        if not self.exchanges.bootstrap and self.exchanges.alone:
            return 0.0
        return self._clock.monotonic() - self._reached

    def changed(self) -> None:
        """What the member says of itself is different now: tell it."""
        self.exchanges.renew()
        self._tell()

    async def join(self, seconds: float) -> None:
        """Reach the network through any of the first addresses, and learn the own region.

        Without addresses this member is the first one, and there is nothing to do.

        Raises:
            PeerRefused: a member refuses this one, and says why.
            PeerGone: no address answered within `seconds`.
        """
        if not self.exchanges.bootstrap:
            return
        await self._first_exchange(self._clock.monotonic() + seconds)
        known = -1
        for _ in range(JOIN_ROUNDS):
            partner = self.exchanges.partner()
            if partner is None or known == self.membership.count > 1:
                break
            known = self.membership.count
            await self._try_exchange(partner)
        self._tell()

    async def _first_exchange(self, deadline: float) -> None:
        back_off = FIRST_BACK_OFF
        order = list(self.exchanges.bootstrap)
        while True:
            self._rng.shuffle(order)
            problem = ""
            for address in order:
                try:
                    await self._within(EXCHANGE_SECONDS, self._exchange(address))
                except WireError as error:
                    if isinstance(error, PeerRefused) and error.code != "too_often":
                        raise
                    log.info("cannot join through %s: %s", address, error)
                    problem = str(error)
                else:
                    return
            if self._clock.monotonic() + back_off > deadline:
                raise PeerGone(f"no member answers at {', '.join(map(str, order))}: {problem}")
            await self._clock.sleep(back_off)
            back_off = min(LONGEST_BACK_OFF, 2 * back_off)

    async def run(self) -> None:
        """Exchange and beat until cancelled. Failures of others are noted, never raised."""
        loops = [
            asyncio.create_task(self._rounds()),
            asyncio.create_task(self._beats()),
        ]
        try:
            await asyncio.gather(*loops)
        finally:
            tasks = [*loops, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def leave(self) -> None:
        """Say farewell: members drop this one at once. Takes at most `FAREWELL_SECONDS`."""
        if self._stopping:
            return
        self._stopping = True
        self.exchanges.renew(leaving=True)
        told = self.exchanges.urgent()
        if told is None:
            return
        addresses, frame = told
        beats = (self._within(FAREWELL_SECONDS, self._beat(a, frame)) for a in addresses)
        await asyncio.gather(*beats, return_exceptions=True)

    async def handle(self, stream: Stream, message: Message, body: memoryview) -> None:
        """Serve a stream whose first frame was a gossip message.

        Raises:
            WireError: the stream failed, or the peer broke the protocol.
        """
        reply = self.exchanges.answer_any(stream.peer, message, body)
        await self._send(stream, reply)
        if isinstance(message, Exchange):
            answer = await self._within(EXCHANGE_SECONDS, self._last_of(stream))
            if answer is not None:
                self.exchanges.take_wanted(stream.peer, answer)
        self._tell()

    async def _last_of(self, stream: Stream) -> memoryview | None:
        """The body of the `Wanted` that ends an exchange; None: the peer closed without one."""
        try:
            message, body = decode_frame(await stream.receive())
        except PeerGone:
            return None
        if not isinstance(message, Wanted):
            raise PeerCheating(f"{type(message).__name__} at the end of an exchange")
        return body

    # loops

    async def _rounds(self) -> None:
        back_off = FIRST_BACK_OFF
        while True:
            self.membership.regroup()
            self._tell()
            partner = self.exchanges.partner()
            if partner is not None:
                self._start(self._try_exchange(partner))
            if self.exchanges.alone and self.exchanges.bootstrap:
                await self._clock.sleep(back_off)
                back_off = min(LONGEST_BACK_OFF, 2 * back_off)
            else:
                back_off = FIRST_BACK_OFF
                # Rounds of different members must not fall into step.
                await self._clock.sleep(self.exchanges.round_seconds * self._rng.uniform(0.8, 1.2))

    async def _beats(self) -> None:
        while True:
            frame = self.exchanges.beat()
            for address in self.exchanges.neighbours():
                self._start(self._watch(address, frame))
            await self._clock.sleep(BEAT_SECONDS)

    async def _watch(self, address: PeerAddress, frame: bytes) -> None:
        """Beat to a neighbour, and once more if it is silent: two misses leave it out."""
        for _ in range(2):
            began = self._clock.monotonic()
            if await self._try_beat(address, frame, BEAT_SECONDS / 2):
                return
            await self._clock.sleep(began + BEAT_SECONDS / 2 - self._clock.monotonic())

    def _tell(self) -> None:
        if self._stopping or self.exchanges.alone:
            return
        told = self.exchanges.urgent()
        if told is not None:
            addresses, frame = told
            for address in addresses:
                self._start(self._tell_one(address, frame))

    async def _tell_one(self, address: PeerAddress, frame: bytes) -> None:
        await self._try_beat(address, frame, EXCHANGE_SECONDS)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= MAX_RUNNING:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # single conversations

    async def _try_exchange(self, address: PeerAddress) -> None:
        try:
            await self._within(EXCHANGE_SECONDS, self._exchange(address))
        except UnisonoError as error:
            self._failed(address.node, error)
        self._tell()

    async def _try_beat(self, address: PeerAddress, frame: bytes, seconds: float) -> bool:
        try:
            await self._within(seconds, self._beat(address, frame))
        except UnisonoError as error:
            self._failed(address.node, error)
            return False
        return True

    def _failed(self, node: NodeId, error: UnisonoError) -> None:
        log.debug("gossip with %s: %s", node[:8], error)
        if isinstance(error, PeerRefused):
            if error.code != "too_often":
                log.warning("node %s does not take this one's record: %s", node[:8], error)
        elif isinstance(error, PeerCheating):
            log.warning("node %s breaks the gossip protocol: %s", node[:8], error)
            self.membership.suspect(node)
            self.membership.contacts.failed(node)
        else:  # gone, or its address means nothing to this transport
            self.membership.missed(node)

    async def _exchange(self, address: PeerAddress) -> None:
        node = address.node
        stream = await self._transport.dial(address)
        try:
            began = self._clock.monotonic()
            await self._send(stream, self.exchanges.begin(node))
            message, body = _reply(await stream.receive(), Newer)
            seconds = self._clock.monotonic() - began
            last = self.exchanges.conclude(node, message, body, seconds)
            self._reached = self._clock.monotonic()
            if last is not None:
                await self._send(stream, last)
                await _ended(stream)
        finally:
            await stream.close()

    async def _beat(self, address: PeerAddress, frame: bytes) -> None:
        stream = await self._transport.dial(address)
        try:
            began = self._clock.monotonic()
            await self._send(stream, frame)
            _, body = _reply(await stream.receive(), Beat)
            seconds = self._clock.monotonic() - began
            self.exchanges.conclude_beat(address.node, body, seconds)
            self._reached = self._clock.monotonic()
        finally:
            await stream.close()

    async def _send(self, stream: Stream, frame: bytes) -> None:
        self.sent["bytes"] += len(frame)
        self.sent["frames"] += 1
        await stream.send(frame)

    async def _within(self, seconds: float, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`, if it comes within `seconds` of the clock.

        Raises:
            PeerGone: it does not.
        """
        task = asyncio.create_task(work)
        timer = asyncio.create_task(self._clock.sleep(seconds))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise PeerGone(f"no answer in {seconds:.2f} s")
        finally:
            timer.cancel()
            task.cancel()
            await asyncio.gather(task, timer, return_exceptions=True)


def _reply(frame: bytes, kind: type[_Message]) -> tuple[_Message, memoryview]:
    """The message of a reply, and its body.

    Raises:
        PeerRefused: the peer said no.
        PeerCheating: it said something else.
    """
    message, body = decode_frame(frame)
    if isinstance(message, Refused):
        raise PeerRefused(f"the member refuses: {message.message}", message.code)
    if not isinstance(message, kind):
        raise PeerCheating(f"{type(message).__name__} in reply to gossip")
    return message, body


async def _ended(stream: Stream) -> None:
    """Wait until the peer has read everything and ends the stream."""
    try:
        await stream.receive()
    except PeerGone:
        return
    raise PeerCheating("an exchange does not end")
