"""How often something was caught, as a table shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Line:
    """One attack's figures."""

    attack: str
    caught_by: str
    costs: str
    """What it loses when it is caught."""
    audits: tuple[int, int] = (0, 0)
    """(caught, judged), by a mechanism that looks at all of it."""
    committees: tuple[int, int] = (0, 0)
    lots: tuple[int, int, int] = (0, 0, 0)
    """(convicted, won, drawn) at the default rate."""
    lights: tuple[int, int] = (0, 0)
    disputes: tuple[int, int] = (0, 0)
    saved: float = 0.0
    accused: int = 0
    """Honest parties that a final verdict blames."""
    false: tuple[int, int] = (0, 0)
    """(answers that the attack changed, all)."""
    note: str = ""

    def row(self, rate: float) -> dict[str, object]:
        """As it is printed; `rate` is the share of answers that the lottery names."""
        row: dict[str, object] = {
            "attack": self.attack,
            "caught by": self.caught_by,
            "of all audits": percent(*self.audits),
        }
        if self.lots[2]:
            convicted, _, drawn = self.lots
            found = self.committees[0] / self.committees[1]
            low, high = (1000 * x for x in interval(convicted, drawn))
            row |= {
                "answers changed": f"{self.false[0]}/{self.false[1]}",
                "committees": percent(*self.committees),
                "light audits": percent(*self.lights),
                "disputes": f"{self.disputes[0]}/{self.disputes[1]}",
                "per 1,000 answers": f"{1000 * convicted / drawn:.1f} [{low:.1f}, {high:.1f}]",
                "until 99 %": until_99(rate * found),
                "of a stranger": until_99(20 * rate * found),
            }
        elif self.audits[1] and self.audits[0] == self.audits[1]:
            row |= {"until 99 %": 1}
        return row | {
            "work saved": f"{100 * self.saved:.0f} %",
            "costs it": self.costs,
            "honest accused": self.accused,
            "note": self.note,
        }


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a probability (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    z, p = 1.96, hits / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def until_99(chance: float) -> int | str:
    """Answers until it is caught with 99 %."""
    if chance >= 1:
        return 1
    return "never" if chance <= 0 else math.ceil(math.log(0.01) / math.log(1 - chance))


def percent(hits: int, count: int) -> str:
    """A share with its 95 % interval."""
    low, high = interval(hits, count)
    return f"{hits / count:.3f} [{low:.3f}, {high:.3f}]" if count else ""
