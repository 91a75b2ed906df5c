"""What one payer and one payee owe each other, counted alike on both sides.

A voucher promises a total. Of it some is charged for good (sessions that ended) and some is
reserved (sessions that run, each up to the positions that it is paid for). What is left is credit:

    credit = promised - charged - reserved >= 0

Both sides apply the same rules to the same messages, so that no protocol is needed to agree:

    pay(session, positions)    the payer promises what credit lacks; the payee checks that
    finish(session, tokens)    the hop signed: charged is the price of exactly that answer
    drop(session)              it ended without a signature: charged is all that was reserved

So a payer that goes away loses what it paid ahead, a payee that goes away keeps no more than that,
and either is one window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from unisono.types import SessionId

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a hop asks: prices through the whole model in units of the coin per million tokens, of
    which it is paid the share of its layers."""

    price_in: int
    price_out: int
    layers: int
    layer_count: int

    def amount(self, prompt: int, tokens: int) -> int:
        """Units for so many tokens read and written, rounded up."""
        asked = (prompt * self.price_in + tokens * self.price_out) * self.layers
        return -(-asked // (self.layer_count * MILLION))

    def upto(self, prompt: int, positions: int) -> int:
        """Units for the first `positions` of a session: those of the prompt, then the answer's."""
        return self.amount(min(prompt, positions), max(0, positions - prompt))


@dataclass(slots=True)
class Stay:
    """A session that runs."""

    tariff: Tariff
    prompt: int
    paid: int = 0
    """Positions."""

    @property
    def reserved(self) -> int:
        """Units for what is paid ahead."""
        return self.tariff.upto(self.prompt, self.paid)


@dataclass(slots=True)
class Account:
    """One payer's with one payee, in one epoch of their channel."""

    promised: int = 0
    """`cumulative` of the last voucher."""
    charged: int = 0
    stays: dict[SessionId, Stay] = field(default_factory=dict[SessionId, Stay])
    reserved: int = 0
    """The sum over `stays`."""

    @property
    def credit(self) -> int:
        """Units that are promised and bound to nothing."""
        return self.promised - self.charged - self.reserved

    def open(self, session: SessionId, tariff: Tariff, prompt: int) -> None:
        """A session begins; nothing is paid yet."""
        self.stays[session] = Stay(tariff, prompt)

    def lacking(self, session: SessionId, positions: int) -> int:
        """Units to be promised before a session is paid up to `positions`; 0 if none are."""
        stay = self.stays[session]
        more = stay.tariff.upto(stay.prompt, positions) - stay.reserved
        return max(0, more - self.credit)

    def reserve(self, session: SessionId, positions: int) -> bool:
        """Pay a session up to `positions` out of credit; False if that does not reach."""
        stay = self.stays[session]
        if positions <= stay.paid:
            return True
        if self.lacking(session, positions):
            return False
        before = stay.reserved
        stay.paid = positions
        self.reserved += stay.reserved - before
        return True

    def finish(self, session: SessionId, tokens: int) -> None:
        """The session's hop signed for so many tokens of its answer. What it was not paid for is
        not charged: a payee signs before it is paid at its own risk."""
        stay = self._end(session)
        if stay is not None:
            self.charged += min(stay.tariff.amount(stay.prompt, tokens), stay.reserved)

    def drop(self, session: SessionId) -> None:
        """The session ended without a signature."""
        stay = self._end(session)
        if stay is not None:
            self.charged += stay.reserved

    def _end(self, session: SessionId) -> Stay | None:
        stay = self.stays.pop(session, None)
        if stay is not None:
            self.reserved -= stay.reserved
        return stay
