"""A staked node before the court of a chain: it signs claims for it, watches for challenges of
them, and defends them by itself.

All state is on the chain and in the briefs (`settlement.briefs`), so a node that was restarted goes
on. What it computes runs in processes of its own, so many at once; a game whose process had to make
room starts it again at its next move.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import msgspec

from unisono.clock import Clock
from unisono.compose.regenerating import Logged, Plead, Speak, Spoken
from unisono.compose.respondent import DISPUTE_NICE, Regeneration, Respondent, dispute_threads
from unisono.compose.wallet import PRIVATE_POLL, PUBLIC_POLL, Wallet
from unisono.errors import (
    ConfigurationError,
    LedgerUnreachable,
    PeerCheating,
    PeerRefused,
    SettlementError,
    UnisonoError,
)
from unisono.models.store import StoredModel
from unisono.settlement.advocates import Appeal, Case, State
from unisono.settlement.awards import Awards
from unisono.settlement.briefs import Brief, Briefs, encode_state
from unisono.settlement.claims import court_domain, settlement_claim
from unisono.settlement.courthouses import CourtRules, court_rules, courthouse
from unisono.settlement.disputes import Courthouse, Dispute, Opening
from unisono.settlement.eip712 import Domain, checksummed
from unisono.types import canonical
from unisono.verification.fraud.descriptors import Descriptors, descriptors
from unisono.verification.fraud.game import Party
from unisono.verification.fraud.wire import checked_rows
from unisono.wire.claims import epoch_at

log = logging.getLogger(__name__)

PROCESSES = 2
"""That compute for disputes at once."""
LOOK_BACK = 128
"""Blocks that are read again at each look: a chain may replace some."""
FIRST_RETRY, LONGEST_RETRY = 1.0, 60.0
"""Seconds before a game that failed is taken up again, doubled each time."""
MOST_MOVES = 100
"""Of a game, generously: so long after the last challenge a brief may still be needed."""


class Counsel:
    """Made by `Counsel.open`; `run` must run."""

    def __init__(
        self,
        respondent: Respondent,
        wallet: Wallet,
        model: StoredModel,
        program: Descriptors,
        house: Courthouse,
        rules: CourtRules,
        clock: Clock,
        poll_seconds: float,
    ) -> None:
        self._respondent, self._model, self._program = respondent, model, program
        self._key, self._deployment = wallet.key, wallet.deployment
        self._house, self._rules, self._clock = house, rules, clock
        self._awards = Awards(house.ledger, house.desk, wallet.deployment)
        self._poll_seconds = poll_seconds
        self._briefs = Briefs(None if wallet.folder is None else wallet.folder / "briefs")
        self._seats = Seats(respondent)
        self._games: dict[bytes, asyncio.Task[None]] = {}

    @classmethod
    async def open(
        cls,
        respondent: Respondent,
        wallet: Wallet,
        model: StoredModel,
        clock: Clock,
        epoch_seconds: int,
    ) -> Counsel:
        """Read the court's rules, and compile the model's program.

        Raises:
            ConfigurationError: the court counts epochs of another length.
            SettlementError: the chain does not answer.
        """
        house = courthouse(wallet.ledger, wallet.outbox, wallet.deployment, clock)
        rules = await court_rules(wallet.ledger, wallet.deployment)
        if rules.epoch_seconds != epoch_seconds:
            raise ConfigurationError(
                f"the court counts epochs of {rules.epoch_seconds} s, and this node of "
                f"{epoch_seconds} s: give --epoch-seconds {rules.epoch_seconds}"
            )
        program = await asyncio.to_thread(descriptors, model.manifest)
        poll = PRIVATE_POLL if await wallet.ledger.is_private() else PUBLIC_POLL
        return cls(respondent, wallet, model, program, house, rules, clock, poll)

    async def sign(self, brief: Brief, payer: str) -> bytes:
        """The signature of a claim's form for the chain. The brief is kept before it is given.

        Raises:
            PeerCheating: the brief does not fit its claim.
            PeerRefused: the claim cannot be defended, or there is no room to keep what that needs.
        """
        subject, answer = brief.subject, brief.answer
        problem = subject.problem()
        if problem is not None:
            raise PeerCheating(problem)
        if subject.claim.layers.start:
            if not brief.widths:
                raise PeerRefused("the rows that came in were not kept", "gone")
            checked_rows(subject, brief.widths, brief.rows)
        try:
            claim = settlement_claim(
                subject.claim,
                subject.request,
                subject.tokens or answer,
                self._program.root,
                self._model.manifest.config.vocabulary_size,
                checksummed(bytes.fromhex(payer[2:])),
            ).signed_by(self._key, self._domain())
        except ConfigurationError as error:
            raise PeerCheating(str(error)) from error
        self._forget()
        digest = claim.digest(self._domain())
        if self._briefs.find(digest) is None:
            self._briefs.keep(digest, msgspec.structs.replace(brief, claim=claim))
        return claim.signature

    def brief(self, claim: bytes) -> Brief | None:
        """What was kept of a claim that was signed for the chain, by its digest."""
        return self._briefs.find(claim)

    async def run(self) -> None:
        """Watch the court, and defend, until cancelled."""
        first, failures = self._deployment.block, 0
        try:
            while True:
                try:
                    head = await self._house.ledger.head()
                    for opening in await self._house.openings(first, head.number):
                        if opening.state.defender == self._key.address:
                            self._take(opening)
                    first = max(self._deployment.block, head.number - LOOK_BACK)
                    failures = 0
                except LedgerUnreachable as error:
                    failures += 1
                    log.warning("the court cannot be read (%d): %s", failures, error)
                wait = self._poll_seconds * 2.0 ** min(failures, 16)
                await self._clock.sleep(min(wait, LONGEST_RETRY))
        finally:
            for task in self._games.values():
                task.cancel()
            await self._seats.close()

    def _take(self, opening: Opening) -> None:
        if opening.game in self._games:
            return
        task = asyncio.create_task(self._defend(opening))
        self._games[opening.game] = task

    async def _defend(self, opening: Opening) -> None:
        """Play one game to its end, however often something fails."""
        name, delay = opening.game.hex()[:12], FIRST_RETRY
        brief = self._briefs.find(opening.state.claim)
        if brief is None or brief.claim is None:
            log.error("game %s… is about a claim that nothing was kept of: it is lost", name)
            return
        case = Case(brief.subject, brief.claim, self._program)
        data, loop = canonical(brief), asyncio.get_running_loop()

        def pleading(state: State) -> Pleading:
            return Pleading(self._seats, data, state, loop)

        while True:
            dispute = Dispute(self._house, case, opening, pleading)
            try:
                state = await dispute.run(self._poll_seconds)
            except UnisonoError as error:
                log.error("game %s… stands still, again in %.0f s: %s", name, delay, error)
                await self._clock.sleep(delay)
                delay = min(2 * delay, LONGEST_RETRY)
                continue
            if state.challenger_lost:
                log.warning("game %s… about a claim of this node is won", name)
                await self._collect()
            else:
                log.error("game %s… about a claim of this node is lost", name)
            return

    async def _collect(self) -> None:
        """Have paid out what false challenges brought."""
        try:
            await self._awards.collect(self._key.address)
        except SettlementError as error:
            log.warning("what was awarded is not paid out, `unisono wallet collect`: %s", error)

    def _forget(self) -> None:
        rules = self._rules
        due = self._clock.now() - rules.claim_seconds - MOST_MOVES * rules.move_seconds
        self._briefs.forget(epoch_at(max(0.0, due), rules.epoch_seconds) - 1)

    def _domain(self) -> Domain:
        return court_domain(self._deployment.chain_id, self._house.court.address)


class Processes(Protocol):
    """What starts processes that compute for disputes."""

    async def process(self, nice: int, threads: int) -> Regeneration:
        """One; whoever asks for it closes it.

        Raises:
            PeerRefused: it does not start.
        """
        ...


class Seats:
    """Processes that compute for disputes: so many, for whoever's turn it is."""

    def __init__(self, processes: Processes, count: int = PROCESSES) -> None:
        self._processes, self._count = processes, count
        self._turns = asyncio.Semaphore(count)
        self._idle: OrderedDict[Pleading, None] = OrderedDict()

    async def speak(self, pleading: Pleading) -> Appeal | None:
        """What a side says now.

        Raises:
            SettlementError: what computes has ended.
            PeerCheating: the chain took a move that the game off chain refuses.
        """
        async with self._turns:
            self._idle.pop(pleading, None)
            if pleading.process is None:
                while len(self._idle) >= self._count:
                    oldest, _ = self._idle.popitem(last=False)
                    await oldest.close()
                pleading.process = await self._processes.process(DISPUTE_NICE, dispute_threads())
            try:
                appeal = await pleading.speak()
            except PeerRefused as refusal:
                await pleading.close()
                raise SettlementError(f"what computes for a dispute: {refusal}") from refusal
            except BaseException:
                await pleading.close()
                raise
            self._idle[pleading] = None
            return appeal

    async def close(self) -> None:
        """End the processes."""
        while self._idle:
            pleading, _ = self._idle.popitem()
            await pleading.close()


@dataclass(eq=False)
class Pleading:
    """One side of one game, whose advocate is in a process that may come and go."""

    seats: Seats
    brief: bytes
    state: State
    loop: asyncio.AbstractEventLoop
    party: Party = "defender"
    process: Regeneration | None = None

    def __post_init__(self) -> None:
        self._first = self.state
        self._heard: list[tuple[State, bytes]] = []
        self._told = -1
        """Moves that the process knows of; -1: not even the game."""

    def hear(self, state: State, shown: bytes) -> None:
        """See `Pleader.hear`."""
        self.state = state
        self._heard.append((state, shown))

    def appeal(self) -> Appeal | None:
        """See `Pleader.appeal`; called in a thread."""
        if self.state.turn != self.party:
            return None
        return asyncio.run_coroutine_threadsafe(self.seats.speak(self), self.loop).result()

    async def speak(self) -> Appeal | None:
        """Tell the process what it does not know yet, and ask it."""
        assert self.process is not None
        if self._told < 0:
            await self.process.ask(Plead(self.brief, encode_state(self._first), self.party))
            self._told = 0
        while self._told < len(self._heard):
            state, shown = self._heard[self._told]
            await self.process.ask(Logged(encode_state(state), shown))
            self._told += 1
        data = await self.process.ask(Speak())
        if not data:
            return None
        spoken = msgspec.msgpack.decode(data, type=Spoken)
        return Appeal(spoken.function, (), spoken.contract, spoken.data)

    async def close(self) -> None:
        """End the process."""
        process, self.process = self.process, None
        self._told = -1
        if process is not None:
            await process.close()
