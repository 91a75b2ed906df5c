"""A replica that stands by: a node process of one's own that holds a whole model, in a network
of its own, for when the network at large cannot answer."""

from __future__ import annotations

import asyncio
import logging

from unisono.clock import Clock
from unisono.compose.front_door import FrontDoor
from unisono.compose.local import LocalNode, start_node
from unisono.compose.node_settings import NodeSettings
from unisono.errors import ConfigurationError, UnisonoError
from unisono.models.store import StoredModel
from unisono.routing.gossip import Gossip
from unisono.routing.membership import Membership
from unisono.routing.swarm import Swarm
from unisono.types import LayerRange, PeerAddress
from unisono.wire.identity import Identity
from unisono.wire.records import NodeRecord
from unisono.wire.transports import make_transport

log = logging.getLogger(__name__)

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 60.0
"""Before a replica that ended is started again: doubled each time, up to the longest."""
STEADY_SECONDS = 60.0
"""A replica that lived this long starts over with the first delay."""
_LOOK_SECONDS = 0.5


class Replica:
    """Use: `start`, then `network`, then `close`. Until its node has loaded the model, and while
    a node that died is started again, the network covers no layer and says so."""

    def __init__(
        self,
        model: StoredModel,
        identity: Identity,
        clock: Clock,
        *,
        cache: str | None = None,
        threads: int | None = None,
    ) -> None:
        """`identity` is the gateway's: its name stands in the receipts. Sockets are only bound to
        this machine's loopback."""
        self._model = model
        self._identity = identity
        self._clock = clock
        self._cache = cache
        self._threads = threads
        self._transport = make_transport("tcp", identity, "127.0.0.1:0")
        self._address: PeerAddress | None = None
        self._members = Membership(clock, identity.node_id)
        self._gossip = Gossip(
            self._transport, identity, self._members, clock, self._describe, bootstrap=()
        )
        self.network = Swarm(
            self._transport,
            identity.node_id,
            self._members,
            {model.id: model.layer_count},
            clock,
        )
        """Answers requests for the model, over one hop."""
        self._node: LocalNode | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether its node serves."""
        return bool(self._members.records())

    @property
    def pid(self) -> int | None:
        """The process id of its node; None while it is started."""
        return None if self._node is None or self._node.address is None else self._node.pid

    async def start(self) -> None:
        """Bind, and start the node process; it loads its weights after this has returned."""
        self._address = await self._transport.bind()
        door = FrontDoor(self._gossip)
        self._tasks = [
            asyncio.create_task(self._transport.serve(door.handle)),
            asyncio.create_task(self._gossip.run()),
            asyncio.create_task(self._keep()),
        ]

    async def close(self) -> None:
        """End the node process and everything else; idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self.network.close()
        await self._end()
        await self._transport.close()

    async def _keep(self) -> None:
        """Keep one node process alive."""
        delay = FIRST_DELAY_SECONDS
        while True:
            since = self._clock.monotonic()
            try:
                await self._run()
            except UnisonoError as error:
                log.warning("the replica does not start: %s", error)
            await self._end()
            if self._clock.monotonic() - since > STEADY_SECONDS:
                delay = FIRST_DELAY_SECONDS
            log.warning("the replica ended; it is started again in %.0f s", delay)
            await self._clock.sleep(delay)
            delay = min(LONGEST_DELAY_SECONDS, 2 * delay)

    async def _run(self) -> None:
        """Start a node process and return when it has ended."""
        settings = NodeSettings(
            model=self._model.id,
            join=str(self._address),
            layers=LayerRange(0, self._model.layer_count),
            transport="tcp",
            cache=self._cache,
            threads=self._threads,
        )
        starting = asyncio.ensure_future(asyncio.to_thread(start_node, settings))
        try:
            node = await asyncio.shield(starting)
            self._node = node
        except asyncio.CancelledError:
            # Nobody else knows the process that is being made.
            self._node = await starting
            raise
        except (EOFError, OSError) as error:
            raise ConfigurationError(f"no node process can be started: {error}") from error
        await node.ready()
        log.info("the replica serves %s as process %d", self._model.name, node.pid)
        while node.process.is_alive():
            await self._clock.sleep(_LOOK_SECONDS)

    async def _end(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            if node.address is None:
                node.kill()  # it is still loading, and would finish that first
            await node.stop()

    def _describe(self) -> NodeRecord:
        """What this end says of itself: that it holds nothing."""
        assert self._address is not None
        return NodeRecord.of_member(self._address)
