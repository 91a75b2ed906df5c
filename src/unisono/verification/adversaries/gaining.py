"""Nodes that cheat when it pays: what they earn and lose under a rate of audits, drawn at random.

Nothing here uses the inequalities of `policy`; they are checked against it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unisono.verification.policy import Exposure
from unisono.wire.verification_messages import MILLION


@dataclass(frozen=True, slots=True)
class Deviation:
    """A node that cheats on some of the answers whose audits are open at one time."""

    exposure: Exposure
    rate: int
    """Audits per million answers."""
    found: float
    """The chance that an audit of a false answer ends in a conviction."""
    count: int
    """Of its open answers it cheats on so many."""

    def profits(self, rounds: int, chance: np.random.Generator) -> NDArray[np.float64]:
        """Per round what cheating brought beside honesty, float64 [rounds], if it then stops.

        Every answer that it cheats on brings the gain. Once one of them is audited and found false,
        the stake is lost, and the escrow of all of them.
        """
        audited = chance.binomial(self.count, self.rate / MILLION, rounds)
        convicted = chance.binomial(audited, self.found) > 0
        lost = float(self.exposure.stake + self.count * self.exposure.escrow)
        gained = self.count * float(self.exposure.gain)
        return gained - lost * convicted.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Persistent:
    """A node that goes on cheating until it is convicted, and comes back under another name with
    another stake, as often as it likes.

    Of the answers that may be open it cheats on `count`: as many follow a false one, less one,
    before the verdict on that reaches it. It may stop by itself after `last` false answers.
    """

    exposure: Exposure
    rate: int
    found: float
    count: int
    last: int = 1 << 40

    def profits(self, names: int, chance: np.random.Generator) -> NDArray[np.float64]:
        """What each of its names brought beside honesty, float64 [names]."""
        first, given = self.lives(names, chance)
        lost = self.exposure.stake + np.minimum(self.count, given) * float(self.exposure.escrow)
        return given * float(self.exposure.gain) - (first <= self.last) * lost

    def lives(
        self, names: int, chance: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Per name which false answer is the first that convicts it, and how many it gives."""
        first = chance.geometric(self.rate / MILLION * self.found, names)
        return first, np.minimum(first + self.count - 1, self.last)
