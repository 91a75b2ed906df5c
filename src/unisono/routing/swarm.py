"""The network as the gateway uses it: chooses chains of nodes, opens and mends them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from msgspec import UNSET

from unisono.clock import Clock
from unisono.errors import (
    CapacityMissing,
    CoverageMissing,
    InsufficientFunds,
    NetworkError,
    PeerCheating,
    SettlementError,
)
from unisono.routing.answer import MAX_ATTEMPTS, Attempt, RoutedAnswer
from unisono.routing.chain import Chain, Weighing
from unisono.routing.coordinates import ORIGIN, Coordinate
from unisono.routing.costs import ROW_BYTES, Costs
from unisono.routing.demand import ANY, Demand
from unisono.routing.ensemble import Combine, EnsembleAnswer
from unisono.routing.experience import Experience
from unisono.routing.health import status_of
from unisono.routing.network import NodeStatus
from unisono.routing.paths import Path, best_path, ranked_paths, standbys
from unisono.routing.payments import Purse
from unisono.routing.prefixes import prefix_keys
from unisono.routing.quorum import QuorumAnswer
from unisono.routing.replies import HopLost, HopRefused
from unisono.routing.territory import Territory
from unisono.types import GenerationRequest, LayerRange, ModelId, NodeId, SessionId
from unisono.wire.claims import EPOCH_SECONDS
from unisono.wire.link import Link, Links
from unisono.wire.messages import Claimed, Message
from unisono.wire.records import NodeRecord
from unisono.wire.transports.base import Transport

log = logging.getLogger(__name__)

BACK_OFF_SECONDS = 0.2
"""Before the second attempt; doubles with each."""
WARM_SECONDS = 5.0
"""How often the links to nodes that may serve next are looked after."""
WARM_PATHS = 2
"""Disjoint paths of every model whose nodes, with their standbys, are kept connected."""


class Members(Protocol):
    """Who is here (`routing.membership`)."""

    def records(self) -> list[NodeRecord]:
        """Records whose lease runs, of nodes that answered when last tried."""
        ...

    def known(self) -> list[tuple[NodeRecord, bool]]:
        """Every record whose lease runs, leaving nodes included, and whether the node answers."""
        ...

    def suspect(self, node: NodeId) -> None:
        """The node did not answer: leave it out until it announces itself again."""
        ...


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """How a gateway uses its network."""

    draft: bool = True
    """Whether first hops may guess tokens ahead."""
    hedge: bool = True
    """Whether a second chain is opened when the first token is late."""
    price_seconds: float = 0.1
    """Seconds that a client would wait to save one millionth of the unit of prices."""
    epoch_seconds: int = EPOCH_SECONDS
    """Length of the network's epochs, which claims name."""
    least_stake: int = 0
    """Millionths of the unit that every hop must have staked, whatever a request asks for."""


class Swarm:
    """Implements `routing.network.Network` over a transport and what is known of its members."""

    def __init__(
        self,
        transport: Transport,
        identity: NodeId,
        members: Members,
        layer_counts: dict[ModelId, int],
        clock: Clock,
        observe_hop: Callable[[NodeId, float], None] | None = None,
        *,
        settings: SwarmSettings | None = None,
        purse: Purse | None = None,
        here: Callable[[], Coordinate] = lambda: ORIGIN,
        combine: Combine | None = None,
        row_bytes: Mapping[ModelId, int] | None = None,
    ) -> None:
        """`observe_hop` is told (node, seconds) of every ping's round trip; `here` tells the
        gateway's own network coordinate; `combine` chooses the tokens of ensembles (None: they
        are not served); `row_bytes` says how many bytes a row of each model has between two hops
        (`ROW_BYTES` where it does not)."""
        self.transport = transport
        self.identity = identity
        self.members = members
        self.clock = clock
        self.settings = settings or SwarmSettings()
        self.experience = Experience(
            clock,
            here=here,
            salt=int(identity[:8], 16),
            price_seconds=self.settings.price_seconds,
            wallets=purse.wallets if purse else frozenset(),
        )
        self.purse = purse
        self._observe_hop = observe_hop
        self._combine = combine
        self.links = Links(transport, clock, self._receive, self._lost, self._pinged)
        self._layer_counts = layer_counts
        self._row_bytes = row_bytes or {}
        self._chains: dict[SessionId, Chain] = {}
        self._answers: set[RoutedAnswer] = set()
        self.first_token = 0.0
        """Seconds that first tokens took lately; 0 until one has come."""
        self.hedged = 0
        """Answers for which a second chain is open since the first token was late."""

    async def open(
        self,
        request: GenerationRequest,
        *,
        top_logprobs: int = -1,
        quorum: int = 1,
        demand: Demand = ANY,
    ) -> RoutedAnswer | QuorumAnswer | EnsembleAnswer:
        """See `Network.open`."""
        demand = replace(demand, stake=max(demand.stake, self.settings.least_stake))
        if request.ensemble is not UNSET:
            if self._combine is None:
                raise CoverageMissing("ensembles of models are not served here")
            ensemble = EnsembleAnswer(self, request, self._combine, demand)
            await ensemble.start()
            return ensemble
        if quorum == 1:
            return await self.route(request, top_logprobs, demand)
        answer = QuorumAnswer(self, request, top_logprobs, quorum, demand.shared(quorum))
        await answer.start()
        return answer

    async def route(
        self,
        request: GenerationRequest,
        top_logprobs: int,
        demand: Demand = ANY,
        territory: Territory | None = None,
        weighing: Weighing | None = None,
    ) -> RoutedAnswer:
        """An answer over one chain, which has no node in common with foreign territories, and
        whose tokens `weighing` chooses, if it is given.

        Raises:
            CoverageMissing, CapacityMissing, OfferMissing, NetworkUnreachable: as `Network.open`.
        """
        answer = RoutedAnswer(self, request, top_logprobs, demand, territory, weighing)
        await answer.start()
        self._answers.add(answer)
        return answer

    @property
    def running(self) -> int:
        """Answers that are not complete."""
        return len(self._answers)

    def convict(self, node: NodeId) -> None:
        """Send a node that is proven guilty no more sessions."""
        if not self.experience.reputation.convicted(node):
            self.experience.reputation.convict(node)

    def nodes(self) -> tuple[NodeStatus, ...]:
        """See `Network.nodes`."""
        return tuple(
            status_of(
                r,
                alive=alive,
                rtt_us=self._round_trip_us(r.node),
                convicted=self.experience.reputation.convicted(r.node),
            )
            for r, alive in self.members.known()
        )

    def _round_trip_us(self, node: NodeId) -> int:
        """As measured; 0 if it was not."""
        measured = self.experience.links.measured(node)
        return 0 if measured is None else int(measured.mean * 1e6)

    async def keep_warm(self) -> None:
        """Keep links with the nodes that will be asked next and with their standbys, until
        cancelled: a chain that is opened or mended then waits for no handshake."""
        while True:
            for model, layer_count in self._layer_counts.items():
                wanted = self._next_nodes(model, layer_count)
                await self.links.warm([record.address for record in wanted])
                await self._warm_channels(wanted)
            await self.clock.sleep(WARM_SECONDS)

    async def _warm_channels(self, records: Sequence[NodeRecord]) -> None:
        """Open channels to nodes that will be asked next, so that no answer waits for a block."""
        for record in records:
            if self.purse is None or record.terms is None:
                continue
            try:
                await self.purse.prepare(record, 1)
            except SettlementError as error:
                log.warning("no channel to node %s…: %s", record.node[:8], error)
                return

    def _next_nodes(self, model: ModelId, layer_count: int) -> list[NodeRecord]:
        records = self.members.records()
        costs = self.experience.costs((), 1, keys=(), row_bytes=self._bytes_of(model))
        try:
            paths = ranked_paths(records, model, layer_count, 1, costs, WARM_PATHS)
        except NetworkError:
            return []
        others = [s for path in paths for s in standbys(path, records, 1, costs) if s is not None]
        return [*(hop for path in paths for hop in path), *others]

    def _bytes_of(self, model: ModelId) -> int:
        return self._row_bytes.get(model, ROW_BYTES)

    async def close(self) -> None:
        """See `Network.close`."""
        for answer in tuple(self._answers):
            await answer.cancel()
        await self.links.close()

    def _receive(self, link: Link, message: Message, body: memoryview) -> None:
        """A message of a hop: it is for the chain of its session.

        Raises:
            PeerCheating: it names none, or breaks the protocol.
        """
        session = message.claim.session if isinstance(message, Claimed) else None
        session = session or getattr(message, "session", None)
        if session is None:
            raise PeerCheating(f"{type(message).__name__} on a link to a gateway")
        chain = self._chains.get(session)
        if chain is not None:  # else it has ended, and this crossed its end
            chain.take(link, message, body)

    def _lost(self, link: Link) -> None:
        for chain in tuple(self._chains.values()):
            chain.lost_link(link)

    def _pinged(self, node: NodeId, seconds: float) -> None:
        self.experience.links.pinged(node, seconds)
        if self._observe_hop is not None:
            self._observe_hop(node, seconds)

    def forget(self, answer: RoutedAnswer) -> None:
        """The answer has ended."""
        self._answers.discard(answer)

    def release(self, attempt: Attempt) -> None:
        """End an attempt: its sessions no longer weigh on the choice of the next."""
        attempt.chain.close()
        self._chains.pop(attempt.chain.session, None)
        attempt.trial.close()

    async def attempt(
        self,
        request: GenerationRequest,
        generated: Sequence[int],
        top_logprobs: int,
        avoid: frozenset[NodeId],
        territory: Territory,
        demand: Demand = ANY,
        weighing: Weighing | None = None,
    ) -> Attempt:
        """Choose a chain and open it; hops that fail are left out and the choice repeated.

        Hops that refuse are left out too, and asked again when no others are left. Where
        territories divide the nodes, one that holds the whole model comes before any chain of
        several: it alone answers for what it says.

        Raises:
            NetworkUnreachable, CoverageMissing, CapacityMissing, OfferMissing: no chain is left.
        """
        positions = len(request.prompt) + request.max_tokens
        count = self._layer_counts.get(request.model)
        if count is None:
            raise CoverageMissing(f"model {request.model[:12]}… is not served here")
        full: NetworkError | None = None
        refusing: frozenset[NodeId] = frozenset()
        tokens = (*request.prompt, *generated)
        keys = prefix_keys(tokens)
        left = request.max_tokens - len(generated)

        def choose() -> tuple[Path, Costs]:
            failed = avoid | refusing
            # after a failure nodes that proved themselves come first
            costs = self.experience.costs(
                tokens,
                left,
                keys=keys,
                retry=bool(failed),
                demand=demand,
                row_bytes=self._bytes_of(request.model),
            )
            records = self.members.records()
            failed |= territory.foreign()
            if not territory.alone:
                whole = [r for r in records if r.layers == LayerRange(0, count)]
                with suppress(NetworkError):
                    return best_path(whole, request.model, count, positions, costs, failed), costs
            return best_path(records, request.model, count, positions, costs, failed), costs

        for number in range(MAX_ATTEMPTS):
            try:
                try:
                    path, costs = choose()
                except NetworkError:
                    if not refusing:
                        raise
                    await self.clock.sleep(BACK_OFF_SECONDS * 2 ** (number - 1))
                    refusing = frozenset()
                    path, costs = choose()
            except CoverageMissing as error:
                raise full or error from None
            chain = Chain(
                self.links,
                self.identity,
                path,
                request,
                generated,
                top_logprobs,
                draft=self.settings.draft and weighing is None,
                clock=self.clock,
                purse=self.purse,
                layer_count=count,
                epoch_seconds=self.settings.epoch_seconds,
                weighing=weighing,
            )
            trial = self.experience.trial(path, costs, positions, keys=keys)
            attempt = Attempt(chain, trial)
            self._chains[chain.session] = chain
            chain.on_spared = trial.spared
            if weighing is None:  # else a chain waits for others, and its pace says little
                chain.on_tokens = trial.arrived
            taken = territory.take(path)
            try:
                await self._fund(path, costs, count)
                await chain.open()
            except (HopRefused, HopLost) as error:
                log.info("attempt %d: %s", number + 1, error)
                for failure in ({error.node: error} | chain.failures).values():
                    if isinstance(failure, HopRefused):
                        trial.refused(failure.node, failure.code)
                        refusing |= {failure.node}
                        if failure.code == "capacity":
                            full = CapacityMissing(str(failure))
                        elif failure.code == "unpayable":
                            full = NetworkError(str(failure))
                    else:
                        trial.lost(failure.node)
                        self.members.suspect(failure.node)
                        avoid |= {failure.node}
                self.release(attempt)
                territory.leave(taken)
                continue
            except BaseException:
                self.release(attempt)
                territory.leave(taken)
                raise
            trial.opened()
            return attempt
        raise full or CoverageMissing(
            f"no chain of nodes opened a session in {MAX_ATTEMPTS} attempts"
        )

    async def _fund(self, path: Path, costs: Costs, layer_count: int) -> None:
        """See to it that every hop can be paid for the longest answer.

        Raises:
            InsufficientFunds: the payer has not so much.
            HopRefused: a hop cannot be paid, since its terms are no good or the ledger is away;
                `code` is "unpayable".
        """
        for record in path:
            if self.purse is None or record.terms is None:
                continue
            try:
                await self.purse.prepare(record, costs.worst_price((record,), layer_count))
            except InsufficientFunds:
                raise
            except SettlementError as error:
                message = f"node {record.node[:8]} cannot be paid now: {error}"
                raise HopRefused(message, "unpayable", record.node) from error

    async def mend(
        self,
        attempt: Attempt,
        positions: int,
        avoid: frozenset[NodeId],
        territory: Territory,
    ) -> bool:
        """Replace a chain's lost hops by others that hold the same layers; False if there are
        none for some of them.

        Raises:
            HopRefused, HopLost: a replacement cannot be had, or one more hop is lost.
        """
        chain, trial = attempt.chain, attempt.trial
        if len(chain.lost) == len(chain.hops) or chain.beyond_repair:
            return False
        path = tuple(chain.hops)
        lost = {path[i].node for i in chain.lost}
        avoid |= territory.foreign()
        records = [r for r in self.members.records() if r.node not in avoid | lost]
        found = standbys(path, records, positions, trial.costs, avoid)
        new = {i: standby for i in chain.lost if (standby := found[i]) is not None}
        if len(new) < len(chain.lost):
            return False
        await self._fund(tuple(new.values()), trial.costs, path[-1].layers.stop)
        # first, so that a new hop that fails at once is known to have been part of the attempt
        trial.replaced(tuple(new.get(i, hop) for i, hop in enumerate(path)))
        territory.take(new.values())
        await chain.replace(new)
        return True
