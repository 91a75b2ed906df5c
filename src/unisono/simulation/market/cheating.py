"""What cheating brings against how often answers are audited.

A cheat gains `gain` on each answer it falsifies. An audit happens with probability p, seats a
committee, and convicts when those who work with the cheat lack its majority; a conviction costs
stake and escrow, and the cheat buys another identity with another stake. Money is in units; the
rule that audits are to deter by is p · d · (stake + escrow) > gain (`verification/policy.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np


class Strategy(Enum):
    """Of one operator."""

    HONEST = "honest"
    LAZY = "lazy"
    """Answers one in ten with a cheap guess: gains the computing that it saved."""
    MALICIOUS = "malicious"
    """Falsifies every answer, for a price that somebody else pays."""
    COLLUDING = "colluding"
    """As malicious, and its friends on committees vote for it."""


SHARE = {
    Strategy.HONEST: 0.0,
    Strategy.LAZY: 0.1,
    Strategy.MALICIOUS: 1.0,
    Strategy.COLLUDING: 1.0,
}
"""Of answers that are falsified."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is at play."""

    price: float = 0.0002
    """Of an answer."""
    cost: float = 0.00015
    """Of computing it."""
    saved: float = 0.00014
    """Of that, what a cheap guess saves."""
    bribe: float = 0.002
    """What somebody pays for a false answer."""
    stake: float = 100.0
    escrow: float = 0.01
    seats: int = 3
    friends: float = 0.2
    """Share of the verifiers, by stake, that collude."""

    def gain(self, strategy: Strategy) -> float:
        """Of one falsified answer."""
        return self.saved if strategy in (Strategy.HONEST, Strategy.LAZY) else self.bribe

    def detection(self, strategy: Strategy) -> float:
        """The chance that an audit of a false answer convicts: colluders need the majority."""
        if strategy is not Strategy.COLLUDING:
            return 1.0
        ways = range(self.seats // 2 + 1, self.seats + 1)
        captured = sum(
            math.comb(self.seats, k) * self.friends**k * (1 - self.friends) ** (self.seats - k)
            for k in ways
        )
        return 1.0 - captured

    def break_even(self, strategy: Strategy) -> float:
        """The audit rate at which cheating neither gains nor loses: gain / (d (stake + escrow))."""
        return self.gain(strategy) / (self.detection(strategy) * (self.stake + self.escrow))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Profit over honest work, per falsified answer, at one audit rate."""

    rate: float
    extra: float
    error: float
    """One standard error of `extra`."""
    convictions: int
    falsified: int


def cheat(
    terms: Terms, strategy: Strategy, rate: float, answers: int, rng: np.random.Generator
) -> Outcome:
    """Let an operator answer so many times; every draw is made, none is computed."""
    falsified = int(rng.binomial(answers, SHARE[strategy]))
    audited = int(rng.binomial(falsified, rate))
    votes = rng.random((audited, terms.seats)) < (
        terms.friends if strategy is Strategy.COLLUDING else 0.0
    )
    convictions = int((votes.sum(axis=1) <= terms.seats // 2).sum())
    lost = convictions * (terms.stake + terms.escrow)
    if not falsified:
        return Outcome(rate, 0.0, 0.0, 0, 0)
    extra = terms.gain(strategy) - lost / falsified
    chance = rate * terms.detection(strategy)
    error = (terms.stake + terms.escrow) * math.sqrt(chance * (1 - chance) / falsified)
    return Outcome(rate, extra, error, convictions, falsified)


def curve(
    terms: Terms, strategy: Strategy, answers: int, rng: np.random.Generator
) -> list[Outcome]:
    """Outcomes around the break-even rate."""
    even = terms.break_even(strategy)
    return [
        cheat(terms, strategy, min(1.0, even * x), answers, rng)
        for x in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    ]


def measured_break_even(outcomes: list[Outcome]) -> tuple[float, float]:
    """Where a line through the outcomes crosses zero, and one standard error of that.

    Least squares weighted by each outcome's error, since profit is linear in the rate.
    """
    x = np.array([o.rate for o in outcomes])
    y = np.array([o.extra for o in outcomes])
    weights = 1 / np.maximum(np.array([o.error for o in outcomes]), 1e-12)
    (slope, level), covariance = np.polyfit(x, y, 1, w=weights, cov="unscaled")
    rate = -level / slope
    gradient = np.array([level / slope**2, -1 / slope])
    return float(rate), float(np.sqrt(gradient @ covariance @ gradient))
