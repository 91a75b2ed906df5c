"""One answer's ring of hops as its gateway sees it: opened, watched, mended, signed for."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from unisono.clock import Clock, SystemClock
from unisono.errors import PeerCheating, PeerGone
from unisono.routing.commission import Commission
from unisono.routing.payments import Purse, Tab
from unisono.routing.replies import HopLost, HopRefused, Replies
from unisono.types import (
    Distribution,
    GenerationRequest,
    NodeId,
    SampledToken,
    SessionId,
    is_complete,
)
from unisono.wire.claims import EPOCH_SECONDS, HopClaim
from unisono.wire.ensemble import Given, Weighed
from unisono.wire.link import Link, Links
from unisono.wire.messages import (
    Claimed,
    Close,
    Failed,
    Finish,
    Message,
    Opened,
    Refused,
    Rewire,
    Rewired,
    Spared,
    Tokens,
)
from unisono.wire.payment_messages import Due, Held
from unisono.wire.records import NodeRecord
from unisono.wire.sold import Sold

log = logging.getLogger(__name__)

T = TypeVar("T")

OPEN_SECONDS = 15.0
CLAIM_SECONDS = 10.0


class HopLeaving(Exception):
    """A hop is about to go; it serves on for a while."""

    def __init__(self, node: NodeId) -> None:
        super().__init__(f"node {node[:8]} is leaving")
        self.node = node


ChainEvent = SampledToken | HopLost | HopLeaving


class Weighing(Protocol):
    """Who chooses the tokens of a chain whose model only tells distributions."""

    def weighed(self, chain: Chain, position: int, said: Distribution) -> bool:
        """What the model says of the token at `position`; once it is chosen, `chain.give` tells it.
        False: it said something else before."""
        ...

    def chose(self, position: int, token: int) -> bool:
        """Whether this token was chosen."""
        ...

    def root(self, tokens: int) -> str:
        """What the last hop has to sign of the distributions of the first `tokens` tokens."""
        ...


class Chain:
    """Use: `open`, then `next` until the answer ends, then `finish`; `close` at any time.

    When `next` or `finish` says that a hop is lost, `replace` puts others in the places of
    `lost`; the hops that are left go on with what they have, and give the new ones from their
    journals what these need to catch up.
    """

    def __init__(
        self,
        links: Links,
        gateway: NodeId,
        hops: Sequence[NodeRecord],
        request: GenerationRequest,
        generated: Sequence[int],
        top_logprobs: int,
        *,
        draft: bool = True,
        clock: Clock | None = None,
        purse: Purse | None = None,
        layer_count: int = 0,
        epoch_seconds: int = EPOCH_SECONDS,
        weighing: Weighing | None = None,
    ) -> None:
        """`weighing`: who hears what the model says, if it does not choose the tokens itself.
        `draft`: whether the first hop may guess tokens ahead. `purse`: who pays hops that are
        not free; shares are of `layer_count` layers."""
        self._links_of_gateway = links
        self.hops = list(hops)
        self._request = request
        self._generated = list(generated)
        self._clock = clock or SystemClock()
        self._weighing = weighing
        self.session = SessionId(secrets.token_hex(16))
        self._commission = Commission(
            self.session, gateway, request, top_logprobs, draft, weighing is not None, epoch_seconds
        )
        self.lost: dict[int, HopLost] = {}
        """Hops that have to be replaced, by index."""
        self.failures: dict[NodeId, HopLost | HopRefused] = {}
        """Why hops could not be opened the last time."""
        self.beyond_repair = False
        """Whether a hop's journal no longer has what a replacement would need."""
        self._former: set[NodeId] = set()
        """Hops that were replaced."""
        self._given = 0
        """Tokens that the first hop was given."""
        self._links: list[Link | None] = [None] * len(self.hops)
        self._purse = purse
        self._layer_count = layer_count
        self._tabs: list[Tab | None] = [None] * len(self.hops)
        self._events: asyncio.Queue[ChainEvent] = asyncio.Queue()
        self._tell: Callable[[ChainEvent], None] = self._events.put_nowait
        self.on_tokens: Callable[[int], None] = lambda count: None
        """Told how many new tokens came together."""
        self.on_spared: Callable[[int], None] = lambda pages: None
        """Told how many pages of the prompt no hop had to read."""
        self._replies = Replies()

    @property
    def _known(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self._request.prompt) + len(self._generated)

    @property
    def ended(self) -> bool:
        """Whether the answer is complete."""
        return is_complete(self._request, self._generated)

    async def open(self) -> None:
        """Open the session on every hop at once.

        Raises:
            HopRefused: a hop is full (`code` "capacity") or refuses otherwise.
            HopLost: a hop cannot be reached.
        """
        last = len(self.hops) - 1
        await self._enlist({i: self._known if i == last else 0 for i in range(len(self.hops))})

    async def replace(self, new: Mapping[int, NodeRecord]) -> None:
        """Put new hops, with the same layers, in the places of all that are lost.

        Raises:
            HopRefused, HopLost: a new hop cannot be had, or one more is lost. All the new ones
                then count as lost.
        """
        assert set(new) >= set(self.lost), "every lost hop needs a replacement"
        try:
            await self._replace(new)
        except (HopRefused, HopLost) as error:
            for index in new:
                node = self.hops[index].node
                lost = HopLost(str(error), node, at_fault=node == error.node)
                self.lost.setdefault(index, lost)
            raise

    async def _replace(self, new: Mapping[int, NodeRecord]) -> None:
        for index, record in new.items():
            self._abandon(index)
            self._former.add(self.hops[index].node)
            self.hops[index] = record
            self._links[index] = None
        self.lost.clear()
        self._drain()
        count = len(self.hops)
        after = {(i + 1) % count for i in new} - set(new)
        wanted: dict[int, Rewired] = {}
        for index in after:  # where they have to be given rows or tokens from
            before = self.hops[(index - 1) % count].node
            wanted[index] = await self._rewire(index, previous=before)
        resume = {i: self._resume(wanted, (i + 1) % count) for i in new}
        await self._enlist(resume)
        for index in {(i - 1) % count for i in new} - set(new):
            # a new first hop knows the tokens it was given, any other hop nothing
            start = self._given if (index + 1) % count == 0 else 0
            await self._rewire(index, next_index=(index + 1) % count, resume=start)

    def _resume(self, wanted: Mapping[int, Rewired], index: int) -> int:
        """From where a new hop sends to the hop after it."""
        if index not in wanted:
            return self._known if index == 0 else 0
        if index == 0:
            return min(wanted[0].position, self._known)
        # What came behind the last known token may have been guessed: it is sent again. But a hop
        # may be ahead of what this gateway has heard, and does not go back behind all guesses.
        return min(wanted[index].position, max(self._known - 1, wanted[index].earliest))

    async def _enlist(self, resume: Mapping[int, int]) -> None:
        """Open the session on hops; each begins to send at its position in `resume`."""
        self.failures = {}
        await self._all(self._reach(i) for i in resume)
        replies = [(i, self._expect(i, Opened)) for i in resume]
        for index, position in resume.items():
            link = self._links[index]
            assert link is not None
            tab = self._tabs[index] = self._open_tab(index, link)
            tokens = (*self._request.prompt, *self._generated)
            if index == 0:
                self._given = len(tokens)
            agreed = None if tab is None else tab.agreed
            message, body = self._commission.opening(self.hops, index, tokens, position, agreed)
            link.post(message, body)
            if tab is not None:
                tab.begin()
        await self._all(self._await(i, reply, "did not open the session") for i, reply in replies)

    async def _all(self, steps: Iterable[Coroutine[Any, Any, object]]) -> None:
        """Run steps side by side. All that fail are kept in `failures`, so that a request learns
        at once of every hop that is no good; the first is raised."""
        outcomes = await asyncio.gather(*steps, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, HopLost | HopRefused):
                self.failures.setdefault(outcome.node, outcome)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _reach(self, index: int) -> None:
        hop = self.hops[index]
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                link = await self._links_of_gateway.to(hop.address)
        except TimeoutError:
            raise HopLost(f"node {hop.node[:8]} cannot be reached in time", hop.node) from None
        except (PeerGone, PeerCheating) as error:
            raise HopLost(f"node {hop.node[:8]}: {error}", hop.node) from error
        link.users.add(self)
        self._links[index] = link

    def _open_tab(self, index: int, link: Link) -> Tab | None:
        record, purse = self.hops[index], self._purse
        if record.terms is None or purse is None:
            return None
        prompt, most = len(self._request.prompt), self._commission.positions
        sold = Sold(self.session, record, self._layer_count, prompt, self._known, most)
        return purse.open(sold, link.post)

    async def _rewire(
        self,
        index: int,
        *,
        previous: NodeId | None = None,
        next_index: int | None = None,
        resume: int = 0,
    ) -> Rewired:
        """Give a hop another neighbour; returns what it wants next."""
        address = None if next_index is None else self.hops[next_index].address
        link = self._links[index]
        assert link is not None
        reply = self._expect(index, Rewired)
        link.post(Rewire(self.session, previous, address, resume))
        return await self._await(index, reply, "did not take another neighbour")

    def _expect(self, index: int, kind: type[T]) -> asyncio.Future[T]:
        # lost since this began: `lose` knew nothing of this reply
        return self._replies.expect(index, kind, next(iter(self.lost.values()), None))

    async def _await(self, index: int, reply: asyncio.Future[T], problem: str) -> T:
        node = self.hops[index].node
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                return await reply
        except TimeoutError:
            raise HopLost(f"node {node[:8]} {problem}", node) from None

    def listen(self, listener: Callable[[ChainEvent], None]) -> None:
        """Have `listener` told of all that happens, at once, instead of asking `next`."""
        while not self._events.empty():
            listener(self._events.get_nowait())
        self._tell = listener

    async def next(self) -> SampledToken:
        """The next token.

        Raises:
            HopLost: the chain cannot go on.
            HopLeaving: it can, but not for long.
        """
        event = await self._events.get()
        if isinstance(event, HopLost | HopLeaving):
            raise event
        return event

    def give(self, position: int, token: int) -> None:
        """Tell the last hop the token that an ensemble chose. If it is lost, the one that takes
        its place will ask again."""
        link = self._links[-1]
        if link is not None:
            link.post(Given(self.session, position, token))

    async def finish(self, tokens: int) -> tuple[HopClaim, ...]:
        """One signed claim per hop for the first `tokens` tokens, checked.

        Raises:
            HopLost: a hop does not sign, or signs something else.
        """
        if self.lost:
            raise next(iter(self.lost.values()))
        due = [self._expect(i, HopClaim) for i in range(len(self.hops))]
        for link in self._links:
            assert link is not None, "finish() belongs after open()"
            link.post(Finish(self.session, tokens))
        claims: list[HopClaim] = []
        for index, future in enumerate(due):
            node = self.hops[index].node
            try:
                async with asyncio.timeout(CLAIM_SECONDS):
                    claims.append(await future)
            except TimeoutError:
                lost = HopLost(f"node {node[:8]} did not sign its claim", node)
                self.lose(index, lost)
                raise lost from None
            self._check(claims[-1], index, tokens)
            tab = self._tabs[index]
            if tab is not None:
                tab.finish(tokens)
        for before, after in pairwise(claims):
            if before.rows_out != after.rows_in:  # the receipt shows it: a replay names the liar
                log.warning("nodes %s and %s disagree", before.node[:8], after.node[:8])
        return tuple(claims)

    def _check(self, claim: HopClaim, index: int, tokens: int) -> None:
        last = index == len(self.hops) - 1
        root = self._weighing.root(tokens) if last and self._weighing else None
        now = self._clock.now()
        if self._commission.is_due(claim, self.hops, index, self._generated, tokens, root, now):
            return
        node = self.hops[index].node
        lost = HopLost(f"node {node[:8]} signed another claim than was due", node)
        self.lose(index, lost)
        raise lost

    def close(self) -> None:
        """End the session on every hop; idempotent."""
        for index in range(len(self.hops)):
            self._abandon(index)
        self._replies.cancel()

    def _abandon(self, index: int) -> None:
        link, self._links[index] = self._links[index], None
        tab, self._tabs[index] = self._tabs[index], None
        if tab is not None:
            tab.drop()
        if link is not None:
            link.post(Close(self.session))
            if link not in self._links:
                link.users.discard(self)

    def take(self, link: Link, message: Message, body: memoryview) -> None:
        """A message of this session from one of its hops.

        Raises:
            PeerCheating: it breaks the protocol.
        """
        index = self._index(link)
        if index is None:  # of a hop that was replaced
            return
        node = self.hops[index].node
        if isinstance(message, Tokens):
            if index != len(self.hops) - 1:
                raise PeerCheating("tokens of a hop that is not the last")
            known = self._known
            for token in message.tokens:
                self._take_token(token)
            if self._known > known:
                self.on_tokens(self._known - known)
                for tab in self._tabs:
                    if tab is not None:
                        tab.heard(len(self._generated))
        elif isinstance(message, Spared):
            if index != 0:
                raise PeerCheating("pages are counted by a hop that is not the first")
            self.on_spared(message.pages)
        elif isinstance(message, Weighed):
            self._take_weighed(index, message)
        elif isinstance(message, Due | Held):
            tab = self._tabs[index]
            if tab is None:
                raise PeerCheating("a hop that is not paid asks for payment")
            if isinstance(message, Due):
                tab.due(message)
            else:
                tab.held(message)
        elif isinstance(message, Opened | Rewired):
            reply = self._replies.waiting(index, type(message))
            if reply is not None:
                reply.set_result(message)
        elif isinstance(message, Claimed):
            claim = self._replies.waiting(index, HopClaim)
            if claim is not None:
                claim.set_result(message.joined(body))
        elif isinstance(message, Refused):
            refused = HopRefused(f"node {node[:8]}: {message.message}", message.code, node)
            if not self._replies.refuse(index, Opened, refused):
                self.lose(index, HopLost(str(refused), node))
        elif isinstance(message, Failed):
            self._failed(index, message)
        else:
            raise PeerCheating(f"{type(message).__name__} of a hop")

    def lost_link(self, link: Link) -> None:
        """A link has gone, and the hop behind it."""
        index = self._index(link)
        if index is not None:
            node = self.hops[index].node
            self.lose(index, HopLost(f"node {node[:8]}: {link.problem}", node))

    def _index(self, link: Link) -> int | None:
        return self._links.index(link) if link in self._links else None

    def _take_weighed(self, index: int, message: Weighed) -> None:
        if self._weighing is None or index != len(self.hops) - 1:
            raise PeerCheating("a distribution was not asked for")
        if message.position > self._known or self.ended:
            raise PeerCheating(
                f"a distribution for position {message.position}; {self._known} was next"
            )
        if message.position < self._known:  # it crossed the token
            return
        if not self._weighing.weighed(self, message.position, message.distribution):
            node = self.hops[index].node
            problem = f"node {node[:8]} tells another distribution than was told before"
            self.lose(index, HopLost(problem, node))

    def _take_token(self, token: SampledToken) -> None:
        if token.position < self._known:  # of a hop that took another's place
            given = (*self._request.prompt, *self._generated)[token.position]
            if given != token.token:
                raise PeerCheating(f"another token for position {token.position}")
            return
        if token.position != self._known or self.ended:
            raise PeerCheating(f"a token for position {token.position}; {self._known} was next")
        if self._weighing is not None and not self._weighing.chose(token.position, token.token):
            raise PeerCheating(f"another token for position {token.position} than was given")
        self._generated.append(token.token)
        self._tell(token)

    def _failed(self, index: int, failed: Failed) -> None:
        """The hop to replace is the one that is named, if it is in the chain, else the speaker."""
        nodes = [hop.node for hop in self.hops]
        if failed.code == "leaving":
            self._tell(HopLeaving(nodes[index]))
            return
        named = failed.peer
        if named in self._former and named not in nodes:
            return  # it has been dealt with
        at_fault = nodes.index(named) if named is not None and named in nodes else index
        gone = failed.code == "journal_gone"
        self.beyond_repair |= gone
        message = f"node {nodes[index][:8]} reports: {failed.message}"
        self.lose(at_fault, HopLost(message, nodes[at_fault], at_fault=not gone))

    def lose(self, index: int, lost: HopLost) -> None:
        """A hop has to be replaced: whoever waits for it is told."""
        if index in self.lost:
            return
        self.lost[index] = lost
        self._tell(lost)
        self._replies.fail(lost)

    def _drain(self) -> None:
        """Tokens that came stay; what is known of losses is dealt with."""
        kept: list[SampledToken | HopLeaving] = []
        while not self._events.empty():
            event = self._events.get_nowait()
            if not isinstance(event, HopLost):
                kept.append(event)
        for token in kept:
            self._events.put_nowait(token)
