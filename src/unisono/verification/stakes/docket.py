"""Claims that wait for their epoch's beacon value, and which of them the lottery then names."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from unisono.types import NodeId
from unisono.verification.stakes.beacon import AUDIT_DELAY, Beacon
from unisono.verification.stakes.lottery import LotteryKey, draw_ticket, wins
from unisono.verification.stakes.register import Register
from unisono.wire.claims import HopClaim
from unisono.wire.verification_messages import Ticket

MAX_WAITING = 65_536


@dataclass(frozen=True, slots=True)
class Case:
    """One hop's claim in one answer."""

    claim: HopClaim
    receipt: str
    """Id of the receipt that holds it, and all that a task needs."""
    rate: int
    """Audits per million, as policy set it when the answer was given."""
    seats: int
    """Size of the committee."""


class Docket:
    """An auditor's cases. It forgets none while there is room, and draws for each exactly once."""

    def __init__(
        self, key: LotteryKey, auditor: NodeId, beacon: Beacon, register: Register
    ) -> None:
        self._key = key
        self._auditor = auditor
        self._beacon = beacon
        self._register = register
        self._waiting: deque[Case] = deque(maxlen=MAX_WAITING)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, case: Case) -> None:
        """Take in a claim that has just arrived."""
        self._waiting.append(case)

    def take_due(self) -> list[Case]:
        """The cases whose beacon value has become public; they are not kept here any longer."""
        due: list[Case] = []
        left: deque[Case] = deque(maxlen=MAX_WAITING)
        for case in self._waiting:
            known = self._beacon.value(case.claim.epoch + AUDIT_DELAY) is not None
            (due if known else left).append(case)
        self._waiting = left
        return due

    def lots(self, cases: Iterable[Case]) -> list[tuple[Case, Ticket]]:
        """The cases whose lot wins (0.4 ms per lot, for a thread where there are many).

        A case whose epoch has no roster here is dropped: nobody could be asked.
        """
        won: list[tuple[Case, Ticket]] = []
        for case in cases:
            roster = self._register.roster(case.claim.epoch, self._auditor)
            if roster is None or case.rate <= 0:
                continue
            ticket = draw_ticket(
                self._key, self._auditor, case.claim, roster, case.rate, self._beacon
            )
            if ticket is not None and wins(ticket):
                won.append((case, ticket))
        return won

    def draw(self) -> list[tuple[Case, Ticket]]:
        """`lots` of those that are due."""
        return self.lots(self.take_due())
