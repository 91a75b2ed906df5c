"""The network as the gateway uses it: chains of announced nodes, replaced when they fail."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

import msgspec

from unisono.clock import Clock
from unisono.errors import (
    AnswerInterrupted,
    CapacityMissing,
    CoverageMissing,
    NetworkError,
    PeerCheating,
    WireError,
)
from unisono.routing.chain import Chain, HopLost, HopRefused
from unisono.routing.directory import Directory
from unisono.routing.network import NodeStatus
from unisono.routing.placement import best_chain
from unisono.types import (
    GenerationRequest,
    ModelId,
    NodeId,
    SampledToken,
    SessionId,
    is_complete,
)
from unisono.wire.claims import HopClaim
from unisono.wire.link import Link, Links
from unisono.wire.messages import Claimed, Message
from unisono.wire.records import NodeRecord
from unisono.wire.transports.base import Transport

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 6
BACK_OFF_SECONDS = 0.2
"""Before the second attempt; doubles with each."""


class Swarm:
    """Implements `routing.network.Network` over a transport and a directory."""

    def __init__(
        self,
        transport: Transport,
        identity: NodeId,
        directory: Directory,
        layer_counts: dict[ModelId, int],
        clock: Clock,
        observe_hop: Callable[[NodeId, float], None] | None = None,
        *,
        draft: bool = True,
    ) -> None:
        """`observe_hop` is told (node, seconds) of every ping's round trip; `draft`: whether first
        hops may guess tokens ahead."""
        self.transport = transport
        self.identity = identity
        self.directory = directory
        self.clock = clock
        self.links = Links(transport, clock, self._receive, self._lost, observe_hop)
        self._layer_counts = layer_counts
        self._chains: dict[SessionId, Chain] = {}
        self.draft = draft
        self._extra: dict[NodeId, int] = {}
        self._answers: set[RoutedAnswer] = set()

    async def open(self, request: GenerationRequest, *, top_logprobs: int = -1) -> RoutedAnswer:
        """See `Network.open`."""
        answer = RoutedAnswer(self, request, top_logprobs)
        await answer.start()
        self._answers.add(answer)
        return answer

    def nodes(self) -> tuple[NodeStatus, ...]:
        """See `Network.nodes`."""
        return tuple(
            NodeStatus(
                node=r.node,
                address=str(r.address),
                model=r.model,
                layers=r.layers,
                free_positions=r.free_positions,
                sessions=r.sessions,
                alive=alive,
            )
            for r, alive in self.directory.all_records()
        )

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

    def forget(self, answer: RoutedAnswer) -> None:
        """The answer has ended."""
        self._answers.discard(answer)

    def release(self, chain: Chain) -> None:
        """End a chain: its sessions no longer weigh on the choice of the next."""
        chain.close()
        self._chains.pop(chain.session, None)
        for hop in chain.hops:
            self._weigh(hop.node, -1)

    def _weigh(self, node: NodeId, change: int) -> None:
        left = self._extra.pop(node, 0) + change
        if left > 0:
            self._extra[node] = left

    async def mend(self, chain: Chain, positions: int, avoid: frozenset[NodeId]) -> bool:
        """Replace a chain's lost hops by others that hold the same layers; False if there are
        none for some of them.

        Raises:
            HopRefused, HopLost: a replacement cannot be had, or one more hop is lost.
        """
        new: dict[int, NodeRecord] = {}
        if len(chain.lost) == len(chain.hops) or chain.beyond_repair:
            return False
        for index in chain.lost:
            old = chain.hops[index]
            kept = [hop for i, hop in enumerate(chain.hops) if i not in chain.lost]
            taken = {hop.node for hop in (*kept, *new.values())}
            standby = [
                self._weighed(r)
                for r in self.directory.records()
                if r.model == old.model
                and r.layers == old.layers
                and r.node not in avoid | taken
                and r.free_positions >= positions
            ]
            if not standby:
                return False
            new[index] = min(standby, key=lambda r: (r.sessions, r.node))
        for index, record in new.items():
            self._weigh(chain.hops[index].node, -1)
            self._weigh(record.node, 1)
        await chain.replace(new)
        return True

    async def chain(
        self,
        request: GenerationRequest,
        generated: list[int],
        top_logprobs: int,
        avoid: frozenset[NodeId],
    ) -> Chain:
        """Choose a chain and open it; hops that fail are left out and the choice repeated.

        Hops that refuse are left out too, and asked again when no others are left.

        Raises:
            CoverageMissing, CapacityMissing: no chain is left.
        """
        positions = len(request.prompt) + request.max_tokens
        count = self._layer_counts.get(request.model)
        if count is None:
            raise CoverageMissing(f"model {request.model[:12]}… is not served here")
        full: NetworkError | None = None
        refusing: frozenset[NodeId] = frozenset()

        def choose() -> tuple[NodeRecord, ...]:
            records = [self._weighed(r) for r in self.directory.records()]
            return best_chain(records, request.model, count, positions, avoid | refusing)

        for attempt in range(MAX_ATTEMPTS):
            try:
                try:
                    hops = choose()
                except NetworkError:
                    if not refusing:
                        raise
                    await self.clock.sleep(BACK_OFF_SECONDS * 2 ** (attempt - 1))
                    refusing = frozenset()
                    hops = choose()
            except CoverageMissing as error:
                raise full or error from None
            chain = Chain(
                self.links,
                self.identity,
                hops,
                request,
                generated,
                top_logprobs,
                draft=self.draft,
            )
            self._chains[chain.session] = chain
            for hop in hops:
                self._weigh(hop.node, 1)
            try:
                await chain.open()
            except (HopRefused, HopLost) as error:
                self.release(chain)
                log.info("attempt %d: %s", attempt + 1, error)
                if isinstance(error, HopRefused):
                    refusing |= {error.node}
                    if error.code == "capacity":
                        full = CapacityMissing(str(error))
                else:
                    self.directory.suspect(error.node)
                    avoid |= {error.node}
                continue
            except BaseException:
                self.release(chain)
                raise
            return chain
        raise full or CoverageMissing(
            f"no chain of nodes opened a session in {MAX_ATTEMPTS} attempts"
        )

    def _weighed(self, record: NodeRecord) -> NodeRecord:
        """The record with this gateway's own sessions, which it may not know of yet."""
        own = self._extra.get(record.node, 0)
        return msgspec.structs.replace(record, sessions=max(record.sessions, own))


class RoutedAnswer:
    """Implements `routing.network.Answer`: one answer over as many chains as it takes."""

    def __init__(self, swarm: Swarm, request: GenerationRequest, top_logprobs: int) -> None:
        self._swarm = swarm
        self._request = request
        self._top_logprobs = top_logprobs
        self._tokens: list[int] = []
        self._chain: Chain | None = None
        self._avoid: frozenset[NodeId] = frozenset()
        self._attempts = 0

    @property
    def attempts(self) -> int:
        """See `Answer.attempts`."""
        return self._attempts

    async def start(self) -> None:
        """Open the first chain.

        Raises:
            CoverageMissing, CapacityMissing: there is none.
        """
        self._chain = await self._swarm.chain(
            self._request, self._tokens, self._top_logprobs, self._avoid
        )
        self._attempts += 1

    def __aiter__(self) -> AsyncIterator[SampledToken]:
        return self._stream()

    async def _stream(self) -> AsyncIterator[SampledToken]:
        while not is_complete(self._request, self._tokens):
            assert self._chain is not None, "the answer was cancelled"
            try:
                token = await self._chain.next()
            except HopLost as lost:
                await self._replace(lost)
                continue
            self._tokens.append(token.token)
            yield token

    async def _replace(self, lost: HopLost) -> bool:
        """Go on with others in the places of the hops that are lost; if there are none over another
        chain, which prefills what is known. The tokens do not change.

        Returns:
            Whether the chain was mended, so that it has all the tokens it had.

        Raises:
            AnswerInterrupted: there is no other chain.
        """
        log.warning("after %d tokens: %s", len(self._tokens), lost)
        positions = len(self._request.prompt) + self._request.max_tokens
        chain = self._chain
        assert chain is not None
        try:
            while True:
                if self.attempts >= MAX_ATTEMPTS:
                    raise AnswerInterrupted(
                        f"the answer failed {self.attempts} times, last: {lost}"
                    )
                for each in (lost, *chain.lost.values()):
                    self._swarm.directory.suspect(each.node)
                    self._avoid |= {each.node}
                try:
                    if not await self._swarm.mend(chain, positions, self._avoid):
                        break
                except HopLost as error:
                    self._attempts += 1
                    lost = error
                except HopRefused as error:
                    self._attempts += 1
                    self._avoid |= {error.node}
                    log.info("mending failed: %s", error)
                else:
                    self._attempts += 1
                    return True
        except BaseException:
            await self._release()
            raise
        await self._release()
        try:
            await self.start()
        except NetworkError as error:
            raise AnswerInterrupted(
                f"a node was lost after {len(self._tokens)} tokens and none replaces it: {error}"
            ) from error
        return False

    async def finish(self, tokens: int) -> tuple[HopClaim, ...]:
        """See `Answer.finish`. A hop that is lost now is replaced once more, for its claim."""
        try:
            while True:
                assert self._chain is not None, "the answer was cancelled"
                try:
                    return await self._chain.finish(tokens)
                except HopLost as lost:
                    known = self._tokens
                    # a new chain computes the last token again, so that it can vouch for it
                    self._tokens = known[: tokens - 1]
                    if not await self._replace(lost):
                        await self._repeat_last(known[tokens - 1])
                    self._tokens = known
        finally:
            await self.cancel()

    async def _repeat_last(self, expected: int) -> None:
        """Wait for a new chain's first token, which was known before.

        Raises:
            AnswerInterrupted: it does not come, or is another.
        """
        assert self._chain is not None
        try:
            token = await self._chain.next()
        except WireError as error:
            raise AnswerInterrupted(f"no chain signs the answer: {error}") from error
        if token.token != expected:
            raise AnswerInterrupted(
                "the replacement computed another last token: some hop is not honest"
            )

    async def cancel(self) -> None:
        """See `Answer.cancel`."""
        await self._release()
        self._swarm.forget(self)

    async def _release(self) -> None:
        if self._chain is not None:
            chain, self._chain = self._chain, None
            self._swarm.release(chain)
