"""One answer that several models give together, each over a chain of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from unisono.errors import AnswerInterrupted, NetworkError, WireError
from unisono.routing.answer import RoutedAnswer
from unisono.routing.chain import Chain
from unisono.routing.demand import ANY, Demand
from unisono.types import (
    Distribution,
    GenerationRequest,
    ModelId,
    SampledToken,
    Sampling,
    is_complete,
)
from unisono.wire.claims import HopClaim
from unisono.wire.ensemble import distribution_hash, distributions_root
from unisono.wire.votes import Vote

if TYPE_CHECKING:
    from unisono.routing.swarm import Swarm

log = logging.getLogger(__name__)

Combine = Callable[[Sequence[Distribution], Sampling, int], int]
"""The token at a position, from what each model says of it (`numerics.ensemble`)."""


class _Member:
    """One of the models; implements `routing.chain.Weighing` for its chain and those that take its
    place."""

    def __init__(self, ensemble: EnsembleAnswer, model: ModelId) -> None:
        self._ensemble = ensemble
        self.model = model
        self.answer: RoutedAnswer | None = None
        self.said: list[Distribution] = []
        """One of each token, the next one included once it is known."""
        self.waiting: set[Chain] = set()
        """Chains that have told the next one."""
        self.heard = 0
        """Tokens that its answer has confirmed."""

    def weighed(self, chain: Chain, position: int, said: Distribution) -> bool:
        """See `Weighing.weighed`."""
        index = position - self._ensemble.prompt
        if index < len(self.said) and self.said[index] != said:
            return False
        if index == len(self.said):
            self.said.append(said)
        if index < len(self._ensemble.tokens):
            chain.give(position, self._ensemble.tokens[index])
        else:
            self.waiting.add(chain)
            self._ensemble.choose()
        return True

    def chose(self, position: int, token: int) -> bool:
        """See `Weighing.chose`."""
        index, tokens = position - self._ensemble.prompt, self._ensemble.tokens
        return index < len(tokens) and tokens[index] == token

    def root(self, tokens: int) -> str:
        """See `Weighing.root`."""
        return distributions_root([distribution_hash(each) for each in self.said[:tokens]])


class EnsembleAnswer:
    """Implements `routing.network.Answer` over one routed answer of each model, each of which
    mends its own chain.

    No chain chooses: its last hop tells what the model says of the next token. Once all have, the
    token is chosen from the mean, and every last hop is given it and goes on. A hop that takes
    another's place tells the same again, or it is not kept.
    """

    votes: tuple[Vote, ...] = ()
    """See `Answer.votes`."""

    def __init__(
        self, swarm: Swarm, request: GenerationRequest, combine: Combine, demand: Demand = ANY
    ) -> None:
        """`demand`: what all chains together have to promise."""
        assert request.ensemble is not UNSET, "the request names no ensemble"
        self._swarm = swarm
        self._request = request
        self._combine = combine
        self._demand = demand.shared(len(request.ensemble))
        others = [model for model in request.ensemble if model != request.model]
        self._members = [_Member(self, model) for model in (request.model, *others)]
        self.prompt = len(request.prompt)
        self.tokens: list[int] = []
        """Chosen so far."""
        self._wanted = 0
        """Tokens that were asked for: none is chosen ahead of them, so that a chain which is cut
        short at the answer's end has nothing under way."""
        self._news = asyncio.Event()
        self._readers: list[asyncio.Task[None]] = []
        self._failure: str | None = None

    @property
    def attempts(self) -> int:
        """See `Answer.attempts`."""
        made = [member.answer for member in self._members]
        return 1 + sum(max(0, answer.attempts - 1) for answer in made if answer is not None)

    @property
    def members(self) -> tuple[RoutedAnswer, ...]:
        """The answers of the single models, the request's own first."""
        return tuple(m.answer for m in self._members if m.answer is not None)

    async def start(self) -> None:
        """Open a chain for each model, side by side.

        Raises:
            NetworkUnreachable, CoverageMissing, CapacityMissing, OfferMissing: there is none for
                some model.
        """
        opening = [asyncio.create_task(self._open(member)) for member in self._members]
        try:
            await asyncio.gather(*opening)
        except BaseException:
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)
            await self.cancel()
            raise
        self._readers = [asyncio.create_task(self._follow(member)) for member in self._members]

    async def _open(self, member: _Member) -> None:
        request = msgspec.structs.replace(self._request, model=member.model)
        try:
            member.answer = await self._swarm.route(request, -1, self._demand, None, member)
        except NetworkError as error:
            raise type(error)(f"model {member.model[:12]}… of the ensemble: {error}") from error

    def __aiter__(self) -> AsyncIterator[SampledToken]:
        return self._stream()

    async def _stream(self) -> AsyncIterator[SampledToken]:
        count = 0
        while not is_complete(self._request, self.tokens[:count]):
            self._wanted = count + 1
            self._news.set()
            self.choose()
            await self._until(lambda: len(self.tokens) == self._wanted)
            yield SampledToken(self.prompt + count, self.tokens[count])
            count += 1

    async def _until(self, done: Callable[[], bool]) -> None:
        """Wait until something is the case.

        Raises:
            AnswerInterrupted: one of the models is lost.
        """
        while not done():
            if self._failure is not None:
                raise AnswerInterrupted(self._failure)
            self._news.clear()
            await self._news.wait()

    def choose(self) -> None:
        """Choose the next token and tell all chains, if it is wanted and all models have spoken."""
        index = len(self.tokens)
        if index >= self._wanted or any(len(m.said) <= index for m in self._members):
            return
        position = self.prompt + index
        said = [member.said[index] for member in self._members]
        self.tokens.append(self._combine(said, self._request.sampling, position))
        self._news.set()
        for member in self._members:
            waiting, member.waiting = member.waiting, set()
            for chain in waiting:
                chain.give(position, self.tokens[index])

    async def _follow(self, member: _Member) -> None:
        """Read what a chain confirms, as far as it is wanted, so that it is mended meanwhile."""
        assert member.answer is not None
        stream = aiter(member.answer)
        try:
            while not is_complete(self._request, self.tokens[: member.heard]):
                await self._until(lambda: member.heard < self._wanted)
                await anext(stream)
                member.heard += 1
                self._news.set()
        except (NetworkError, WireError) as error:
            self._fail(member, str(error))
        except Exception:
            log.exception("model %s of an ensemble ended because of a defect", member.model[:12])
            self._fail(member, "the gateway failed")

    def _fail(self, member: _Member, reason: str) -> None:
        if self._failure is None:
            log.warning("model %s of an ensemble is lost: %s", member.model[:12], reason)
            self._failure = f"model {member.model[:12]}… of the ensemble: {reason}"
        self._news.set()

    async def finish(self, tokens: int) -> tuple[HopClaim, ...]:
        """See `Answer.finish`; `tokens` must be all that were taken. The claims of one model's
        chain follow another's, those of the request's own model first."""
        assert tokens == len(self.tokens), "the answer ends with the token that was taken last"
        try:
            await self._until(lambda: all(m.heard >= tokens for m in self._members))
            await self._stop_readers()
            signing = [asyncio.create_task(answer.finish(tokens)) for answer in self.members]
            try:
                claims = await asyncio.gather(*signing)
            finally:
                for task in signing:
                    task.cancel()
                await asyncio.gather(*signing, return_exceptions=True)
            return tuple(claim for each in claims for claim in each)
        finally:
            await self.cancel()

    async def _stop_readers(self) -> None:
        current = asyncio.current_task()
        readers = [task for task in self._readers if task is not current]
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    async def cancel(self) -> None:
        """See `Answer.cancel`."""
        await self._stop_readers()
        for answer in self.members:
            await answer.cancel()
