"""A public node that carries the traffic of nodes which cannot be dialled.

A node behind NAT holds a place: a stream that it keeps open. A caller asks for a circuit to it;
the relay knocks over that stream, the node opens another one, and the relay copies frames between
the two. It copies sealed bytes only, within limits per peer and in total.

Refusal codes: `relay_full`, `no_place` (the target holds none here), `too_many_circuits`, `quota`,
`too_often`, `no_answer`, `unknown_ticket`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from unisono.clock import Clock, SystemClock
from unisono.errors import PeerCheating, PeerGone, PeerRefused
from unisono.types import NodeId
from unisono.wire.bounds import MAX_ADDRESSES
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Ping, Pong, Refused
from unisono.wire.relay_messages import (
    Answer,
    Call,
    DialBack,
    Introduce,
    Introduced,
    Joined,
    Knock,
    Reserve,
    Reserved,
)
from unisono.wire.transports.allowance import Allowance, Allowances, Bucket
from unisono.wire.transports.base import Located, Stream
from unisono.wire.transports.circuit import sealed_body


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay gives to others."""

    places: int = 128
    """Nodes that hold a place at once."""
    circuits: int = 256
    """Each takes two streams of the transport, which accepts 1,024."""
    circuits_per_peer: int = 32
    """As caller and as target together."""
    bytes_per_second: int = 64 << 20
    """Through the relay."""
    bytes_per_second_of_peer: int = 8 << 20
    """Sent by one peer; more waits, and its sender with it."""
    bytes_per_hour_of_peer: int = 8 << 30
    """Sent by one peer; then its circuits end and it is refused until the hour is over."""
    idle_seconds: float = 120.0
    """A circuit that carries nothing this long ends."""
    place_seconds: float = 45.0
    """A place whose holder is silent this long is free again."""
    answer_seconds: float = 5.0
    """How long a target may take to answer a knock."""


@dataclass(eq=False, slots=True)
class _Place:
    stream: Stream
    addresses: tuple[str, ...]


@dataclass(eq=False, slots=True)
class _Waiting:
    """A circuit that its target has not answered yet."""

    target: NodeId
    arrived: asyncio.Future[Stream]
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Relay:
    """The part of a transport that serves others. Streams are closed by whoever calls."""

    def __init__(self, limits: RelayLimits | None = None, clock: Clock | None = None) -> None:
        self.limits = limits or RelayLimits()
        self.carried = 0
        """Bytes of sealed frames that passed."""
        self._clock = clock or SystemClock()
        self._places: dict[NodeId, _Place] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._circuits = 0
        rate = self.limits.bytes_per_second
        self._total = Bucket(rate, rate, self._clock)
        self._allowances = Allowances(
            self.limits.bytes_per_second_of_peer, self.limits.bytes_per_hour_of_peer, self._clock
        )

    @property
    def circuits(self) -> int:
        """How many are open."""
        return self._circuits

    @property
    def places(self) -> int:
        """How many nodes hold one."""
        return len(self._places)

    async def hold(self, stream: Stream, request: Reserve) -> None:
        """Serve a `Reserve` until its holder leaves or is silent.

        Raises:
            PeerGone, PeerCheating: that is how it ended.
            PeerRefused: there is no room.
        """
        node, limits = stream.peer, self.limits
        older = self._places.get(node)
        if older is None and len(self._places) >= limits.places:
            raise await refuse(stream, "relay_full", f"all {limits.places} places are taken")
        seen = seen_at(stream)
        known = dict.fromkeys((*((seen,) if seen else ()), *request.addresses))
        place = _Place(stream, tuple(known)[:MAX_ADDRESSES])
        self._places[node] = place
        if older is not None:
            await older.stream.close()
        heard = _Heard(self._clock)
        try:
            await stream.send(encode_frame(Reserved(seen, int(limits.place_seconds * 1000))))
            async with _closed_when_idle(stream, heard, limits.place_seconds):
                while True:
                    message, _ = decode_frame(await stream.receive())
                    if not isinstance(message, Ping):
                        raise PeerCheating(f"{type(message).__name__} over the stream of a place")
                    heard.touch()
                    await stream.send(encode_frame(Pong(message.nonce)))
        finally:
            if self._places.get(node) is place:
                del self._places[node]

    async def carry(self, stream: Stream, request: Call) -> None:
        """Serve a `Call` until the circuit ends.

        Raises:
            PeerCheating: one side sent what no circuit carries.
            PeerRefused: the caller was told why not, or a quota ran out on the way.
        """
        caller = self._allowances.of(stream.peer)
        target = self._allowances.of(request.target)
        problem = self._problem(request.target, caller, target)
        if problem is not None:
            raise await refuse(stream, *problem)
        self._circuits += 1
        caller.circuits += 1
        target.circuits += 1
        try:
            try:
                waiting, far = await self._knock(request.target, stream.peer)
            except PeerRefused as error:
                raise await refuse(stream, error.code, str(error)) from None
            try:
                with contextlib.suppress(PeerGone):  # that is how circuits end
                    await stream.send(encode_frame(Joined()))
                    await self._splice(stream, caller, far, target)
            finally:
                await far.close()
                waiting.ended.set()
        finally:
            self._circuits -= 1
            caller.circuits -= 1
            target.circuits -= 1

    async def answer(self, stream: Stream, request: Answer) -> None:
        """Serve an `Answer` until its circuit ends.

        Raises:
            PeerRefused: nobody waits for it.
        """
        waiting = self._waiting.get(request.ticket)
        if waiting is None or waiting.target != stream.peer or waiting.arrived.done():
            raise await refuse(stream, "unknown_ticket", "nobody waits for this ticket any more")
        await stream.send(encode_frame(Joined()))
        if waiting.arrived.done():  # the caller may have left meanwhile
            return
        waiting.arrived.set_result(stream)
        await waiting.ended.wait()

    async def introduce(self, stream: Stream, request: Introduce) -> None:
        """Serve an `Introduce`.

        Raises:
            PeerRefused: the caller was told why not.
        """
        place = self._places.get(request.target)
        if place is None:
            raise await refuse(stream, "no_place", f"{request.target} holds no place here")
        for node in (stream.peer, request.target):
            if not self._allowances.of(node).introductions.allows(1):
                raise await refuse(stream, "too_often", "wait a second between introductions")
        seen = seen_at(stream)
        known = dict.fromkeys((*((seen,) if seen else ()), *request.addresses))
        addresses = tuple(known)[:MAX_ADDRESSES]
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                await place.stream.send(encode_frame(DialBack(stream.peer, addresses)))
        except (PeerGone, TimeoutError):
            raise await refuse(stream, "no_answer", f"{request.target} does not listen") from None
        await stream.send(encode_frame(Introduced(place.addresses)))

    async def call(self, target: NodeId, caller: NodeId) -> tuple[Stream, asyncio.Event]:
        """A circuit whose near end is this node itself, and the event to set when it ends.

        Raises:
            PeerGone: the target holds no place here or does not answer.
        """
        try:
            waiting, stream = await self._knock(target, caller)
        except PeerRefused as error:
            raise PeerGone(str(error)) from None
        return stream, waiting.ended

    def _problem(
        self, target: NodeId, caller: Allowance, called: Allowance
    ) -> tuple[str, str] | None:
        """Code and message of the reason to refuse a call."""
        limits = self.limits
        if target not in self._places:
            return "no_place", f"{target} holds no place here"
        if self._circuits >= limits.circuits:
            return "relay_full", f"all {limits.circuits} circuits are in use"
        for whose, allowance in (("your", caller), ("the target's", called)):
            if allowance.circuits >= limits.circuits_per_peer:
                return "too_many_circuits", f"all {whose} {limits.circuits_per_peer} are in use"
            if allowance.spent:
                return "quota", f"{whose} bytes of this hour are used up"
        return None

    async def _knock(self, target: NodeId, caller: NodeId) -> tuple[_Waiting, Stream]:
        place = self._places.get(target)
        if place is None:
            raise PeerRefused(f"{target} holds no place here", "no_place")
        ticket = secrets.token_hex(16)
        waiting = _Waiting(target, asyncio.get_running_loop().create_future())
        self._waiting[ticket] = waiting
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                await place.stream.send(encode_frame(Knock(ticket, caller)))
                return waiting, await waiting.arrived
        except (PeerGone, TimeoutError):
            waiting.ended.set()
            raise PeerRefused(f"{target} does not answer", "no_answer") from None
        except BaseException:
            waiting.ended.set()
            raise
        finally:
            del self._waiting[ticket]
            if not waiting.arrived.done():
                waiting.arrived.cancel()

    async def _splice(self, near: Stream, one: Allowance, far: Stream, other: Allowance) -> None:
        """Copy frames both ways until either side ends or breaks a rule."""
        heard = _Heard(self._clock)
        ways = {
            asyncio.create_task(self._copy(near, far, one, heard)),
            asyncio.create_task(self._copy(far, near, other, heard)),
        }
        try:
            async with _closed_when_idle(near, heard, self.limits.idle_seconds):
                done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _copy(self, source: Stream, to: Stream, sender: Allowance, heard: _Heard) -> None:
        while True:
            frame = await source.receive()
            sealed_body(frame)
            heard.touch()
            if sender.spent:
                raise PeerRefused(f"the bytes of {source.peer} for this hour are used up", "quota")
            self.carried += len(frame)
            wait = max(sender.use(len(frame)), self._total.take(len(frame)))
            if wait:
                await self._clock.sleep(wait)
                heard.touch()
            await to.send(frame)


async def refuse(stream: Stream, code: str, message: str) -> PeerRefused:
    """Tell a peer why not; the error to raise."""
    with contextlib.suppress(PeerGone):
        await stream.send(encode_frame(Refused(code, message)))
    return PeerRefused(message, code)


def seen_at(stream: Stream) -> str | None:
    """HOST:PORT that the peer of a stream is seen at, if known."""
    return stream.remote if isinstance(stream, Located) else None


class _Heard:
    """When something was last heard."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.at = clock.monotonic()

    def touch(self) -> None:
        self.at = self.clock.monotonic()


@contextlib.asynccontextmanager
async def _closed_when_idle(stream: Stream, heard: _Heard, seconds: float) -> AsyncGenerator[None]:
    """Close `stream` within this block once nothing was heard for so long."""

    async def watch() -> None:
        while (left := heard.at + seconds - heard.clock.monotonic()) > 0:
            await heard.clock.sleep(left)
        await stream.close()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
