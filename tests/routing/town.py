"""Members that gossip over the transport in memory, on a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.routing.records import MODEL
from unisono.clock import VirtualClock
from unisono.compose.front_door import FrontDoor
from unisono.routing.gossip import Gossip
from unisono.routing.membership import Membership
from unisono.types import LayerRange, NodeId, PeerAddress
from unisono.wire.identity import Identity
from unisono.wire.records import NodeRecord
from unisono.wire.transports.base import Stream
from unisono.wire.transports.memory import MemoryNetwork

STEP = 0.05
"""Seconds by which a town's time moves: less than any delay in it."""


class Member:
    """One member with its loops."""

    def __init__(
        self, town: Town, number: int, bootstrap: Sequence[PeerAddress], view: int
    ) -> None:
        self.identity = Identity.from_seed(number.to_bytes(4, "big") * 8)
        self.node = self.identity.node_id
        self.layers = LayerRange(0, 2)
        self.transport = town.hub.transport(self.identity)
        self.members = Membership(town.clock, self.node, view=view)
        self.gossip = Gossip(
            self.transport,
            self.identity,
            self.members,
            town.clock,
            self._describe,
            bootstrap=bootstrap,
            rng=random.Random(number),
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self.address = await self.transport.bind()
        serving = self.transport.serve(FrontDoor(self.gossip).handle)
        self._tasks = [asyncio.create_task(serving), asyncio.create_task(self._take_part())]

    async def _take_part(self) -> None:
        await self.gossip.join(60)
        await self.gossip.run()

    def _describe(self) -> NodeRecord:
        return NodeRecord(
            node=self.node,
            address=self.address,
            model=MODEL,
            layers=self.layers,
            free_positions=1,
            sessions=0,
            sequence=0,
            expires=0,
        )

    def knows(self, node: NodeId) -> bool:
        """Whether it would send work there."""
        return node in [r.node for r in self.members.records()]

    def holds(self, node: NodeId) -> bool:
        """Whether it has a record of a node that has not left."""
        return node in [r.node for r, _ in self.members.all_records()]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.transport.close()


class Town:
    """All of them."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.hub = MemoryNetwork(self.clock)
        self.members: list[Member] = []
        self._cut: set[frozenset[NodeId]] = set()
        connect = self.hub.connect

        def connected(dialler: Any, peer: PeerAddress) -> Any:
            if frozenset((dialler.node_id, peer.node)) in self._cut:
                from unisono.errors import PeerGone

                raise PeerGone("the network is cut here")
            return connect(dialler, peer)

        self.hub.connect = connected  # type: ignore[method-assign]

    async def add(self, *bootstrap: Member | PeerAddress, view: int = 256) -> Member:
        addresses = [b.address if isinstance(b, Member) else b for b in bootstrap]
        member = Member(self, len(self.members) + 1, addresses, view)
        self.members.append(member)
        await member.start()
        return member

    async def grow(self, count: int, view: int = 256) -> list[Member]:
        """`count` members, each of which joins through an earlier one."""
        rng = random.Random(count)
        for _ in range(count):
            known = [rng.choice(self.members)] if self.members else []
            await self.add(*known, view=view)
            await self.run(STEP)
        return self.members

    async def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.clock.now() + seconds
        while self.clock.now() < until - STEP / 2:
            await self.clock.advance(STEP)
            for _ in range(30):
                await asyncio.sleep(0)

    async def until(self, so: Callable[[], bool], seconds: float) -> float:
        """Seconds until something is so.

        Raises:
            AssertionError: it is not so in time.
        """
        began = self.clock.now()
        while not so():
            assert self.clock.now() - began < seconds, f"not within {seconds} s"
            await self.run(STEP)
        return self.clock.now() - began

    def cut(self, one: Sequence[Member], other: Sequence[Member]) -> None:
        """Let nobody of one side reach anybody of the other."""
        self._cut = {frozenset((a.node, b.node)) for a in one for b in other}

    def heal(self) -> None:
        self._cut.clear()

    def kill(self, member: Member) -> list[Member]:
        """The others; the member vanishes without a word."""
        self.hub.kill(member.node)
        return [m for m in self.members if m is not member]

    def all_know_all(self, members: Sequence[Member] | None = None) -> bool:
        group = members if members is not None else self.members
        wanted = {m.node for m in group}
        return all({r.node for r in m.members.records()} >= wanted - {m.node} for m in group)

    async def peer(self, number: int = 999) -> tuple[Identity, Any]:
        """An identity with a bound transport, for tests that speak the protocol themselves."""
        identity = Identity.from_seed(number.to_bytes(4, "big") * 8)
        transport = self.hub.transport(identity)
        await transport.bind()
        return identity, transport

    async def close(self) -> None:
        await asyncio.gather(*(m.stop() for m in self.members))


@asynccontextmanager
async def town(count: int = 0, view: int = 256) -> AsyncIterator[Town]:
    """A town of `count` members, which have just joined."""
    place = Town()
    try:
        await place.grow(count, view)
        yield place
    finally:
        await place.close()


async def answered(stream: Stream) -> bytes | None:
    """The next frame; None: the stream has ended."""
    from unisono.errors import PeerGone

    try:
        async with asyncio.timeout(5):
            return await stream.receive()
    except PeerGone:
        return None
