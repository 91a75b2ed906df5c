"""What a node's verdicts say of it: a pure function of what was found, fading in time.

How fast and how reliably a node serves is judged elsewhere, by those who route. Here count only
findings that others can check: claims that held or did not, and how it sat in committees.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from unisono.verification.verdict import CommitteeFaultKind

SOUND_HALF_LIFE = 7 * 86_400.0
"""Seconds in which an old success loses half of its weight: trust must be renewed."""
UNSOUND_HALF_LIFE = 90 * 86_400.0
"""Guilt lasts longer, and is not forever: keys are sold and stolen."""
SOUND_LIMIT = 1000.0
"""No past is so long that it outweighs a conviction."""
FAMILIAR = 5.0
"""Verified answers that make a stranger half trusted."""

Finding = Literal["verified", "served", "convicted", "false_challenge"] | CommitteeFaultKind
"""`verified`: an audit found the node's claim true. `served`: it voted with the truth in a
committee. `convicted`: a claim of it was found false, or it lost a dispute about one.
`false_challenge`: it contradicted a claim and lost the dispute."""

GRAVITY: dict[Finding, float] = {
    "verified": 0.0,
    "served": 0.0,
    # evidence that anyone can check
    "convicted": 1000.0,
    "false_challenge": 300.0,
    "double_commit": 300.0,
    "wrong_opening": 300.0,
    "copied_commit": 300.0,
    "stale_epoch": 300.0,
    "uncomputed": 300.0,
    "planted_check": 300.0,
    "two_faced": 300.0,
    # most of a committee said otherwise: a larger one, or the fraud game, tells who was right
    "dissent": 20.0,
    # seen by the auditor alone; happens to the honest when links break
    "no_reveal": 3.0,
    "late_reveal": 1.0,
    "no_commit": 1.0,
}
"""What a finding weighs against one verified answer."""


class Conduct(msgspec.Struct, frozen=True):
    """A node's record: two numbers, whatever it did, and when they had this weight."""

    sound: float = 0.0
    unsound: float = 0.0
    at: float = 0.0


STRANGER = Conduct()


def after(conduct: Conduct, finding: Finding, now: float) -> Conduct:
    """The record after one more finding, at `now` in seconds."""
    faded = fade(conduct, now)
    gravity = GRAVITY[finding]
    return Conduct(
        sound=min(SOUND_LIMIT, faded.sound + (gravity == 0.0)),
        unsound=faded.unsound + gravity,
        at=max(now, conduct.at),
    )


def fade(conduct: Conduct, now: float) -> Conduct:
    """The record as it weighs at `now`; time does not run backwards."""
    passed = max(0.0, now - conduct.at)
    return Conduct(
        sound=conduct.sound * 0.5 ** (passed / SOUND_HALF_LIFE),
        unsound=conduct.unsound * 0.5 ** (passed / UNSOUND_HALF_LIFE),
        at=max(now, conduct.at),
    )


def trust(conduct: Conduct, now: float) -> float:
    """From 0 (a stranger, or a cheat) towards 1 (verified often and lately, and never false)."""
    faded = fade(conduct, now)
    return faded.sound / (faded.sound + FAMILIAR + faded.unsound)
