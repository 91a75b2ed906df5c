"""Network coordinates: round trips of pairs that never measured each other.

Vivaldi with height vectors (Dabek, Cox, Kaashoek and Morris, "Vivaldi: a decentralized network
coordinate system", SIGCOMM 2004): every node is a point in space and a height above it, the
time its own link takes; a measured round trip pulls or pushes the point as a spring would. The
smallest of a peer's last samples stands for it, and a weak pull to the origin keeps the whole
network from drifting (Ledlie, Gardner and Seltzer, "Network coordinates in the wild", NSDI 2007).

A peer may lie about its coordinate, not about the time that we measure: no sample moves us
further than a quarter of its own round trip, and never over `MAX_STEP_US`.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict, deque

from unisono.types import NodeId

Coordinate = tuple[int, int, int, int]
"""Microseconds: x, y, z, height."""

ORIGIN: Coordinate = (0, 0, 0, 0)
MAX_US = 10_000_000
"""A coordinate further out than this in any direction says nothing."""
MAX_RTT_US = 10_000_000
MIN_HEIGHT_US = 50.0
MAX_STEP_US = 25_000.0
GRAVITY_US = 1_500_000.0
"""Distance from the origin at which the pull back is as long as `MAX_STEP_US`."""
_ERROR_GAIN = 0.25
_STEP_GAIN = 0.25
_SAMPLES = 4
_MAX_PEERS = 512
_MILLION = 1_000_000


def estimated_rtt(one: Coordinate, other: Coordinate) -> int:
    """The round trip between two coordinates, in microseconds."""
    square = sum((a - b) ** 2 for a, b in zip(one[:3], other[:3], strict=True))
    return math.isqrt(square) + max(0, one[3]) + max(0, other[3])


class Position:
    """This node's own coordinate, as its measurements have it."""

    __slots__ = ("_error", "_height", "_point", "_rng", "_samples")

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._point = [0.0, 0.0, 0.0]
        self._height = MIN_HEIGHT_US
        self._error = 1.0
        self._samples: OrderedDict[NodeId, deque[float]] = OrderedDict()

    @property
    def coordinate(self) -> Coordinate:
        """As records have it, in microseconds."""
        x, y, z = (round(v) for v in self._point)
        return x, y, z, round(self._height)

    @property
    def uncertainty(self) -> int:
        """Expected relative error, in millionths."""
        return min(_MILLION, round(self._error * _MILLION))

    def measured(self, peer: NodeId, seconds: float) -> int | None:
        """Note a round trip; the least of the peer's last ones in microseconds, if it is sane."""
        if not 0 < seconds * 1e6 <= MAX_RTT_US:
            return None
        kept = self._samples.setdefault(peer, deque(maxlen=_SAMPLES))
        self._samples.move_to_end(peer)
        while len(self._samples) > _MAX_PEERS:
            self._samples.popitem(last=False)
        kept.append(seconds * 1e6)
        return max(1, round(min(kept)))

    def update(self, rtt_us: int, other: Coordinate, uncertainty: int) -> None:
        """Move after a round trip of `rtt_us` to a peer that says it is at `other`.

        `uncertainty`: the peer's own, in millionths. Values that no honest peer has are ignored.
        """
        if not 0 < rtt_us <= MAX_RTT_US or other[3] < 0 or max(map(abs, other)) > MAX_US:
            return
        # A peer that calls itself certain must not count more than a well-placed honest one.
        theirs = min(1.0, max(0.05, uncertainty / _MILLION))
        weight = self._error / (self._error + theirs)
        gap = [a - b for a, b in zip(self._point, other[:3], strict=True)]
        apart = math.hypot(*gap)
        distance = apart + self._height + other[3]
        wrong = min(1.0, abs(distance - rtt_us) / rtt_us)
        gain = _ERROR_GAIN * weight
        self._error = min(1.0, max(0.01, wrong * gain + self._error * (1 - gain)))

        force = max(-rtt_us, min(rtt_us, rtt_us - distance))
        step = _STEP_GAIN * weight * force
        step = max(-MAX_STEP_US, min(MAX_STEP_US, step))
        if apart < 1.0:  # on the same spot: apart in any direction
            gap = [self._rng.gauss(0.0, 1.0) for _ in range(3)]
            whole, heights = math.hypot(*gap) or 1.0, 0.0
        else:
            whole, heights = distance, self._height + other[3]
        self._point = [p + step * g / whole for p, g in zip(self._point, gap, strict=True)]
        self._height = min(MAX_US / 2, max(MIN_HEIGHT_US, self._height + step * heights / whole))
        self._fall()

    def _fall(self) -> None:
        """The weak pull to the origin."""
        far = math.hypot(*self._point)
        if far < 1.0:
            return
        pull = min(far, MAX_STEP_US * (far / GRAVITY_US) ** 2)
        self._point = [p - pull * p / far for p in self._point]
