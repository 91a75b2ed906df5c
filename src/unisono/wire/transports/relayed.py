"""A transport around another one, through which nodes behind NAT are reached as well.

A node that peers may be unable to dial holds a place at one or two relays and adds
`relay/...` to its addresses. To dial it is to try its own addresses first, then a circuit
through a relay (see `circuit`), with a search for a direct path in the background (see
`rendezvous`). Streams stay on the path that they were opened on; new ones take the direct path
as soon as there is one.

Every stream of the inner transport starts with a frame that says what it is for
(`wire.relay_messages`); streams that reach the node itself are handed on as they are, so that
nothing is copied or wrapped on the direct path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from unisono.clock import Clock, SystemClock
from unisono.errors import ConfigurationError, PeerCheating, PeerGone, WireError
from unisono.types import PeerAddress
from unisono.wire.bounds import MAX_ADDRESSES
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.relay_messages import (
    Answer,
    Call,
    DialBack,
    Direct,
    Introduce,
    Knock,
    Look,
    Reserve,
    Seen,
)
from unisono.wire.transports import HandlerTasks, cancel_tasks
from unisono.wire.transports.addresses import RELAY, relay_address, split_relay_address
from unisono.wire.transports.base import Meeting, Stream, StreamHandler, Transport
from unisono.wire.transports.circuits import Circuits
from unisono.wire.transports.race import Attempt, discard, race
from unisono.wire.transports.relay import Relay, RelayLimits, refuse, seen_at
from unisono.wire.transports.rendezvous import Rendezvous
from unisono.wire.transports.reservation import Reservation
from unisono.wire.transports.witnesses import Witnesses

logger = logging.getLogger(__name__)

PLACES = 2
"""Relays at which a node holds a place."""
MAX_DIALLED_RELAYS = 3
HEAD_START_SECONDS = 0.3
"""How long a direct dial may take before a relay is tried beside it."""
CONNECTED_SECONDS = 2.0
"""The same where there is a connection already."""
NEXT_RELAY_SECONDS = 1.5
FIRST_SECONDS = 5.0
"""For the first frame of a stream."""
BIND_SECONDS = 5.0
"""How long `bind` waits for the first places."""
LOOK_SECONDS = 300.0
MAX_ANSWERS = 64

_DIRECT = encode_frame(Direct())


class RelayedTransport:
    """A `Transport` that adds relays to `inner`; see the module's docstring.

    Args:
        inner: carries every stream; its `bind`, `dial`, `serve` and `close` are called by this.
        identity: of this node, the same as the inner transport's.
        relays: nodes to hold places at, if peers may be unable to dial this one.
        serve_relay: whether this node is a relay for others.
        limits: of what it carries for them.
    """

    def __init__(
        self,
        inner: Transport,
        identity: Identity,
        *,
        relays: Sequence[PeerAddress] = (),
        serve_relay: bool = False,
        limits: RelayLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.inner = inner
        self.relay = Relay(limits, clock) if serve_relay else None
        """What this node does for others; None if it is no relay."""
        self._identity = identity
        self._clock = clock or SystemClock()
        self._relays = _own_ways(relays)
        self._bound: PeerAddress | None = None
        self._witnesses = Witnesses(inner, self._clock)
        self._circuits = Circuits(inner, identity, self.relay)
        self._rendezvous = Rendezvous(inner, self._clock, self._direct_addresses)
        self._reservations: list[Reservation] = []
        self._handler: StreamHandler | None = None
        self._serving = asyncio.Event()
        self._handlers = HandlerTasks()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answering = 0
        self._turn = 0
        self._closed = False

    @property
    def address(self) -> PeerAddress:
        """Where this node is reached now: its own addresses, those that others see it at, and
        its relays.

        Raises:
            ConfigurationError: it is not bound.
        """
        if self._bound is None:
            raise ConfigurationError("bind the transport before asking for its address")
        places = [r.relay for r in self._reservations if r.relay is not None]
        through = tuple(dict.fromkeys(relay_address(relay) for relay in places))
        direct = self._direct_addresses()[: MAX_ADDRESSES - len(through)]
        return PeerAddress(self._bound.node, self._bound.transport, direct + through)

    @property
    def behind_nat(self) -> bool | None:
        """Whether peers see this node at a host that is not this machine, so that it needs relays;
        None while no peer has said where it sees it, or the transport cannot tell."""
        return self._witnesses.translated()

    async def bind(self) -> PeerAddress:
        if self._bound is None:
            self._bound = await self.inner.bind()
            if not self._closed:
                self._spawn(self._look_again())
                await self._reserve()
        return self.address

    async def use_relays(self, relays: Sequence[PeerAddress]) -> None:
        """Hold places at these relays from now on; places at others are kept until lost."""
        self._relays = _own_ways(relays)
        if self._bound is not None and not self._closed:
            await self._reserve()

    async def dial(self, peer: PeerAddress) -> Stream:
        if self._closed:
            raise PeerGone("this transport is closed")
        found = [split_relay_address(text) for text in peer.addresses]
        relays = [r for r in found if r is not None and r.transport == peer.transport]
        relays = relays[:MAX_DIALLED_RELAYS]
        own = [text for text, relay in zip(peer.addresses, found, strict=True) if relay is None]
        if not relays or self._bound is None:
            return await self._dial_direct(PeerAddress(peer.node, peer.transport, tuple(own)))
        own += [text for text in self._rendezvous.found(peer.node) if text not in own]
        direct = PeerAddress(peer.node, peer.transport, tuple(own[:MAX_ADDRESSES]))
        attempts: list[Attempt] = []
        connected = isinstance(self.inner, Meeting) and self.inner.connected(peer.node)
        try_direct = connected or (bool(own) and self._rendezvous.worth_dialling(peer.node))
        if try_direct:
            attempts.append(Attempt(lambda: self._dial_direct(direct)))
        head_start = CONNECTED_SECONDS if connected else HEAD_START_SECONDS
        for number, relay in enumerate(relays):
            patience = NEXT_RELAY_SECONDS if number else head_start
            attempts.append(Attempt(lambda r=relay: self._circuits.call(r, peer.node), patience))
        try:
            won = await race(attempts, self._clock)
        except (PeerGone, PeerCheating) as error:
            # A private address of another home may be somebody else's here: no one to blame.
            raise PeerGone(f"{peer} cannot be reached: {error}") from None
        if won.index or not try_direct:
            others = tuple(relays)
            late = won.others.pop(0, None) if try_direct else None
            self._spawn(self._await_direct(late, direct, others))
        if won.others:
            self._spawn(discard([*won.others.values()]))
        return won.stream

    async def serve(self, handler: StreamHandler) -> None:
        self._handler = handler
        self._serving.set()
        await self.inner.serve(self._take)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._rendezvous.close()
        await cancel_tasks(self._tasks)
        await self._circuits.close()
        await self._handlers.cancel()
        await self.inner.close()

    # The direct path

    async def _dial_direct(self, peer: PeerAddress) -> Stream:
        stream = await self.inner.dial(peer)
        try:
            await stream.send(_DIRECT)
        except BaseException:
            await stream.close()
            raise
        remote = seen_at(stream)
        if remote is not None and self._witnesses.wants(remote):
            self._spawn(self._witnesses.ask(peer, remote))
        return stream

    async def _await_direct(
        self,
        late: asyncio.Task[Stream] | None,
        peer: PeerAddress,
        relays: tuple[PeerAddress, ...],
    ) -> None:
        """After a circuit was faster: wait for the direct dial, then search."""
        if late is not None:
            try:
                await (await asyncio.shield(late)).close()
                return
            except WireError as error:
                logger.debug("no direct path to %s: %s", peer.node, error)
            except asyncio.CancelledError:
                await discard([late])
                raise
        self._rendezvous.search(peer, relays)

    async def _take(self, stream: Stream) -> None:
        """Serve a stream of the inner transport by its first frame."""
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                first = await stream.receive()
        except TimeoutError:
            raise PeerGone(f"{stream.peer} opened a stream and was silent") from None
        if first == _DIRECT:
            assert self._handler is not None
            await self._handler(stream)
            return
        message, _ = decode_frame(first)
        if isinstance(message, Look):
            await stream.send(encode_frame(Seen(seen_at(stream))))
        elif not isinstance(message, Reserve | Call | Answer | Introduce):
            raise PeerCheating(f"a stream that starts with {type(message).__name__}")
        elif self.relay is None:
            raise await refuse(stream, "no_relay", "this node is no relay")
        elif isinstance(message, Reserve):
            await self.relay.hold(stream, message)
        elif isinstance(message, Call):
            await self.relay.carry(stream, message)
        elif isinstance(message, Answer):
            await self.relay.answer(stream, message)
        else:
            await self.relay.introduce(stream, message)

    # Calls through relays

    def _knocked(self, relay: PeerAddress, knock: Knock) -> None:
        if self._answering < MAX_ANSWERS and not self._handlers.full:
            self._answering += 1
            self._spawn(self._answer(relay, knock))

    async def _answer(self, relay: PeerAddress, knock: Knock) -> None:
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                await self._serving.wait()
            stream = await self._circuits.answer(relay, knock)
        except (WireError, TimeoutError) as error:
            logger.info("a call of %s through %s failed: %s", knock.caller, relay, error)
            return
        finally:
            self._answering -= 1
        assert self._handler is not None
        self._handlers.start(self._handler, stream)

    # Places at relays

    async def _reserve(self) -> None:
        wanted = min(PLACES, len(self._relays))
        added: list[Reservation] = []
        while len(self._reservations) < wanted:
            made = Reservation(
                self.inner,
                self._clock,
                choose=self._choose_relay,
                own_addresses=self._direct_addresses,
                knocked=self._knocked,
                dial_back=self._dial_back,
                changed=self._place_changed,
            )
            self._reservations.append(made)
            added.append(made)
            self._spawn(made.keep())
        if added:
            tried = [asyncio.create_task(_tried(made)) for made in added]
            _, late = await asyncio.wait(tried, timeout=BIND_SECONDS)
            await cancel_tasks(late)

    def _choose_relay(self) -> PeerAddress | None:
        """The relay to try next: in turn, of those where no place is held."""
        taken = {r.relay.node for r in self._reservations if r.relay is not None}
        taken.add(self._identity.node_id)
        free = [relay for relay in self._relays if relay.node not in taken]
        self._turn += 1
        return free[self._turn % len(free)] if free else None

    async def _place_changed(self, relay: PeerAddress, seen: str | None) -> None:
        if seen is not None:
            await self._witnesses.report(relay, relay.addresses[0], seen)

    def _dial_back(self, relay: PeerAddress, message: DialBack) -> None:
        self._rendezvous.dial_back(relay, message)

    async def _look_again(self) -> None:
        """Keep what relays see fresh."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            for relay in [r.relay for r in self._reservations if r.relay is not None]:
                await self._witnesses.ask(relay, relay.addresses[0])

    def _direct_addresses(self) -> tuple[str, ...]:
        own = self._bound.addresses if self._bound is not None else ()
        return tuple(dict.fromkeys((*own, *self._witnesses.believed())))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the relayed transport failed", exc_info=error)


def _own_ways(relays: Sequence[PeerAddress]) -> tuple[PeerAddress, ...]:
    """Relays with those of their addresses that lead to them without another relay."""
    ways: list[PeerAddress] = []
    for relay in relays:
        own = tuple(text for text in relay.addresses if not text.startswith(RELAY))
        if own:
            ways.append(PeerAddress(relay.node, relay.transport, own))
    return tuple(ways)


async def _tried(reservation: Reservation) -> None:
    await reservation.tried.wait()
