"""A party's part in a dispute on a chain: it follows the court's logs, and moves at its turn.

All state is on the chain. A process that dies finds its disputes again with `against` and goes on;
where the chain replaces blocks, the logs are read again from the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from unisono.clock import Clock
from unisono.errors import SettlementError, TransactionRefused
from unisono.settlement.advocates import DECIDED, Appeal, Case, State
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import ChainReceipt, Ledger, Log

POLL_SECONDS = 2.0
"""Between two looks at the chain."""


class Pleader(Protocol):
    """What a party's advocate does; it is asked in a thread. See `Advocate`."""

    def hear(self, state: State, shown: bytes) -> None:
        """Take in what the court logged."""
        ...

    def appeal(self) -> Appeal | None:
        """The party's next call; None if it is not its turn."""
        ...


Maker = Callable[[State], Pleader]
"""Makes a party's advocate from the state that was logged first."""


class Desk(Protocol):
    """What puts an account's messages on the chain, each once: an `Outbox`."""

    async def perform(self, intent: Intent, timeout: float | None = None) -> ChainReceipt:
        """Send, and wait until it can no longer be undone.

        Raises:
            TransactionRefused: the contract reverts.
            SettlementError: it is not final in time.
        """
        ...


@dataclass(frozen=True)
class Courthouse:
    """A chain's court, as one account uses it."""

    ledger: Ledger
    desk: Desk
    court: Contract
    judge: Contract
    clock: Clock

    async def send(self, appeal: Appeal, key: str, purpose: str) -> ChainReceipt:
        """Send a call, once per key.

        Raises:
            TransactionRefused: the court refuses it.
        """
        contract = self.court if appeal.contract == "court" else self.judge
        data = appeal.data or contract.encode(appeal.function, *appeal.arguments)
        return await self.desk.perform(Intent(contract.address, data, key=key, purpose=purpose))

    async def open(self, case: Case, salt: str = "") -> Opening:
        """Begin a game; the bond must be approved before.

        Raises:
            TransactionRefused: the court does not hear it, and says why.
        """
        receipt = await self.send(case.opening(), f"open {salt}", "opening a dispute")
        for log in receipt.logs:
            opening = self._opening(log)
            if opening is not None:
                return opening
        raise SettlementError("the court took the challenge and logged no game")

    async def against(self, case: Case, first: int, last: int) -> tuple[Opening, ...]:
        """The games about a claim that were opened in these blocks."""
        found = await self.openings(first, last)
        return tuple(x for x in found if x.claim == case.claim.words())

    async def openings(self, first: int, last: int) -> tuple[Opening, ...]:
        """All games that were opened in these blocks."""
        topic = self.court.topic("Opened")
        logs = await self.ledger.logs((self.court.address,), first, last, topic)
        found = (self._opening(log) for log in logs)
        return tuple(x for x in found if x is not None)

    def _opening(self, log: Log) -> Opening | None:
        event = self.court.event(log)
        if event is None or event[0] != "Opened":
            return None
        fields = event[1]
        return Opening(fields["game"], log.block, State(*fields["state"]), fields["signed"])


@dataclass(frozen=True, slots=True)
class Opening:
    """The log that began a game."""

    game: bytes
    block: int
    state: State
    claim: tuple[object, ...]
    """The words of the claim that was challenged."""


class Dispute:
    """One game, followed for one party."""

    def __init__(self, house: Courthouse, case: Case, opening: Opening, maker: Maker) -> None:
        self.house, self.case, self.opening, self._maker = house, case, opening, maker
        self.advocate = maker(opening.state)
        self.state = opening.state
        self.is_settled = False
        self._heard: list[Log] = []

    async def run(self, poll_seconds: float = POLL_SECONDS) -> State:
        """Play until the game is paid out; returns its last state. Deadlines bound how long it
        takes as long as the chain goes on.

        Raises:
            LedgerUnreachable: the chain does not answer.
            SettlementError: a call does not become final.
            PeerCheating: the court took a move that the game off chain refuses.
        """
        while True:
            await self.look()
            if self.is_settled:
                return self.state
            if not await self.act():
                await self.house.clock.sleep(poll_seconds)

    async def look(self) -> None:
        """Read what the court logged about the game."""
        house = self.house
        head = await house.ledger.head()
        logs = await house.ledger.logs((house.court.address,), self.opening.block, head.number)
        ours = [x for x in logs if len(x.topics) > 1 and x.topics[1] == self.opening.game]
        if ours[: len(self._heard)] != self._heard:  # the chain replaced blocks
            self.advocate, self.state = self._maker(self.opening.state), self.opening.state
            self._heard, self.is_settled = [], False
        for log in ours[len(self._heard) :]:
            await self._hear(log)
            self._heard.append(log)

    async def _hear(self, log: Log) -> None:
        name, fields = self.house.court.event(log) or ("", {})
        if name == "Moved":
            self.state = State(*fields["state"])
            await asyncio.to_thread(self.advocate.hear, self.state, fields["shown"])
        elif name == "Decided":
            self.state = self.state.decided(fields["challenger_lost"])
            await asyncio.to_thread(self.advocate.hear, self.state, b"")
        elif name == "Settled":
            # a party that was late has lost without a decision
            self.state = self.state.decided(fields["loser"] == self.state.challenger)
            self.is_settled = True

    async def act(self) -> bool:
        """Do what can be done now: move, or have a game paid out that is over. Returns whether
        anything was sent that the chain took."""
        state = self.state
        head = await self.house.ledger.head()
        if state.phase == DECIDED or head.timestamp > state.deadline:
            return await self._settle()
        # what it computes takes seconds, and messages are under way
        appeal = await asyncio.to_thread(self.advocate.appeal)
        if appeal is not None:
            purpose = f"move {state.moves} of a dispute ({appeal.function})"
            if await self._send(appeal, f"move {state.moves}", purpose):
                return True
        # a chain that makes blocks for messages only does not show that time passes
        return self.house.clock.now() > state.deadline + 1 and await self._settle()

    async def _settle(self) -> bool:
        return await self._send(self.case.settling(self.state), "settle", "settling a dispute")

    async def _send(self, appeal: Appeal, key: str, purpose: str) -> bool:
        try:
            await self.house.send(appeal, f"{self.opening.game.hex()} {key}", purpose)
        except TransactionRefused:
            # somebody was faster (a settlement), or the time is over; the logs tell
            return False
        return True
