"""One answer that several chains without a common node compute, and a majority decides."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from unisono.errors import AnswerInterrupted, CapacityMissing, NetworkError, WireError
from unisono.routing.answer import RoutedAnswer
from unisono.routing.demand import ANY, Demand
from unisono.routing.paths import Path
from unisono.routing.territory import Territory
from unisono.types import GenerationRequest, SampledToken, is_complete
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.votes import Outcome, Vote, disagreement, incoherence

if TYPE_CHECKING:
    from unisono.routing.swarm import Swarm

log = logging.getLogger(__name__)

SIGN_SECONDS = 8.0
"""In which a majority must have come to the answer's end and signed."""
LATE_SECONDS = 2.0
"""For which those that are behind are waited for, once a majority has signed."""
TESTIMONY_SECONDS = 2.0
"""In which a dissenter may sign what it said."""
_REASON_CHARACTERS = 300


class _Member:
    """One of the chains."""

    def __init__(self, number: int, answer: RoutedAnswer) -> None:
        self.number = number
        self.answer = answer
        self.said: list[SampledToken] = []
        self.path: Path = ()
        """Its nodes, as of the last token."""
        self.outcome: Outcome | None = None
        """Set once it has left the vote, or its vote is final."""
        self.reason = ""
        self.claims: tuple[HopClaim, ...] = ()

    @property
    def open(self) -> bool:
        """Whether its voice counts."""
        return self.outcome is None

    @property
    def tokens(self) -> list[int]:
        """Token ids that it gave."""
        return [token.token for token in self.said]

    def __str__(self) -> str:
        nodes = ", ".join(hop.node[:8] for hop in self.path)
        return f"chain {self.number + 1} ({nodes or 'no nodes'})"

    def note_path(self) -> None:
        """Remember which nodes it has now."""
        chain = self.answer.chain
        if chain is not None:
            self.path = tuple(chain.hops)

    def leave(self, outcome: Outcome, reason: str) -> None:
        """Its voice does not count from here on."""
        self.outcome, self.reason = outcome, reason[:_REASON_CHARACTERS]


class QuorumAnswer:
    """Implements `routing.network.Answer` over `quorum` routed answers, each of which mends its
    own chain.

    A token is given as soon as more than half of all chains, lost ones included, have said it. A
    chain that says something else is blamed, asked to sign that, and ended. Nobody waits for a
    chain that is behind, until the end: there it has `LATE_SECONDS` to catch up and sign.
    """

    def __init__(
        self,
        swarm: Swarm,
        request: GenerationRequest,
        top_logprobs: int,
        quorum: int,
        demand: Demand = ANY,
    ) -> None:
        """`demand`: what each chain has to promise."""
        self._swarm = swarm
        self._request = request
        self._top_logprobs = top_logprobs
        self._quorum = quorum
        self._demand = demand
        self._members: list[_Member] = []
        self._agreed: list[SampledToken] = []
        self._tokens: list[int] = []
        """The ids of these."""
        self._wanted = 0
        """Tokens that were asked for: nobody reads ahead of them, so that a chain which is cut
        short at the answer's end has nothing under way."""
        self._news = asyncio.Condition()
        self._readers: set[asyncio.Task[None]] = set()
        self._dismissals: set[asyncio.Task[None]] = set()
        self._votes: tuple[Vote, ...] = ()

    @property
    def attempts(self) -> int:
        """See `Answer.attempts`."""
        return 1 + sum(max(0, member.answer.attempts - 1) for member in self._members)

    @property
    def votes(self) -> tuple[Vote, ...]:
        """See `Answer.votes`."""
        return self._votes

    @property
    def members(self) -> tuple[RoutedAnswer, ...]:
        """The answers over single chains."""
        return tuple(member.answer for member in self._members)

    async def start(self) -> None:
        """Open all chains, side by side.

        Raises:
            NetworkUnreachable, CoverageMissing, CapacityMissing: there are fewer than asked for
                without a common node; the message says how many.
        """
        territories = Territory.divided(self._quorum)
        opening = [
            asyncio.create_task(
                self._swarm.route(self._request, self._top_logprobs, self._demand, territory)
            )
            for territory in territories
        ]
        try:
            await asyncio.gather(*opening, return_exceptions=True)
            failures = [error for task in opening if (error := task.exception()) is not None]
            self._check_opened(failures)
        except BaseException:
            for task in opening:
                task.cancel()
            outcomes = await asyncio.gather(*opening, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, RoutedAnswer):
                    await outcome.cancel()
            raise
        for number, task in enumerate(opening):
            member = _Member(number, task.result())
            member.note_path()
            self._members.append(member)
        for member in self._members:
            _spawn(self._follow(member), self._readers)

    def _check_opened(self, failures: Sequence[BaseException]) -> None:
        if not failures:
            return
        for failure in failures:
            if not isinstance(failure, NetworkError):
                raise failure
        # full nodes will have room again; that there are too few is the rarer, graver news
        graver = [e for e in failures if not isinstance(e, CapacityMissing)]
        worst = (graver or list(failures))[0]
        assert isinstance(worst, NetworkError)
        count = self._quorum - len(failures)
        raise type(worst)(
            f"a quorum of {self._quorum} needs as many chains of nodes without a common node; "
            f"there {'is' if count == 1 else 'are'} {count} now: {worst}"
        ) from worst

    def __aiter__(self) -> AsyncIterator[SampledToken]:
        return self._stream()

    async def _stream(self) -> AsyncIterator[SampledToken]:
        while not is_complete(self._request, self._tokens):
            yield await self._next()

    async def _next(self) -> SampledToken:
        """The next token that a majority has said.

        Raises:
            AnswerInterrupted: there can be no majority.
        """
        position = len(self._agreed)
        async with self._news:
            self._wanted = position + 1
            self._news.notify_all()
            while True:
                said = Counter(m.said[position] for m in self._members if self._spoke(m, position))
                winner, voices = said.most_common(1)[0] if said else (None, 0)
                if winner is not None and 2 * voices > self._quorum:
                    break
                silent = sum(m.open and len(m.said) <= position for m in self._members)
                if 2 * (voices + silent) <= self._quorum:
                    raise AnswerInterrupted(self._no_majority(position))
                await self._news.wait()
        self._agreed.append(winner)
        self._tokens.append(winner.token)
        for member in self._members:
            if self._spoke(member, position):
                self._compare(member, position)
        return winner

    @staticmethod
    def _spoke(member: _Member, position: int) -> bool:
        return member.open and len(member.said) > position

    def _no_majority(self, position: int) -> str:
        """Who said what."""
        parts: list[str] = []
        for member in self._members:
            if not member.open:
                parts.append(f"{member} {member.outcome}: {member.reason}")
            elif len(member.said) > position:
                parts.append(f"{member} says token {member.said[position].token}")
            else:
                parts.append(f"{member} has not spoken")
        return (
            f"no majority of {self._quorum} chains agrees on token {position} of the answer: "
            f"{'; '.join(parts)}"
        )

    async def _follow(self, member: _Member) -> None:
        """Read what a chain says, as far as it is wanted."""
        stream = aiter(member.answer)
        try:
            while member.open:
                async with self._news:
                    await self._news.wait_for(
                        lambda: not member.open or len(member.said) < self._wanted
                    )
                token = await anext(stream, None) if member.open else None
                if token is None:
                    break
                if self._top_logprobs < 0:  # of these nobody asked, and nobody knows them
                    token = SampledToken(token.position, token.token)
                member.said.append(token)
                member.note_path()
                position = len(member.said) - 1
                if position < len(self._agreed):
                    self._compare(member, position)
                await self._tell()
        except (NetworkError, WireError) as error:
            self._lose(member, str(error))
            await self._tell()
        except Exception:
            log.exception("%s of a quorum ended because of a defect", member)
            self._lose(member, "the gateway failed")
            await self._tell()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _lose(self, member: _Member, reason: str) -> None:
        if member.open:
            log.warning("%s of a quorum is lost: %s", member, reason)
            member.leave("lost", reason)

    def _compare(self, member: _Member, position: int) -> None:
        """Dismiss a member that said something else than the majority."""
        said, agreed = member.said[position], self._agreed[position]
        if said == agreed:
            return
        if said.token == agreed.token:
            reason = f"gave token {position} other log probabilities"
        else:
            reason = f"said token {said.token} where the others say {agreed.token}"
        self._blame(member, reason)
        del member.said[position + 1 :]
        _spawn(self._dismiss(member, said.token != agreed.token), self._dismissals)

    def _blame(self, member: _Member, reason: str) -> None:
        log.warning("%s of a quorum dissents: it %s", member, reason)
        member.leave("dissented", reason)
        self._swarm.experience.dissented(member.path)

    async def _dismiss(self, member: _Member, provable: bool) -> None:
        """End a dissenter's chain. What it said is signed first, if it can be."""
        try:
            if provable:
                await _within(self._swarm.clock.sleep(TESTIMONY_SECONDS), self._hear(member))
        finally:
            await member.answer.cancel()

    async def _hear(self, member: _Member) -> None:
        try:
            member.claims = await member.answer.testify(len(member.said))
        except (NetworkError, WireError) as error:
            log.info("%s does not sign what it said: %s", member, error)

    async def finish(self, tokens: int) -> tuple[HopClaim, ...]:
        """See `Answer.finish`; `tokens` must be all that were taken."""
        assert tokens == len(self._agreed), "the answer ends with the token that was taken last"
        signing = {m: asyncio.create_task(self._sign(m, tokens)) for m in self._members if m.open}
        limit = asyncio.create_task(self._swarm.clock.sleep(SIGN_SECONDS))
        try:
            pending: set[asyncio.Task[None]] = set(signing.values())
            majority = False
            while pending and not limit.done():
                await asyncio.wait({*pending, limit}, return_when=asyncio.FIRST_COMPLETED)
                pending = {task for task in pending if not task.done()}
                if not majority and 2 * sum(bool(m.claims) for m in signing) > self._quorum:
                    majority = True
                    limit.cancel()
                    limit = asyncio.create_task(self._swarm.clock.sleep(LATE_SECONDS))
            await asyncio.gather(*self._dismissals, return_exceptions=True)
            return self._decide()
        finally:
            limit.cancel()
            for task in signing.values():
                task.cancel()
            await asyncio.gather(*signing.values(), return_exceptions=True)
            await self.cancel()

    async def _sign(self, member: _Member, tokens: int) -> None:
        """Wait until a member has given the whole answer, and have it sign."""
        async with self._news:
            await self._news.wait_for(lambda: not member.open or len(member.said) >= tokens)
        if not member.open:
            return
        try:
            claims = await member.answer.finish(tokens)
        except (NetworkError, WireError) as error:
            self._lose(member, str(error))
        else:
            member.claims = claims

    def _decide(self) -> tuple[HopClaim, ...]:
        """Count who signed the same, and note every vote.

        Raises:
            AnswerInterrupted: no majority did.
        """
        read = [*self._request.prompt, *self._tokens[:-1]]
        for member in self._members:
            broken = incoherence(member.claims, read) if member.open and member.claims else None
            if broken is not None:
                reason = f"signed at hop {broken.hop} other rows in than came before"
                self._blame(member, reason)
        signed = [m for m in self._members if m.open and m.claims]
        parties = [[one, *(m for m in signed if m is not one and _agree(one, m))] for one in signed]
        party = max(parties, key=len) if parties else []
        won = 2 * len(party) > self._quorum
        for member in self._members:
            if not member.open:
                continue
            if not member.claims:
                member.leave("late", "had not signed in time")
            elif not won or member in party:
                member.outcome = "agreed"
            else:
                layer = disagreement(party[0].claims, member.claims)
                self._blame(member, f"signed other rows after layer {layer} behind the same tokens")
        if not won:
            raise AnswerInterrupted(
                f"{len(party)} of {self._quorum} chains signed the same, which is no majority: "
                + "; ".join(
                    f"{m} {m.outcome}: {m.reason}"
                    if m.reason
                    else f"{m} signed last rows {m.claims[-1].rows_out[:16]}…"
                    for m in self._members
                )
            )
        ordered = [*party, *(m for m in self._members if m not in party)]
        self._votes = tuple(self._vote(m) for m in ordered)
        return party[0].claims

    def _vote(self, member: _Member) -> Vote:
        tokens = member.tokens
        assert member.outcome is not None
        place = len(tokens) - 1
        differs = bool(tokens) and tokens[place] != self._agreed[place].token
        nodes = [claim.node for claim in member.claims] or [hop.node for hop in member.path]
        return Vote(
            outcome=member.outcome,
            nodes=tuple(nodes),
            count=len(tokens),
            tokens=tokens_root(tokens),
            said=tokens[place] if differs else None,
            hops=member.claims,
            reason=member.reason,
        )

    async def cancel(self) -> None:
        """See `Answer.cancel`."""
        current = asyncio.current_task()
        tasks = [t for t in (*self._readers, *self._dismissals) if t is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self._members:
            await member.answer.cancel()


def _agree(one: _Member, other: _Member) -> bool:
    return disagreement(one.claims, other.claims) is None


def _spawn(work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(work)
    among.add(task)
    task.add_done_callback(among.discard)


async def _within(limit: Coroutine[Any, Any, None], work: Coroutine[Any, Any, None]) -> None:
    """Do `work` until `limit` has passed. Neither still runs when this returns."""
    tasks = [asyncio.create_task(limit), asyncio.create_task(work)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
