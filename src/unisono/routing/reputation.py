"""How far a node's word can be trusted: a pure function of what was seen of it, fading in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec
import numpy as np
from numpy.typing import NDArray

from unisono.clock import Clock
from unisono.routing.recent import Recent
from unisono.types import NodeId
from unisono.wire.records import NodeRecord

HALF_LIFE = 300.0
"""Seconds in which what was seen loses half of its weight. A stranger that lied is asked again
after one to two of these, a node that lied for long after four, and has its old place back after
some answers."""
GUILT_HALF_LIFE = 7 * 86_400.0
"""Seconds in which a conviction loses half of its weight. One keeps a node from all work for so
long, and several for longer; nobody is asked again before, however few nodes are left."""
GUILT_LIMIT = 8.0
GOOD_LIMIT, BAD_LIMIT = 12.0, 64.0
"""No past is so long that a node may lie for a minute, and no guilt lasts a day."""
PRIOR_GOOD, PRIOR_BAD = 4.0, 0.1
"""A stranger counts as one that kept its word 40 times out of 41."""
MAX_STANDINGS = 16_384
MAX_CONVICTED = 1024
MAX_SAMPLES = 15.0


Floats = NDArray[np.float64]


class Deed(Enum):
    """What a node did with a session."""

    COMPLETED = "completed"
    """It ran to its end, with a claim."""
    REFUSED = "refused"
    """There was no room although the record said so: happens to the honest when several ask."""
    LATE = "late"
    """It was opened, and another chain that began later gave the first token."""
    FAILED = "failed"
    """It was opened and gave no token."""
    LOST = "lost"
    """The node was lost in the middle of the answer."""
    UNREACHABLE = "unreachable"
    """Nobody was at the node's address, or somebody else."""
    NOT_HELD = "not_held"
    """The node lacks layers that its record says it holds."""
    PRICE_BROKEN = "price_broken"
    """The node asks for more than its record says."""
    CREDIT_REFUSED = "credit_refused"
    """The node keeps what it owes for a service level that it missed."""
    DISSENTED = "dissented"
    """The node alone computed an answer of which a majority of a quorum computed another."""
    DOUBTED = "doubted"
    """As one of several hops; nobody knows yet which of them it was."""
    CONVICTED = "convicted"
    """Signed evidence shows that a claim of the node is false."""


BLAME = {
    Deed.COMPLETED: 0.0,
    Deed.REFUSED: 0.5,
    Deed.LATE: 0.5,
    Deed.FAILED: 2.0,
    Deed.LOST: 3.0,
    Deed.UNREACHABLE: 5.0,
    Deed.NOT_HELD: 3.0,
    Deed.PRICE_BROKEN: 6.0,
    Deed.CREDIT_REFUSED: 6.0,
    Deed.DISSENTED: 24.0,
    Deed.DOUBTED: 3.0,
    Deed.CONVICTED: 64.0,
}
"""What a deed weighs against the sessions that a node completed, each of which weighs one."""


class Pace(msgspec.Struct, frozen=True):
    """A speed that was measured some times: seconds per layer, fading into what the node says."""

    mean: float = 0.0
    samples: float = 0.0
    at: float = 0.0

    def weight(self, now: float) -> float:
        """How many recent measurements it is worth."""
        return faded(self.samples, now - self.at)

    def after(self, seconds: float, now: float) -> Pace:
        """With one more measurement. Its gain is that of a mean at first, and never below 1 / 8:
        a node that becomes slow is seen within some answers."""
        samples = self.weight(now)
        gain = max(1 / 8, 1 / (1 + samples))
        return Pace(self.mean + gain * (seconds - self.mean), min(MAX_SAMPLES, samples + 1), now)


class Standing(msgspec.Struct, frozen=True):
    """What is remembered of one node: a few numbers, whatever it did."""

    good: float = 0.0
    bad: float = 0.0
    at: float = 0.0
    """When `good` and `bad` had this weight, in seconds of a monotonic clock."""
    decode: Pace = Pace()
    """Of a decode step for a session that is alone."""
    read: Pace = Pace()
    """Of one row of a prompt."""
    guilt: float = 0.0
    """Convictions, fading by `GUILT_HALF_LIFE`."""
    guilt_at: float = 0.0
    denied: str = ""
    """What the node said last that it holds, and does not."""
    denied_at: float = 0.0


STRANGER = Standing()


def faded(weight: float, seconds: float) -> float:
    """What is left of a weight after this time."""
    return weight * 0.5 ** (max(0.0, seconds) / HALF_LIFE) if weight else 0.0


def guilt(standing: Standing, now: float) -> float:
    """The convictions of a node, as they weigh now."""
    passed = max(0.0, now - standing.guilt_at)
    return standing.guilt * 0.5 ** (passed / GUILT_HALF_LIFE) if standing.guilt else 0.0


def judged(standing: Standing, deed: Deed, now: float) -> Standing:
    """The standing after one more deed."""
    if deed is Deed.CONVICTED:
        weight = min(GUILT_LIMIT, guilt(standing, now) + 1.0)
        standing = msgspec.structs.replace(standing, guilt=weight, guilt_at=now)
    good = faded(standing.good, now - standing.at) + (deed is Deed.COMPLETED)
    bad = faded(standing.bad, now - standing.at) + BLAME[deed]
    return msgspec.structs.replace(
        standing, good=min(GOOD_LIMIT, good), bad=min(BAD_LIMIT, bad), at=now
    )


def odds(standing: Standing, now: float) -> float:
    """Failures to successes that are expected of the next session."""
    passed = now - standing.at
    bad = PRIOR_BAD + faded(standing.bad, passed)
    return bad / (PRIOR_GOOD + faded(standing.good, passed))


def believed(mean: Floats, samples: Floats, advertised: Floats) -> Floats:
    """Seconds per layer to reckon with: what a node says (0: nothing) until it is measured.

    One measurement counts three quarters, two fifteen sixteenths. Old ones give way to the
    advertised figure again: a node that became fast is tried once in a while.
    """
    seen = np.where(advertised > 0, 1 - 0.25**samples, samples > 0)
    return seen * mean + (1 - seen) * advertised


def held_by(record: NodeRecord) -> str:
    """What a record says that its node holds."""
    return f"{record.model}/{record.layers}"


class Reputation:
    """The standings of the nodes that this gateway met, the latest `limit` of them."""

    def __init__(self, clock: Clock, limit: int = MAX_STANDINGS) -> None:
        self._clock = clock
        self._standings: Recent[NodeId, Standing] = Recent(limit)
        self._convicted: Recent[NodeId, Standing] = Recent(MAX_CONVICTED)
        """Apart, so that no crowd of strangers pushes them out."""
        self.withheld: frozenset[NodeId] = frozenset()
        """Nodes that get no session which asks for a service level."""
        self.on_deed: Callable[[NodeId, Deed], None] = lambda node, deed: None
        """Told of everything that `saw` is told."""

    def saw(self, record: NodeRecord, deed: Deed) -> None:
        """Take in what the node of a record did.

        `Deed.NOT_HELD` bans this very claim for a half-life: an honest node that was about to
        take another block says something else soon, and is judged by that.
        """
        now = self._clock.monotonic()
        after = judged(self.standing(record.node), deed, now)
        if deed is Deed.NOT_HELD:
            after = msgspec.structs.replace(after, denied=held_by(record), denied_at=now)
        self._standings.put(record.node, after)
        self.on_deed(record.node, deed)

    def convict(self, node: NodeId) -> None:
        """Take in that the node is proven guilty, whether it was met here or not."""
        after = judged(self.standing(node), Deed.CONVICTED, self._clock.monotonic())
        self._standings.put(node, after)
        self._convicted.put(node, after)

    def decoded(self, node: NodeId, seconds: float) -> None:
        """Take in how long a decode step of the node took per layer, as if it were alone."""
        if 0 < seconds < 3600:
            now, standing = self._clock.monotonic(), self.standing(node)
            pace = standing.decode.after(seconds, now)
            self._standings.put(node, msgspec.structs.replace(standing, decode=pace))

    def read(self, node: NodeId, seconds: float) -> None:
        """Take in how long a row of a prompt took the node per layer."""
        if 0 < seconds < 3600:
            now, standing = self._clock.monotonic(), self.standing(node)
            pace = standing.read.after(seconds, now)
            self._standings.put(node, msgspec.structs.replace(standing, read=pace))

    def standing(self, node: NodeId) -> Standing:
        """What is remembered of a node."""
        return self._standings.get(node) or STRANGER

    def odds(self, node: NodeId) -> float:
        """Failures to successes that are expected of its next session: 0.025 of a stranger, 1
        where it fails as likely as not."""
        known = self._standings.get(node)
        if known is None:
            return PRIOR_BAD / PRIOR_GOOD
        return odds(known, self._clock.monotonic())

    def convicted(self, node: NodeId) -> bool:
        """Whether a conviction of the node still bars it from all work."""
        known = self._convicted.get(node)
        return known is not None and guilt(known, self._clock.monotonic()) >= 0.5

    def barred(self, record: NodeRecord) -> bool:
        """Whether the node is not asked even when nobody else is left: it is convicted, or was just
        found not to hold what its record says."""
        if self.convicted(record.node):
            return True
        known = self._standings.get(record.node)
        return (
            known is not None
            and bool(known.denied)
            and self._clock.monotonic() - known.denied_at < HALF_LIFE
            and known.denied == held_by(record)
        )

    def banned(self, record: NodeRecord) -> bool:
        """Whether the node rather fails than not: it is asked only when nobody else is left. Of
        those that are barred not even then."""
        if self.barred(record):
            return True
        known = self._standings.get(record.node)
        if known is None:
            return False
        if known.bad < PRIOR_GOOD - PRIOR_BAD:
            return False  # spares most nodes the arithmetic
        return odds(known, self._clock.monotonic()) >= 1

    def banned_among(self, records: Iterable[NodeRecord]) -> frozenset[NodeId]:
        """The nodes of these records that are banned."""
        return frozenset(r.node for r in records if self.banned(r))

    def judge(self, records: Sequence[NodeRecord]) -> Judgement:
        """The nodes of all these records at once, as arrays."""
        now = self._clock.monotonic()
        known = [self._standings.get(r.node) or STRANGER for r in records]
        table = np.array(
            [
                (
                    *(k.bad, k.good, now - k.at),
                    *(k.decode.mean, k.decode.samples, now - k.decode.at),
                    *(k.read.mean, k.read.samples, now - k.read.at),
                )
                for k in known
            ],
            dtype=np.float64,
        ).reshape(-1, 9)
        bad, good, passed, decode, decoded, decoded_ago, read, was_read, read_ago = table.T
        return Judgement(
            odds=(PRIOR_BAD + _fade(bad, passed)) / (PRIOR_GOOD + _fade(good, passed)),
            decode=decode,
            decode_samples=_fade(decoded, decoded_ago),
            read=read,
            read_samples=_fade(was_read, read_ago),
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of some nodes, as arrays over them."""

    odds: Floats
    """Failures to successes that are expected of the next session."""
    decode: Floats
    """Measured seconds of a decode step per layer."""
    decode_samples: Floats
    """How many recent measurements that is worth."""
    read: Floats
    """Measured seconds of a row of a prompt per layer."""
    read_samples: Floats


def _fade(weight: Floats, seconds: Floats) -> Floats:
    return weight * 0.5 ** (np.maximum(seconds, 0) / HALF_LIFE)
