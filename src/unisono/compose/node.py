"""A node: transport, weights, engine, worker, and its place in a network."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from unisono.clock import Clock, SystemClock
from unisono.compose.front_door import FrontDoor
from unisono.compose.herald import Herald
from unisono.compose.node_settings import NodeSettings as NodeSettings
from unisono.compose.node_settings import beacon_operators, join_addresses
from unisono.compose.offer import model_facts, offered_memory
from unisono.compose.reach import Reach
from unisono.compose.regenerating import HOLDINGS, Load
from unisono.compose.replays import EngineReplayer, StoreReplayer
from unisono.compose.respondent import Respondent
from unisono.compose.sale import Sale
from unisono.errors import ConfigurationError, PeerGone, PeerRefused, WireError
from unisono.execution.engine import Engine
from unisono.execution.kept import KeptRows
from unisono.execution.worker import Worker
from unisono.models.decoder import Decoder, make_decoder
from unisono.models.devices import choose_device
from unisono.models.loading import load_block
from unisono.models.store import ModelStore, StoredModel
from unisono.models.weights import BlockWeights
from unisono.native.self_test import self_test
from unisono.routing.gossip import Gossip
from unisono.routing.membership import Membership
from unisono.routing.placement import NodeFacts, choose_block, should_move
from unisono.types import LayerRange, PeerAddress
from unisono.verification.fraud.hosting import GameHost
from unisono.verification.stakes.member import Member
from unisono.verification.stakes.work import Recomputer
from unisono.wire.identity import Identity
from unisono.wire.records import NodeRecord
from unisono.wire.transports import make_transport
from unisono.wire.transports.base import Transport

if TYPE_CHECKING:  # nodes without a chain do not load its libraries
    from unisono.compose.counsel import Counsel

log = logging.getLogger(__name__)

FIRST_JOIN_SECONDS = 10.0
"""A node that needs the network to choose its block waits this long for it."""
JOIN_SECONDS = 600.0
"""A node that cannot reach its network this long gives up."""
MOVE_SECONDS = 30.0
"""How long a node that takes another block serves the answers of the old one."""
MAX_REPLAYED = 8192
"""Positions of an answer that this node replays for auditors."""
_LOOK_SECONDS = 5.0

Wrap = Callable[[Decoder, StoredModel, BlockWeights], Decoder]


class Node:
    """Use: `start`, then `run` until cancelled, then `close`."""

    def __init__(
        self,
        settings: NodeSettings,
        *,
        transport: Transport | None = None,
        identity: Identity | None = None,
        clock: Clock | None = None,
        weights: Load = load_block,
        holdings: str = HOLDINGS,
        wrap: Wrap | None = None,
    ) -> None:
        """`weights` reads a block: a function at the top of a module. `holdings` names what makes
        what it defends in disputes (`regenerating.Setup`). `wrap` puts something around what
        computes."""
        self._settings = settings
        self._weights, self._holdings, self._wrap = weights, holdings, wrap
        identity = identity or Identity.kept_at(settings.key)
        self.identity = identity
        self._clock = clock or SystemClock()
        relays = join_addresses(settings.relays)
        self._transport = transport or make_transport(
            settings.transport,
            identity,
            settings.bind,
            relays=relays,
            serve_relay=settings.serve_relay,
            clock=self._clock,
        )
        self._bootstrap = join_addresses(settings.join)
        # whose operator fixed its layers offers no memory: others must not wait for it to move
        self._memory = 0 if settings.layers is not None else offered_memory(settings.memory)
        self._engine: Engine | None = None
        self._address: PeerAddress | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.members = Membership(self._clock, identity.node_id)
        self.gossip = Gossip(
            self._transport,
            identity,
            self.members,
            self._clock,
            self._describe,
            bootstrap=self._bootstrap,
        )
        self._reach = Reach(self._transport, self.members, self._clock, own_relays=bool(relays))
        self.herald = Herald(
            identity,
            self._transport,
            self.members,
            self._clock,
            operators=beacon_operators(settings.beacon),
            founder=not self._bootstrap,
            epoch_seconds=settings.epoch_seconds,
        )
        self._door = FrontDoor(self.gossip)
        self._door.board = self.herald.board
        self._kept = KeptRows(self._clock, epoch_seconds=settings.epoch_seconds)
        self.worker: Worker | None = None
        self._sale: Sale | None = None
        self.layers: LayerRange | None = settings.layers

    async def start(self, report: Callable[[str], None] | None = None) -> PeerAddress:
        """Bind, find a block, load it, serve it; returns the node's address.

        Raises:
            UnisonoError: the model, the block, the address or the machine is unusable.
        """
        say = report or log.info
        settings = self._settings
        device = await asyncio.to_thread(choose_device, settings.device)
        await asyncio.to_thread(self_test, device)
        address = self._address = await self._transport.bind()
        self._tasks.append(asyncio.create_task(self._transport.serve(self._door.handle)))
        self._tasks.append(asyncio.create_task(self.herald.run()))
        self._tasks.append(asyncio.create_task(self.herald.board.run()))
        store = ModelStore(Path(self._settings.cache) if self._settings.cache else None)
        say("opening the model")
        model = await asyncio.to_thread(store.ensure, self._settings.model)
        self._door.respondent = Respondent(
            self.identity,
            model,
            self._kept,
            self._clock,
            self._weights,
            self._settings.epoch_seconds,
            self._holdings,
        )
        self._door.host = GameHost(self.identity, self._transport, self._clock)
        self._sale = await Sale.open(
            settings.chain,
            settings.seller,
            self.identity,
            self._clock,
            model.layer_count,
            say,
            settings.service_window,
        )
        if self._sale is not None:
            desk = self._sale.desk(
                self.members, settings.service_window, self.herald.bulletin.convicted_at
            )
            self._door.credits = desk
            self._tasks.append(asyncio.create_task(desk.run()))
            counsel = await self._sale.counsel(self._door.respondent, model, settings.epoch_seconds)
            if counsel is not None:
                self._door.respondent.counsel = counsel
                self._tasks.append(asyncio.create_task(counsel.run()))
                await self._take_duty(self._sale, counsel, model)
        if self.layers is None and not self._bootstrap:
            self.layers = LayerRange(0, model.layer_count)
        joined = False
        if self.layers is None:
            say("joining the network")
            await self._join_early()
            # It stays a member while it loads, which may take longer than a lease.
            self._tasks.append(asyncio.create_task(self.gossip.run()))
            self.layers = self._choose(model)
            joined = True
        say(f"loading layers {self.layers} of {model.name}")
        await self._serve(model, self.layers, device)
        if joined:
            self._tasks.append(asyncio.create_task(self._resettle(model, device)))
        self._tasks.append(asyncio.create_task(self._reach.keep(self._moved)))
        if joined:
            self.gossip.changed()
        else:
            self._tasks.append(asyncio.create_task(self._take_part()))
        return address

    async def run(self) -> None:
        """Serve and take part in the network until cancelled.

        Raises:
            PeerGone: the network could not be reached for `JOIN_SECONDS`.
            PeerRefused: it refuses the node.
        """
        watching = asyncio.create_task(self._watch())
        try:
            done, _ = await asyncio.wait(
                {*self._tasks, watching}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        finally:
            watching.cancel()

    async def drain(self, seconds: float) -> None:
        """Say farewell, take no new sessions, and serve those that run to their end or until other
        nodes have taken them over, for `seconds` at most."""
        if self.worker is None or self._address is None:
            return
        self.worker.leaving = True
        await self.gossip.leave()
        await self.worker.drain(seconds)

    async def close(self) -> None:
        """Say farewell, stop serving and release everything; idempotent."""
        if self._address is not None:
            if self.worker is not None:
                self.worker.leaving = True
            await self.gossip.leave()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        self._tasks = []
        if self.worker is not None:
            await self.worker.close()
        await self._transport.close()
        if self._engine is not None:
            await self._engine.close()
        if self._sale is not None:
            sale, self._sale = self._sale, None
            await sale.close()

    async def _serve(self, model: StoredModel, layers: LayerRange, device: str) -> None:
        """Load a block and serve it."""
        engine = Engine(await asyncio.to_thread(self._load, model, layers, device))
        self._engine = engine
        await engine.warm_up()
        assert self._address is not None
        self.worker = Worker(
            engine,
            model.id,
            self.identity,
            self._transport,
            self._address,
            clock=self._clock,
            kept=self._kept,
            last_signed=self._last_signed(),
            till=None if self._sale is None else self._sale.till,
            epoch_seconds=self._settings.epoch_seconds,
        )
        self.layers = layers
        self._door.service = self.worker.handle
        self._door.committee = Member(
            self.identity,
            EngineReplayer(engine),
            self.herald.bulletin,
            self.herald.bulletin,
            self._clock,
            computes=lambda asked, block: (asked, block) == (model.id, layers),
            hidden=model.manifest.config.hidden_size,
            max_positions=MAX_REPLAYED,
        )

    async def _take_duty(self, sale: Sale, counsel: Counsel, model: StoredModel) -> None:
        """Sit where the committee of a chain draws this node, and contest what is said wrongly of
        its claims."""
        from unisono.compose.jury_duty import Bench

        # the weights of the store, whose hashes are checked: those in memory may be the fault
        stored = StoreReplayer(model, self._settings.threads or 1)

        def recomputer(layers: LayerRange) -> Recomputer:
            engine = self._engine
            return EngineReplayer(engine) if engine and self.layers == layers else stored

        bench = Bench(model.id, model.manifest.config.hidden_size, MAX_REPLAYED, recomputer)
        duty = self._door.jury = await sale.jury_duty(counsel, self.identity, bench, stored)
        if duty is not None:
            self._tasks.append(asyncio.create_task(duty.run()))

    def _last_signed(self) -> Path | None:
        """Where a node that has a stake notes when it signed."""
        key, seller = self._settings.key, self._settings.seller
        return Path(f"{key}.epoch") if key and seller is not None and seller.stake else None

    async def _resettle(self, model: StoredModel, device: str) -> None:
        """Take another block when the network needs it more, as its members come and go."""
        facts = model_facts(model)
        moved_ms = int(self._clock.now() * 1000)
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            if self.worker is None or self.layers is None:
                continue
            block = should_move(
                self.members.records(),
                NodeFacts.of(self._describe(), facts),
                self.layers,
                facts,
                now_ms=int(self._clock.now() * 1000),
                moved_ms=moved_ms,
            )
            if block is None or block == self.layers:
                continue
            log.warning("layers %s are needed more than %s: moving", block, self.layers)
            await self._move(model, block, device)
            moved_ms = int(self._clock.now() * 1000)

    async def _move(self, model: StoredModel, block: LayerRange, device: str) -> None:
        """Serve what runs to its end, give the old block back, and load the new one."""
        worker, engine = self.worker, self._engine
        assert worker is not None
        assert engine is not None
        worker.leaving = True
        self.gossip.changed()
        await worker.drain(MOVE_SECONDS)
        self.worker = self._door.service = self._door.committee = None
        await worker.close()
        await engine.close()
        await self._serve(model, block, device)
        self.gossip.changed()

    def _load(self, model: StoredModel, layers: LayerRange, device: str) -> Decoder:
        settings = self._settings
        weights = self._weights(model, layers)
        decoder = make_decoder(
            model.manifest.config,
            weights,
            device,
            threads=settings.threads,
            kv_bytes=settings.kv_bytes,
        )
        return decoder if self._wrap is None else self._wrap(decoder, model, weights)

    def _describe(self) -> NodeRecord:
        """What this node says of itself."""
        if self.worker is not None:
            record = self.worker.record()
            if self._sale is not None:
                record = self._sale.priced(record)
            return msgspec.structs.replace(
                record, memory=self._memory, relay=self._settings.serve_relay
            )
        assert self._address is not None
        return NodeRecord.of_member(self._address, self._memory)

    def _moved(self, address: PeerAddress) -> None:
        self._address = address
        if self.worker is not None:
            self.worker.address = address
        self.gossip.changed()

    async def _take_part(self) -> None:
        await self.gossip.join(JOIN_SECONDS)
        await self.gossip.run()

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            silence = self.gossip.silence
            if silence > JOIN_SECONDS:
                raise PeerGone(f"no member of the network answered for {silence:.0f} s")

    async def _join_early(self) -> None:
        try:
            await self.gossip.join(FIRST_JOIN_SECONDS)
        except PeerRefused as refusal:
            raise ConfigurationError(f"the network refuses this node: {refusal}") from refusal
        except WireError as error:
            raise ConfigurationError(
                f"cannot join the network: {error}. Does a member run there? Any node or gateway "
                "will do"
            ) from error

    def _choose(self, model: StoredModel) -> LayerRange:
        """The block that helps the network most.

        Raises:
            ConfigurationError: not even one layer fits.
        """
        records = self.members.records()
        others = {r.model for r in records if r.model}
        if others and model.id not in others:
            log.warning(
                "nobody in this network holds model %s… yet; others hold %s…: is --model right?",
                model.id[:12],
                ", ".join(sorted(m[:12] for m in others)),
            )
        position = self.gossip.exchanges.position
        own = NodeFacts(
            node=self.identity.node_id,
            memory=self._memory,
            step_us=0.0,
            row_us=0.0,
            coordinate=position.coordinate,
        )
        return choose_block(records, own, model_facts(model))
