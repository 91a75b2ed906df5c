"""A gateway: transport, membership, swarm and HTTP server. It never loads torch."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from unisono.clock import Clock, SystemClock
from unisono.compose.audits import Audits
from unisono.compose.chain_settings import ChainSettings
from unisono.compose.front_door import FrontDoor
from unisono.compose.hearing import AuditSettings
from unisono.compose.herald import Herald
from unisono.compose.node_settings import beacon_operators, join_addresses
from unisono.compose.reach import Reach
from unisono.compose.replica import Replica
from unisono.compose.served import served_models
from unisono.compose.service_levels import ServiceLevels
from unisono.errors import ConfigurationError, PeerGone, WireError
from unisono.gateway import (
    GatewayMetrics,
    GatewayServer,
    GatewayService,
    GatewaySettings,
    ReceiptStore,
    create_app,
    fallback_models,
    parse_fallbacks,
    serve,
    wants_replica,
)
from unisono.gateway.payments import ChannelNote, Statement
from unisono.market.service_log import ServiceLog
from unisono.market.sla import WINDOW_SECONDS
from unisono.models.store import ModelStore, StoredModel
from unisono.numerics.ensemble import choose_jointly
from unisono.routing.coverage import first_gap
from unisono.routing.gossip import Gossip
from unisono.routing.membership import Membership
from unisono.routing.swarm import Members, Swarm, SwarmSettings
from unisono.types import NodeId, PeerAddress
from unisono.verification.policy import DEFAULT_RATE
from unisono.wire.claims import EPOCH_SECONDS
from unisono.wire.identity import Identity
from unisono.wire.records import LEASE_SECONDS, NodeRecord
from unisono.wire.transports import make_transport
from unisono.wire.transports.base import Stream, Transport

if TYPE_CHECKING:
    from unisono.compose.accusations import Accusations
    from unisono.compose.audits import Secure
    from unisono.compose.staked import StakedMembers
    from unisono.compose.wallet import Wallet
    from unisono.settlement.payments.purse import Purse

log = logging.getLogger(__name__)

FIRST_JOIN_SECONDS = 10.0
"""After which a gateway goes on without its network, and keeps trying."""


class FrontSettings(msgspec.Struct, frozen=True):
    """How to run a gateway."""

    model: str
    also: tuple[str, ...] = ()
    """More models that are served."""
    join: str | None = None
    """Addresses of members of the network, with commas between them; None: this is the first."""
    view: int = 512
    """Records of nodes that it keeps: a gateway chooses among more nodes than others watch."""
    host: str = "127.0.0.1"
    port: int = 8000
    transport: str = "iroh"
    bind: str = "127.0.0.1:0"
    relays: str | None = None
    """Addresses of relays to be reached through, with commas between them."""
    draft: bool = True
    """Whether first hops may guess tokens ahead."""
    key: str | None = None
    cache: str | None = None
    receipts: str | None = None
    """SQLite file; None: receipts live as long as the gateway."""
    receipts_kept: int = 10_000
    api_keys: tuple[str, ...] = ()
    max_running_answers: int = 64
    fallbacks: tuple[str, ...] = ()
    """In the order in which they are asked, as `gateway.fallback` writes them."""
    fallback_keys: tuple[str, ...] = ()
    """Where keys of remote fallbacks are, never the keys."""
    fall_back_when_full: bool = False
    availability_threshold: int = 900
    """In thousandths; see `GatewaySettings`."""
    audit_rate: int = DEFAULT_RATE
    """Claims per million that committees replay; see `AuditSettings`."""
    beacon: tuple[str, ...] = ()
    """Node ids of the beacon's operators; empty: the network's founder, as first heard."""
    epoch_seconds: int = EPOCH_SECONDS
    """Length of an epoch: the same for all members of a network."""
    chain: ChainSettings | None = None
    """Where nodes are paid; None: only those that serve for nothing are asked."""
    price_seconds: float = 0.1
    """See `SwarmSettings`."""
    accuse: bool = True
    """Whether claims that audits find false are taken to the committee of the chain, with a bond;
    only where nodes are paid."""
    least_stake: int = 0
    """Units that every hop must have staked, whatever a request asks for."""
    service_window: int = WINDOW_SECONDS
    """Seconds over which service levels are promised: the same for all members of a network."""


class Front:
    """A running gateway. Use: `start`, then `wait` or `close`."""

    def __init__(
        self,
        settings: FrontSettings,
        *,
        transport: Transport | None = None,
        identity: Identity | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        identity = identity or Identity.kept_at(settings.key)
        self.identity = identity
        self._clock = clock or SystemClock()
        relays = join_addresses(settings.relays)
        self._transport = transport or make_transport(
            settings.transport, self.identity, settings.bind, relays=relays, clock=self._clock
        )
        self.address: PeerAddress | None = None
        self.members = Membership(self._clock, self.identity.node_id, view=settings.view)
        self.gossip = Gossip(
            self._transport,
            self.identity,
            self.members,
            self._clock,
            self._describe,
            bootstrap=join_addresses(settings.join),
        )
        self.herald = Herald(
            self.identity,
            self._transport,
            self.members,
            self._clock,
            operators=beacon_operators(settings.beacon),
            founder=not join_addresses(settings.join),
            auditor=True,
            epoch_seconds=settings.epoch_seconds,
            on_conviction=lambda convicted: self._convict(convicted.node),
        )
        self.audits: Audits | None = None
        self.metrics = GatewayMetrics()
        self._reach = Reach(self._transport, self.members, self._clock, own_relays=bool(relays))
        self.swarm: Swarm | None = None
        self.server: GatewayServer | None = None
        self.model: StoredModel | None = None
        self.receipts: ReceiptStore | None = None
        self.wallet: Wallet | None = None
        self.accusations: Accusations | None = None
        self.levels: ServiceLevels | None = None
        self.replica: Replica | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def bind(self) -> PeerAddress:
        """Open the address that nodes join with, before anything else is loaded."""
        settings = self._settings
        cache = Path(settings.cache) if settings.cache else None
        self.model = await asyncio.to_thread(ModelStore(cache).ensure, settings.model)
        self.address = await self._transport.bind()
        door = FrontDoor(self.gossip)
        door.board = self.herald.board
        self._tasks = [
            asyncio.create_task(self._transport.serve(door.handle)),
            asyncio.create_task(self._take_part()),
            asyncio.create_task(self._reach.keep(self._moved)),
            asyncio.create_task(self.herald.run()),
            asyncio.create_task(self.herald.board.run()),
        ]
        return self.address

    def _moved(self, address: PeerAddress) -> None:
        self.address = address
        self.gossip.changed()

    def _convict(self, node: NodeId) -> None:
        """Send a node no more work; before there is a swarm, `start` catches up."""
        if self.swarm is not None:
            self.swarm.convict(node)
        if self.levels is not None:
            self.levels.convicted(node, self.herald.bulletin.convicted_at(node) or 0.0)

    async def _take_part(self) -> None:
        """Join and stay, however long it takes: a gateway answers clients without a network too."""
        try:
            await self.gossip.join(FIRST_JOIN_SECONDS)
        except WireError as error:
            log.warning("cannot join yet: %s", error)
        await self.gossip.run()

    def _describe(self) -> NodeRecord:
        """What the gateway says of itself: where it is, and that it holds nothing."""
        assert self.address is not None
        return NodeRecord.of_member(self.address)

    async def start(self) -> GatewayServer:
        """Load the tokenizer and open the HTTP endpoint.

        Raises:
            UnisonoError: the model cannot be used or the port is taken.
        """
        if self.address is None:
            await self.bind()
        assert self.model is not None
        settings, model = self._settings, self.model
        store = ModelStore(Path(settings.cache) if settings.cache else None)
        models = await served_models(
            store, model, (*settings.also, *fallback_models(settings.fallbacks))
        )
        if wants_replica(settings.fallbacks):
            self.replica = Replica(model, self.identity, self._clock, cache=settings.cache)
            await self.replica.start()
        fallbacks = parse_fallbacks(
            settings.fallbacks,
            settings.fallback_keys,
            self.replica.network if self.replica else None,
        )
        metrics = self.metrics
        self.receipts = ReceiptStore(
            Path(settings.receipts) if settings.receipts else None,
            max_count=settings.receipts_kept,
        )
        purse: Purse | None = None
        members: Members = self.members
        secure = None
        if settings.chain is not None:
            purse, staked = await self._open_wallet(settings.chain)
            members, secure = staked, self._secured(staked, model)
            await self._accuse(model)
        self.swarm = Swarm(
            self._transport,
            self.identity.node_id,
            members,
            {each.id: each.layer_count for each in models},
            self._clock,
            metrics.observe_hop,
            settings=SwarmSettings(
                draft=settings.draft,
                price_seconds=settings.price_seconds,
                epoch_seconds=settings.epoch_seconds,
                least_stake=settings.least_stake,
            ),
            here=lambda: self.gossip.exchanges.position.coordinate,
            combine=choose_jointly,
            purse=purse,
            row_bytes={each.id: each.row_bytes for each in models if each.row_bytes},
        )
        self._tasks.append(asyncio.create_task(self.swarm.keep_warm()))
        levels = self.levels = self._measure(purse)
        for convicted in self.herald.bulletin.convicted:
            self._convict(convicted.node)
        self.audits = Audits(
            self.identity,
            self._transport,
            self.members,
            self._clock,
            self.herald,
            self.receipts,
            metrics,
            {model.id: model.manifest.config.hidden_size},
            AuditSettings(rate=settings.audit_rate),
            self.swarm.convict,
            levels.audited,
            secure,
            self.accusations.sue if self.accusations and settings.accuse else None,
        )
        self._tasks.append(asyncio.create_task(self.audits.run()))
        service = GatewayService(
            network=self.swarm,
            models=models,
            identity=self.identity,
            receipts=self.receipts,
            settings=GatewaySettings(
                api_keys=settings.api_keys,
                max_running_answers=settings.max_running_answers,
                availability_threshold=settings.availability_threshold,
                fall_back_when_full=settings.fall_back_when_full,
            ),
            clock=self._clock,
            metrics=metrics,
            fallbacks=fallbacks,
            audits=self.audits,
            payments=None if purse is None else partial(_statement, purse),
            levels=levels,
        )
        levels.ready = lambda: service.not_ready() is None
        self._tasks.append(asyncio.create_task(levels.run()))
        self.server = await serve(create_app(service), settings.host, settings.port)
        return self.server

    def _measure(self, purse: Purse | None) -> ServiceLevels:
        """What measures service levels, kept beside the receipts.

        Raises:
            ConfigurationError: its file cannot be used.
        """
        assert self.swarm is not None
        receipts = self._settings.receipts
        kept = ServiceLog(
            Path(receipts).with_suffix(".service.sqlite") if receipts else None,
            self._settings.service_window,
            LEASE_SECONDS,
            self._clock.now(),
        )
        return ServiceLevels(
            kept,
            self.members,
            self._transport,
            self._clock,
            self.swarm.experience.reputation,
            purse,
        )

    def _secured(self, members: StakedMembers, model: StoredModel) -> Secure | None:
        """What has claims signed for the chain; None where no court is."""
        assert self.wallet is not None
        deployment, folder = self.wallet.deployment, self.wallet.folder
        if "court" not in deployment.contracts:
            return None
        from unisono.compose.sureties import Sureties

        return Sureties(
            members,
            self._transport,
            self._clock,
            deployment,
            self.wallet.key.address,
            model,
            None if folder is None else folder / "sureties",
        ).secure

    async def _accuse(self, model: StoredModel) -> None:
        """Follow cases before the committee of the chain, where there is one."""
        from unisono.compose.accusations import Accusations

        assert self.wallet is not None
        assert self.receipts is not None
        self.accusations = await Accusations.open(
            self.wallet,
            self.identity,
            self._transport,
            self.members.address_of,
            self._clock,
            model,
            self.receipts,
            self.metrics,
        )
        if self.accusations is not None:
            self._tasks.append(asyncio.create_task(self.accusations.run()))

    async def _open_wallet(self, chain: ChainSettings) -> tuple[Purse, StakedMembers]:
        """What pays nodes, and the members with the stakes that they have."""
        from unisono.compose.staked import StakedMembers
        from unisono.compose.wallet import Wallet

        self.wallet = await Wallet.open(chain, self.identity, self._clock)
        staked = StakedMembers(self.members, self.wallet.registry(), self._clock)
        self._tasks.append(asyncio.create_task(staked.run()))
        return self.wallet.purse(chain.deposit, self._settings.service_window), staked

    async def call(self, node: NodeId) -> Stream:
        """A stream to a member.

        Raises:
            PeerGone: nobody here knows it.
            WireError: it cannot be reached.
        """
        for record in self.members.records():
            if record.node == node:
                return await self._transport.dial(record.address)
        raise PeerGone(f"node {node} is not known here, or not any more")

    async def wait_for_coverage(self, seconds: float) -> None:
        """Return once live nodes form a chain through the whole model.

        Raises:
            ConfigurationError: not within `seconds`.
        """
        assert self.model is not None
        deadline = self._clock.monotonic() + seconds
        while True:
            gap = first_gap(self.members.records(), self.model.id, self.model.layer_count)
            if gap is None:
                return
            if self._clock.monotonic() > deadline:
                raise ConfigurationError(
                    f"after {seconds:.0f} s no node continues a chain at layer {gap} of "
                    f"{self.model.layer_count}"
                )
            await self._clock.sleep(0.02)

    async def close(self) -> None:
        """Stop everything; idempotent."""
        if self.server is not None:
            await self.server.close(grace_seconds=1)
        if self.replica is not None:
            await self.replica.close()
        if self.swarm is not None:
            await self.swarm.close()
        if self.address is not None:
            await self.gossip.leave()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        self._tasks = []
        await self._transport.close()
        if self.wallet is not None:
            wallet, self.wallet = self.wallet, None
            await wallet.close()
        if self.receipts is not None:
            self.receipts.close()
        if self.levels is not None:
            self.levels.close()


def _statement(purse: Purse) -> Statement:
    (chain, contract) = next(iter(purse.wallets))
    channels = [
        ChannelNote(place.payee, deposit, a.promised, a.charged, a.reserved)
        for place, a, deposit in purse.accounts()
    ]
    return Statement(payer=purse.address, chain=chain, contract=contract, channels=channels)
