"""One answer over as many chains of nodes as it takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unisono.errors import AnswerInterrupted, NetworkError
from unisono.routing.chain import Chain, ChainEvent, HopLeaving, Weighing
from unisono.routing.demand import ANY, Demand
from unisono.routing.experience import Trial
from unisono.routing.replies import HopLost, HopRefused
from unisono.routing.territory import Territory
from unisono.types import GenerationRequest, NodeId, SampledToken, is_complete
from unisono.wire.claims import HopClaim
from unisono.wire.votes import Vote

if TYPE_CHECKING:
    from unisono.routing.swarm import Swarm

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 6
HEDGE_SECONDS = 1.5
"""A first token is late after this long at least,"""
HEDGE_FACTOR = 3.0
"""and if it takes this many times longer than first tokens lately did."""
HEDGED_SHARE = 0.1
"""Of the running answers at most (and one) have a second chain for this reason: when all nodes
are busy, second chains would only add to it."""


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """A chain, and what is learned from it."""

    chain: Chain
    trial: Trial


class RoutedAnswer:
    """Implements `routing.network.Answer`.

    Beside the chain in use there may be a second one: since the first token is late, or since a
    node announced that it leaves. Both compute the same tokens; the second takes over as soon as
    it is ahead, or the first is lost.
    """

    votes: tuple[Vote, ...] = ()
    """See `Answer.votes`."""

    def __init__(
        self,
        swarm: Swarm,
        request: GenerationRequest,
        top_logprobs: int,
        demand: Demand = ANY,
        territory: Territory | None = None,
        weighing: Weighing | None = None,
    ) -> None:
        """`demand`: what each chain has to promise. `territory`: which nodes other chains have, if
        they may not be shared. `weighing`: who chooses the tokens, if not the chain."""
        self._swarm = swarm
        self._territory = territory or Territory()
        self._request = request
        self._top_logprobs = top_logprobs
        self._demand = demand
        self._weighing = weighing
        self._tokens: list[int] = []
        self._first: Attempt | None = None
        self._second: Attempt | None = None
        self._opening: asyncio.Task[None] | None = None
        self._avoid: frozenset[NodeId] = frozenset()
        self._attempts = 0
        self._events: asyncio.Queue[tuple[Attempt, ChainEvent]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = swarm.clock.monotonic()

    @property
    def attempts(self) -> int:
        """See `Answer.attempts`."""
        return self._attempts

    @property
    def chain(self) -> Chain | None:
        """The chain in use."""
        return None if self._first is None else self._first.chain

    async def start(self) -> None:
        """Open the first chain.

        Raises:
            NetworkUnreachable, CoverageMissing, CapacityMissing: there is none.
        """
        self._first = await self._open(self._avoid)
        self._attempts += 1
        # in an ensemble a first token may be late because of another model's chain
        if self._swarm.settings.hedge and not self._tokens and self._weighing is None:
            self._spawn(self._hedge())

    async def _open(self, avoid: frozenset[NodeId]) -> Attempt:
        attempt = await self._swarm.attempt(
            self._request,
            tuple(self._tokens),
            self._top_logprobs,
            avoid,
            self._territory,
            self._demand,
            self._weighing,
        )
        attempt.chain.listen(lambda event: self._events.put_nowait((attempt, event)))
        return attempt

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _hedge(self) -> None:
        """Open a second chain if the first token is late."""
        swarm = self._swarm
        usual = HEDGE_FACTOR * swarm.first_token
        await swarm.clock.sleep(max(HEDGE_SECONDS, usual))
        if self._tokens or self._first is None or not usual:
            return
        if swarm.hedged > HEDGED_SHARE * swarm.running:
            return
        swarm.hedged += 1
        try:
            await self._second_chain(frozenset(hop.node for hop in self._first.chain.hops))
            while self._second is not None and not self._tokens:
                await swarm.clock.sleep(HEDGE_SECONDS)
        finally:
            swarm.hedged -= 1

    async def _second_chain(self, avoid: frozenset[NodeId]) -> None:
        """Open another chain beside the one in use, if there is one without these nodes."""
        if self._second is not None:
            return
        try:
            self._second = await self._open(self._avoid | avoid)
        except NetworkError as error:
            log.info("no second chain: %s", error)

    def __aiter__(self) -> AsyncIterator[SampledToken]:
        return self._stream()

    async def _stream(self) -> AsyncIterator[SampledToken]:
        while not is_complete(self._request, self._tokens):
            token = await self._next()
            if token is not None:
                self._tokens.append(token.token)
                yield token

    async def _next(self) -> SampledToken | None:
        """Deal with what comes next; a token if it is one that was not known.

        Raises:
            AnswerInterrupted: a hop was lost and none replaces it.
        """
        attempt, event = await self._events.get()
        if attempt is not self._first and attempt is not self._second:
            return None  # of a chain that was given up
        if isinstance(event, SampledToken):
            if event.position < len(self._request.prompt) + len(self._tokens):
                return None  # the other chain was faster
            if not self._tokens and self._weighing is None:
                self._learn_first_token()
            if attempt is self._second:
                if self._first is not None:
                    self._first.trial.outrun()
                self._take_over()
            return event
        if isinstance(event, HopLeaving):
            if self._opening is None or self._opening.done():
                self._opening = self._spawn(self._second_chain(frozenset({event.node})))
        elif not attempt.chain.lost:
            pass  # it has been replaced
        elif attempt is self._second:
            self._blame(attempt, event)
            self._second = None
            self._swarm.release(attempt)
        elif self._second is not None:
            self._blame(attempt, event)
            self._take_over()
        else:
            await self._replace(event)
        return None

    def _learn_first_token(self) -> None:
        seconds = self._swarm.clock.monotonic() - self._begun
        known = self._swarm.first_token or seconds
        self._swarm.first_token = 0.9 * known + 0.1 * seconds

    def _take_over(self) -> None:
        """The second chain is the one in use from now on."""
        assert self._first is not None
        self._swarm.release(self._first)
        self._first, self._second = self._second, None
        self._attempts += 1

    def _blame(self, attempt: Attempt, lost: HopLost) -> None:
        """Remember which nodes failed."""
        for each in (lost, *attempt.chain.lost.values()):
            if not each.at_fault:
                continue
            self._swarm.members.suspect(each.node)
            if each.node not in self._avoid:
                attempt.trial.lost(each.node)
            self._avoid |= {each.node}

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
        attempt = self._first
        assert attempt is not None
        try:
            while True:
                self._blame(attempt, lost)
                if self._attempts >= MAX_ATTEMPTS:
                    raise AnswerInterrupted(
                        f"the answer failed {self._attempts} times, last: {lost}"
                    )
                try:
                    if not await self._swarm.mend(attempt, positions, self._avoid, self._territory):
                        break
                except HopLost as error:
                    self._attempts += 1
                    lost = error
                except HopRefused as error:
                    self._attempts += 1
                    attempt.trial.refused(error.node, error.code)
                    self._avoid |= {error.node}
                    log.info("mending failed: %s", error)
                else:
                    self._attempts += 1
                    return True
        except BaseException:
            self._release()
            raise
        self._release()
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
                assert self._first is not None, "the answer was cancelled"
                try:
                    claims = await self._first.chain.finish(tokens)
                except HopLost as lost:
                    known = self._tokens
                    # a new chain computes the last token again, so that it can vouch for it
                    self._tokens = known[: tokens - 1]
                    if not await self._replace(lost):
                        await self._repeat_last(known[tokens - 1])
                    self._tokens = known
                else:
                    self._first.trial.completed()
                    return claims
        finally:
            await self.cancel()

    async def testify(self, tokens: int) -> tuple[HopClaim, ...]:
        """What the hops sign of the first `tokens` tokens of an answer that is given up: nobody
        is replaced, and the nodes are not credited. Cancel afterwards.

        Raises:
            HopLost: a hop does not sign.
        """
        if self._first is None:
            return ()
        return await self._first.chain.finish(tokens)

    async def _repeat_last(self, expected: int) -> None:
        """Wait for a new chain's first token, which was known before.

        Raises:
            AnswerInterrupted: it does not come, or is another.
        """
        while True:
            try:
                token = await self._next()
            except AnswerInterrupted as error:
                raise AnswerInterrupted(f"no chain signs the answer: {error}") from error
            if token is not None:
                break
        if token.token != expected:
            raise AnswerInterrupted(
                "the replacement computed another last token: some hop is not honest"
            )

    async def cancel(self) -> None:
        """See `Answer.cancel`."""
        self._release()
        tasks, current = tuple(self._tasks), asyncio.current_task()
        for task in tasks:
            if task is not current:
                task.cancel()
        self._swarm.forget(self)

    def _release(self) -> None:
        for attempt in (self._first, self._second):
            if attempt is not None:
                self._swarm.release(attempt)
        self._first = self._second = None
