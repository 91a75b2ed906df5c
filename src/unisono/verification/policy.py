"""How often an answer is audited, and by how many: so that cheating costs more than it brings.

A node that cheats on an answer gains at most `gain`. An audit happens with probability p, finds
the truth with probability d, and then costs the node its stake and its escrow. For one answer
cheating does not pay if

    p · d · (stake + escrow) > gain

A stake answers for all answers whose audits are still open, and a node that cheats all the time
gives more of them before the first verdict reaches it. With at most n of those, each with an
escrow of its own, and q = p · d, no way of cheating pays if both are more than the gain:

    q · (stake + escrow)        q · (stake + n · escrow) / (1 + q · (n − 1))

For n = 1 they are the line above. docs/threat-model.md derives both and says what they assume;
`adversaries.gaining` plays them.
Amounts are integers in one unit of account, whatever it is; rates are per million.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

import msgspec

from unisono.errors import ConfigurationError
from unisono.verification.conduct import STRANGER, Conduct, trust
from unisono.wire.verification_messages import MAX_COMMITTEE, MILLION

DEFAULT_RATE = 5_000
"""Audits per million answers of a trusted node: half a per cent."""
DEFAULT_SEATS = 3
ADVERSARIES = 0.2
"""Share of the verifiers' stake that is assumed to work together against the truth."""
MARGIN = 1.25
"""Cheating is to lose this many times what it gains."""
PROVEN = 0.9
"""Trust from which on a tier's own rate is enough."""
STRANGER_FACTOR = 20.0
"""Answers of a node without a record are audited so much more often than those of a proven one."""


class Terms(NamedTuple):
    """What a tier asks for at least."""

    rate: int
    seats: int
    error: float
    """A committee's chance to hold a majority of adversaries is at most this."""
    final: bool
    """The answer counts only after its audit."""


class Tier(Enum):
    """What a client wants of verification."""

    ECONOMY = Terms(1_000, 3, 0.12, False)
    STANDARD = Terms(DEFAULT_RATE, DEFAULT_SEATS, 0.12, False)
    ASSURED = Terms(50_000, 5, 0.06, False)
    CRITICAL = Terms(MILLION, 9, 0.02, True)


class Exposure(msgspec.Struct, frozen=True):
    """What is at play between a node and its clients; amounts in one unit."""

    gain: int
    """The most that a wrong answer brings the node: its price, or what the client says that a
    wrong answer is worth to somebody."""
    stake: int
    """Slashed on conviction."""
    escrow: int = 0
    """Held back per answer until its audits are over; forfeited on conviction."""
    open_answers: int = 1
    """Answers of the node whose audits may still be open, at most."""


class Plan(msgspec.Struct, frozen=True):
    """What to do about one answer."""

    rate: int
    """Audits per million."""
    seats: int
    covered: bool
    """Whether this rate makes cheating a loss. If not, stake and escrow are too small even for an
    audit of everything: the answer is audited, and `missing` says what lacks."""
    missing: int
    """Escrow per answer that would have to be added."""
    final: bool
    """The answer counts only after its audit."""


def plan(
    exposure: Exposure,
    tier: Tier = Tier.STANDARD,
    conduct: Conduct = STRANGER,
    now: float = 0.0,
    *,
    adversaries: float = ADVERSARIES,
) -> Plan:
    """The rate and the committee for an answer.

    Reputation never lowers the rate below what deters: it decides how much is looked at beyond.

    Args:
        conduct: the node's record of verdicts, at `now` in seconds of the record's clock.
        adversaries: assumed share of adversaries among verifiers, by stake; below a half.

    Raises:
        ConfigurationError: a negative amount, or a share that no committee can bear.
    """
    if min(exposure.gain, exposure.stake, exposure.escrow) < 0 or exposure.open_answers < 1:
        raise ConfigurationError(f"amounts are not negative and an answer is open: {exposure}")
    terms = tier.value
    seats = _seats(exposure, terms, adversaries)
    needed = deterring_rate(exposure, detection(seats, adversaries))
    rate = max(rate_for(terms.rate, conduct, now), needed)
    missing = missing_escrow(exposure, detection(seats, adversaries))
    return Plan(rate, seats, missing == 0, missing, terms.final)


def _seats(exposure: Exposure, terms: Terms, adversaries: float) -> int:
    """The tier's committee, or the least larger one that deters where this one does not; the
    tier's own if none does."""
    least = committee_size(terms.error, adversaries, least=terms.seats)
    seats: int | None = least
    while seats is not None:
        if missing_escrow(exposure, detection(seats, adversaries)) == 0:
            return seats
        seats = larger_committee(seats)
    return least


def rate_for(rate: int, conduct: Conduct, now: float) -> int:
    """Audits per million of a node with this record, if those of a proven one are `rate`."""
    trusted = min(1.0, trust(conduct, now) / PROVEN)
    return min(MILLION, math.ceil(rate * (STRANGER_FACTOR - (STRANGER_FACTOR - 1.0) * trusted)))


def loss_per_answer(exposure: Exposure, rate: int, found: float) -> float:
    """The least that a node expects to lose on each answer that it cheats on, however it spreads
    its cheating, at `rate` audits per million.

    Args:
        found: chance that an audit of a false answer ends in a conviction.
    """
    each = rate / MILLION * found
    seldom = each * (exposure.stake + exposure.escrow)
    others = exposure.open_answers - 1
    always = each * (exposure.stake + (1 + others) * exposure.escrow) / (1 + each * others)
    return min(seldom, always)


def deterring_rate(exposure: Exposure, found: float) -> int:
    """The least rate per million at which cheating loses `MARGIN` times what it gains; `MILLION`
    if none does."""
    wanted = MARGIN * exposure.gain
    low, high = 0, MILLION
    while low < high:
        middle = (low + high) // 2
        if loss_per_answer(exposure, middle, found) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low


def missing_escrow(exposure: Exposure, found: float) -> int:
    """What each answer's escrow lacks for an audit of everything to deter; 0: nothing."""
    wanted, others = MARGIN * exposure.gain, exposure.open_answers - 1
    seldom = wanted / found - exposure.stake
    always = (wanted * (1 / found + others) - exposure.stake) / (1 + others)
    missing = max(0, math.floor(max(seldom, always) - exposure.escrow))
    while loss_per_answer(_with_escrow(exposure, missing), MILLION, found) < wanted:
        missing += 1  # once or twice: what was rounded off
    return missing


def _with_escrow(exposure: Exposure, more: int) -> Exposure:
    return msgspec.structs.replace(exposure, escrow=exposure.escrow + more)


def adversarial_majority(seats: int, adversaries: float) -> float:
    """The chance that adversaries hold more than half of the seats, drawn by stake.

    Binomial: seats are drawn without replacement, which only lowers it while no node holds much
    of the stake.
    """
    return sum(
        math.comb(seats, k) * adversaries**k * (1 - adversaries) ** (seats - k)
        for k in range(seats // 2 + 1, seats + 1)
    )


def detection(seats: int, adversaries: float) -> float:
    """The chance that an audit of a false answer ends in a conviction: whenever adversaries lack
    the majority, since a committee without one is followed by a larger."""
    return 1.0 - adversarial_majority(seats, adversaries)


def committee_size(error: float, adversaries: float, least: int = DEFAULT_SEATS) -> int:
    """The least odd number of seats with an adversarial majority at most as likely as `error`.

    Raises:
        ConfigurationError: not even `MAX_COMMITTEE` seats do.
    """
    for seats in range(least | 1, MAX_COMMITTEE, 2):
        if adversarial_majority(seats, adversaries) <= error:
            return seats
    raise ConfigurationError(
        f"no committee of up to {MAX_COMMITTEE} seats bears {adversaries:.0%} adversaries with an "
        f"error of {error}; assume fewer, or have disputes settled by the fraud game"
    )


def larger_committee(seats: int) -> int | None:
    """The size of the committee that follows one without a majority; None: the fraud game does."""
    larger = 2 * seats + 1
    return larger if larger <= MAX_COMMITTEE else None
