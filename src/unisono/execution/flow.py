"""Rows and tokens on their way through a session's ring of hops, as one hop sees them.

The first hop turns tokens into rows, each hop passes its rows on, the last hop samples and
sends the tokens to the gateway and back to the first hop. Where the first hop has grounds to
guess what comes next it sends rows of guessed tokens too, window after window, without waiting
for verdicts; the last hop keeps the longest run of right guesses, and rows behind a wrong one
are replaced (speculative decoding, Leviathan et al. 2023; since sampling is a function of
position and seed, it is exact for every request). Hashes are taken on the way.
"""

from __future__ import annotations

import asyncio
from math import prod

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerRefused
from unisono.execution.draft import Drafter, Guess, PastAnswers
from unisono.execution.engine import DECODE_ROWS, MAX_ROWS, Engine, StepResult
from unisono.execution.outlet import RowsOutlet, TokensOutlet
from unisono.execution.pace import MAX_AHEAD, Pace
from unisono.execution.pages import SessionPages, token_names
from unisono.execution.session import ArrivedRows, HopSession, NamedPages
from unisono.models.cache import PAGE
from unisono.models.rows import row_hashes
from unisono.types import SampledToken
from unisono.wire.claims import token_hash
from unisono.wire.ensemble import Given
from unisono.wire.messages import Rewire, Spared, Tokens

PREFILL_ROWS = 128
"""Rows of a prompt that are sent on together: the next hop starts while this one goes on."""
LEARN_TOKENS = 512
"""Tokens that a drafter takes in at a time."""


class Flow:
    """Computes one session's rows and tokens on one hop."""

    def __init__(
        self, engine: Engine, session: HopSession, clock: Clock, past: PastAnswers
    ) -> None:
        self._engine = engine
        self._session = session
        self._clock = clock
        self._past = past
        self._drafter: Drafter | None = None
        self._guesses: list[Guess] = []
        """What is guessed to follow the known tokens, sent or about to be."""
        self._pace = Pace()
        self._sent_at: dict[int, float] = {}
        # A first hop that took another's place may be behind the last hop until it hears from it:
        # wrong guesses would then replace right rows that the others are about to sign for.
        opened = session.opened
        fresh = opened.resume == 0 and opened.start == opened.prompt
        self._in_step = session.is_last or fresh
        self._pages = SessionPages(engine, session)
        self._asked: NamedPages | None = None
        """What the hop before waits for an answer to."""

    async def run(self) -> None:
        """Serve the session until it is cancelled, or the answer of a lone hop is complete."""
        if self._session.is_first:
            await self._feed()
        else:
            await self._pass_on()

    async def _pass_on(self) -> None:
        """Any other hop: rows as the hop before sends them."""
        session = self._session
        while True:
            arrival = await session.inbox.get()
            if isinstance(arrival, Rewire):
                self._rewired()
            elif isinstance(arrival, ArrivedRows):
                if self._pages.found:  # the first row says how many of them are begun with
                    self._pages.begin(arrival.position // PAGE)
                self._asked = None
                try:
                    rows = session.usable(arrival)
                except PeerCheating as error:
                    session.give_up_previous(error)
                    continue
                if rows is not None:
                    await self._compute_paid(rows)
            elif isinstance(arrival, NamedPages):
                await self._named(arrival)
            elif isinstance(arrival, Spared):
                self._spared(arrival)
            elif isinstance(arrival, Given):
                self._given(arrival)

    async def _compute_paid(self, rows: ArrivedRows) -> None:
        """Compute rows as they are paid for."""
        session = self._session
        while True:
            # what a pass computes at most: it goes on, and is left to others, before the next
            paid = min(await session.meter.beyond(rows.position), MAX_ROWS)
            await self._compute_rows(rows.first(paid) if paid < rows.count else rows)
            if paid >= rows.count:
                return
            left = session.usable(rows.after(paid))
            if left is None:  # a wrong guess was among the first
                return
            rows = left

    async def _compute_rows(self, arrived: ArrivedRows) -> None:
        session = self._session
        incoming = row_hashes(arrived.values)
        position = arrived.position
        ids = arrived.tokens or tuple(session.tokens[position : position + len(incoming)])
        draws = session.draws(position, ids)
        result = await self._engine.step(session.cache, position, arrived.values, draws)
        session.record(position, incoming, result.hashes)
        if session.rows_in is not None:
            session.rows_in.put(position, arrived.encoded)
        self._pages.keep()
        self._emit(position, ids or (0,) * len(incoming), result)
        session.meter.computed(len(session.in_hashes))
        session.progressed()

    def _emit(self, position: int, ids: tuple[int, ...], result: StepResult) -> list[SampledToken]:
        """Pass on what a step gave: rows to the next hop, or tokens to both ends."""
        session = self._session
        if isinstance(session.outlet, RowsOutlet):
            session.outlet.add(position, result.encoded, result.widths, ids)
            return []
        for weighed in session.tell(position + len(result.hashes), result.distributions):
            session.control.post(weighed)
        accepted = session.accept(position, ids, result.tokens)
        if accepted:
            session.outlet.add(accepted)
        return accepted

    async def _feed(self) -> None:
        """First hop: the given tokens in chunks, then each token as it comes back."""
        session = self._session
        alone = session.is_last
        position = await self._adopt()
        while True:
            while (arrival := session.inbox.take()) is not None:
                position = self._take_in(arrival, position)
            chunk = await self._chunk(position)
            if session.ended and alone and not chunk:
                return
            if not chunk:
                position = self._take_in(await session.inbox.get(), position)
                continue
            chunk = chunk[: await session.meter.beyond(position)]
            draws = session.draws(position, chunk)
            result = await self._engine.step(session.cache, position, chunk, draws)
            session.record(position, [token_hash(t) for t in chunk], result.hashes)
            position += len(chunk)
            self._sent_at[position - 1] = self._clock.monotonic()
            for token in self._emit(position - len(chunk), chunk, result):
                position = self._heard(token.token, token.position, position)
            self._pages.keep()
            session.meter.computed(len(session.in_hashes))
            session.progressed()

    async def _chunk(self, position: int) -> tuple[int, ...]:
        """The tokens of the next step from `position` on, with guesses if they are worth it."""
        session = self._session
        known = len(session.tokens)
        if session.ended:  # nothing follows the last token, so that its row is not needed
            return tuple(session.tokens[position : known - 1][:PREFILL_ROWS])
        # a lone hop has nobody to keep busy, but pages are left before a window gives them back
        size = MAX_ROWS if session.is_last else PREFILL_ROWS
        chunk = session.tokens[position : position + size]
        if position + len(chunk) < known or len(chunk) >= DECODE_ROWS:
            return tuple(chunk)
        sent = max(0, position - known)
        await self._guess(sent + DECODE_ROWS - len(chunk))
        guesses = [g.token for g in self._guesses[sent : sent + DECODE_ROWS - len(chunk)]]
        return (*chunk, *guesses)

    async def _guess(self, count: int) -> None:
        """Extend the guesses to `count`, as far as they are worth their rows."""
        session = self._session
        if not session.opened.draft or not self._in_step:
            return
        if self._drafter is None:
            self._drafter = Drafter(self._past)
            for start in range(0, len(session.tokens), LEARN_TOKENS):
                self._drafter.learn(session.tokens[start : start + LEARN_TOKENS])
                await asyncio.sleep(0)
        engine = self._engine
        smallest = self._pace.smallest_chance(engine.cost, engine.decoding, engine.idle)
        chance = prod(g.chance for g in self._guesses)
        most = min(count, MAX_AHEAD, session.last_row + 1 - len(session.tokens))
        while len(self._guesses) < most:
            guess = self._drafter.guess([g.token for g in self._guesses])
            if guess is None or guess.token in session.opened.stop_tokens:
                return
            chance *= guess.chance
            if chance < smallest:
                return
            self._guesses.append(guess)

    def _take_in(self, arrival: object, position: int) -> int:
        try:
            return self._absorb(arrival, position)
        except PeerCheating as error:
            self._session.give_up_previous(error)
            # what came before the bad token counts: rows behind a wrong guess are void
            return min(position, len(self._session.in_hashes))

    def _absorb(self, arrival: object, position: int) -> int:
        """Take in what came; returns where to compute next.

        Raises:
            PeerCheating: tokens that are out of order or range, or contradict known ones.
        """
        session = self._session
        if isinstance(arrival, Rewire):
            self._rewired()
        elif isinstance(arrival, Given):
            token = self._given(arrival)
            if token is not None:
                position = self._heard(token.token, token.position, position)
        elif isinstance(arrival, Tokens):
            self._in_step = True
            for token in arrival.tokens:
                known = len(session.tokens)
                if token.token >= self._engine.decoder.config.vocabulary_size:
                    raise PeerCheating(f"token {token.token} is outside the vocabulary")
                if token.position < known:  # sent again for a hop that was replaced
                    if session.tokens[token.position] != token.token:
                        raise PeerCheating(f"another token for position {token.position}")
                    continue
                # Whether this hop has sent the row before it does not matter: one that took
                # another's place hears of tokens before it has caught up.
                if session.ended:
                    raise PeerCheating(f"a token for position {known} came after the answer's end")
                if token.position > known:
                    raise PeerCheating(
                        f"a token for position {token.position} came before its turn: "
                        f"position {known} is next"
                    )
                session.tokens.append(token.token)
                position = self._heard(token.token, known, position)
        return position

    def _heard(self, token: int, at: int, position: int) -> int:
        """A token is known: judge the guess of it; returns where to compute next."""
        sent = self._sent_at.pop(at - 1, None)
        if sent is not None:
            self._pace.observe(self._clock.monotonic() - sent)
        if self._drafter is not None:
            self._drafter.learn((token,))
        if not self._guesses:
            return min(position, at)
        guess = self._guesses[0]
        assert self._drafter is not None
        right = guess.token == token
        self._drafter.judge(guess, right)
        if right:
            del self._guesses[0]
            return position
        self._guesses.clear()
        self._sent_at.clear()
        if position > at:
            self._session.truncate(at)
        return min(position, at)

    def _given(self, given: Given) -> SampledToken | None:
        """The token that an ensemble chose, if it was not known."""
        session = self._session
        try:
            token = session.give(given, self._engine.decoder.config.vocabulary_size)
        except PeerRefused as error:
            session.report(error)
            return None
        if token is not None and isinstance(session.outlet, TokensOutlet):
            session.outlet.add([token])
        return token

    def _rewired(self) -> None:
        session = self._session
        session.control.post(session.rewired())

    async def _adopt(self) -> int:
        """Begin with what earlier sessions computed of the same prompt, as far as all hops have it;
        returns where to go on."""
        session, pages = self._session, self._pages
        if session.opened.resume and not session.is_last:
            return 0  # the hop behind has rows of this session
        found = await pages.find(token_names(session.tokens, session.adoptable))
        outlet = session.outlet
        if found and isinstance(outlet, RowsOutlet):
            outlet.ask(pages.onward())
            while outlet.asking:
                arrival = await session.inbox.get()
                if isinstance(arrival, Spared):
                    if arrival.turn == outlet.turn:
                        found = min(arrival.pages, found)
                        break
                else:
                    self._take_in(arrival, 0)
            session.control.post(Spared(session.id, 0, found))
        return pages.begin(found)

    async def _named(self, named: NamedPages) -> None:
        """The hop before would rather not send rows: say which of them are not needed."""
        session, pages = self._session, self._pages
        if session.in_hashes:
            session.give_up_previous(PeerCheating("pages were named after rows had come"))
            return
        found = await pages.find(named.names[: session.adoptable])
        self._asked = named
        if found and isinstance(session.outlet, RowsOutlet):
            session.outlet.ask(pages.onward())
        else:
            self._answer(found)

    def _spared(self, spared: Spared) -> None:
        """The hop behind has so many of the pages that it was asked about."""
        outlet = self._session.outlet
        if isinstance(outlet, RowsOutlet) and outlet.asking and spared.turn == outlet.turn:
            self._answer(min(spared.pages, self._pages.found))

    def _answer(self, pages: int) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            self._session.reply(asked.peer, Spared(self._session.id, asked.turn, pages))
