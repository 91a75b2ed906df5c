"""What a gateway knows of links: round trips it measured, and estimates for all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unisono.routing.coordinates import MAX_US, ORIGIN, Coordinate, estimated_rtt
from unisono.routing.recent import Recent
from unisono.types import NodeId
from unisono.wire.records import NodeRecord

Seconds = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_LINKS = 16_384
DEFAULT_ROUND_TRIP = 0.05
"""Seconds, before anything was measured: between two houses, not between two cities."""
DEFAULT_BANDWIDTH = 12_500_000.0
"""Bytes per second, for a node that has not measured its own: 100 Mbit/s."""
_GAIN, _DEVIATION_GAIN, _USUAL_GAIN = 1 / 8, 1 / 4, 1 / 256
_MICRO = 1e-6


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A smoothed round trip and its mean deviation, in seconds."""

    mean: float
    deviation: float

    def after(self, seconds: float) -> RoundTrip:
        """With one more measurement. Gains and order of RFC 6298 (Jacobson 1988)."""
        off = abs(self.mean - seconds)
        return RoundTrip(
            self.mean + _GAIN * (seconds - self.mean),
            self.deviation + _DEVIATION_GAIN * (off - self.deviation),
        )


class Links:
    """Round trips, measured from here; those between others are estimated.

    A coordinate is what a node says of itself. Where this gateway has measured both ends, the
    triangle inequality bounds what it may pretend: |a - b| <= link <= a + b.
    """

    def __init__(self, here: Callable[[], Coordinate] = lambda: ORIGIN) -> None:
        """`here` tells this gateway's own coordinate."""
        self._here = here
        self._trips: Recent[NodeId, RoundTrip] = Recent(MAX_LINKS)
        self._pings = 0
        self.usual = DEFAULT_ROUND_TRIP
        """Round trip of a link of which nothing is known: a mean of all that were measured.
        A newcomer without a coordinate is as far as anybody, or nobody would ever try it."""

    def pinged(self, node: NodeId, seconds: float) -> None:
        """A round trip to `node` took this long."""
        if not 0 <= seconds < 3600:
            return
        known = self._trips.get(node)
        trip = RoundTrip(seconds, seconds / 2) if known is None else known.after(seconds)
        self._trips.put(node, trip)
        self._pings += 1
        self.usual += max(_USUAL_GAIN, 1 / self._pings) * (seconds - self.usual)

    def measured(self, node: NodeId) -> RoundTrip | None:
        """What pings to `node` took, or None if there were none."""
        return self._trips.get(node)

    def round_trip(self, record: NodeRecord) -> float:
        """Seconds from this gateway to the node and back: measured, else estimated."""
        trip = self._trips.get(record.node)
        if trip is not None:
            return trip.mean
        here = self._here()
        if not (_placed(here) and _placed(record.coordinate)):
            return self.usual
        return estimated_rtt(here, record.coordinate) * _MICRO

    def bandwidth(self, record: NodeRecord) -> float:
        """Bytes per second that the node says it can send."""
        return float(record.bandwidth) or DEFAULT_BANDWIDTH

    def time(self, a: NodeRecord | None, b: NodeRecord | None, size: int = 0) -> float:
        """Seconds until `size` bytes sent by `a` have reached `b`; None is this gateway."""
        if a is None or b is None:
            ends = a or b
            one_way = self.round_trip(ends) / 2 if ends is not None else 0.0
        else:
            pair = np.array([0], dtype=np.intp), np.array([1], dtype=np.intp)
            one_way = float(self.survey((a, b)).round_trips(*pair)[0]) / 2
        rate = self.bandwidth(a) if a is not None else DEFAULT_BANDWIDTH
        return one_way + size / rate

    def survey(self, records: Sequence[NodeRecord]) -> Survey:
        """The links among these nodes, for many questions at once."""
        trips = [self._trips.get(r.node) or _UNMEASURED for r in records]
        mean = np.array([t.mean for t in trips], dtype=np.float64)
        deviation = np.array([t.deviation for t in trips], dtype=np.float64)
        measured = np.isfinite(mean)
        gateway = mean.copy()
        for i, trip in enumerate(trips):
            if trip is _UNMEASURED:
                gateway[i] = self.round_trip(records[i])
        points = np.array([r.coordinate for r in records], dtype=np.float64).reshape(-1, 4)
        placed = (points[:, :3].any(axis=1)) & (np.abs(points).max(axis=1, initial=0) <= MAX_US)
        return Survey(
            x=points[:, 0] * _MICRO,
            y=points[:, 1] * _MICRO,
            z=points[:, 2] * _MICRO,
            height=np.maximum(points[:, 3], 0) * _MICRO,
            placed=placed,
            near=np.where(measured, mean - deviation, -np.inf),
            far=np.where(measured, mean + deviation, np.inf),
            gateway=gateway,
            usual=self.usual,
        )


_UNMEASURED = RoundTrip(np.nan, 0.0)


@dataclass(frozen=True, slots=True)
class Survey:
    """Links among some nodes, as arrays over them. All times in seconds."""

    x: Seconds
    y: Seconds
    z: Seconds
    height: Seconds
    placed: NDArray[np.bool_]
    """Whether the node's coordinate says something."""
    near: Seconds
    """Measured round trips to the gateway less their deviation; -inf if not measured."""
    far: Seconds
    """The same plus their deviation; inf if not measured."""
    gateway: Seconds
    """Round trips to the gateway, measured or estimated."""
    usual: float
    """For links of which nothing is known."""

    def round_trips(self, a: Indices, b: Indices) -> Seconds:
        """Round trips between nodes `a` and `b`, arrays of indices that are broadcast."""
        square = (self.x[a] - self.x[b]) ** 2
        square += (self.y[a] - self.y[b]) ** 2
        square += (self.z[a] - self.z[b]) ** 2
        between = np.sqrt(square, out=square)
        between += self.height[a] + self.height[b]
        if not self.placed.all():
            # the middle of what the triangle allows: (|a - b| + a + b) / 2
            middle = np.maximum(self.far[a], self.far[b])
            middle = np.where(np.isfinite(middle), middle, self.usual)
            between = np.where(self.placed[a] & self.placed[b], between, middle)
        if np.isfinite(self.far).any():
            np.minimum(between, self.far[a] + self.far[b], out=between)
            np.maximum(between, self.near[a] - self.far[b], out=between)
            np.maximum(between, self.near[b] - self.far[a], out=between)
        return between


def _placed(point: Coordinate) -> bool:
    """Whether a coordinate says something: a node that has just begun is at the origin."""
    return any(point[:3]) and max(map(abs, point)) <= MAX_US
