"""One direction between two places: when a packet arrives, and which packets never do."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

WANDER_SECONDS = 0.02
"""How often jitter takes a new value."""


@dataclass(frozen=True, slots=True)
class Path:
    """What lies between two places, the same in both directions.

    Args:
        delay_ms: one way.
        jitter_ms: added to the delay: a value that wanders between 0 and this one.
        loss: chance of each packet of at most 1,500 bytes, drawn independently.
        mbit: megabits per second, in each direction; 0 is unlimited.
        queue_ms: how long a packet may wait for its turn at `mbit` before it is dropped.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    mbit: float = 0.0
    queue_ms: float = 200.0

    def __post_init__(self) -> None:
        if min(self.delay_ms, self.jitter_ms, self.mbit, self.queue_ms) < 0:
            raise ValueError(f"delay, jitter, rate and queue cannot be negative: {self}")
        if not 0 <= self.loss < 1:
            raise ValueError(f"loss is a chance from 0 up to, not including, 1; got {self.loss}")


class Lane:
    """The state of one direction. What goes in first comes out first."""

    def __init__(self, path: Path, draw: random.Random) -> None:
        self.path = path
        self.cut = False
        """Whether nothing passes, silently."""
        self._draw = draw
        self._free = 0.0
        self._last = 0.0
        # Wide enough that a falling jitter alone never makes two packets change places.
        self._step = max(WANDER_SECONDS, 2 * path.jitter_ms / 1e3)
        self._knot = -1
        self._ends = (0.0, 0.0)
        self._until_loss = self._gap()

    def losses(self, packets: int) -> list[int]:
        """Which of the next `packets` packets are lost, by their index."""
        lost: list[int] = []
        at = self._until_loss
        while at < packets:
            lost.append(at)
            at += 1 + self._gap()
        self._until_loss = at - packets
        return lost

    def arrival(self, now: float, size: int) -> float | None:
        """When `size` bytes sent at `now` arrive, in seconds of the same clock; None if dropped."""
        path = self.path
        leaves = now
        if path.mbit:
            if self._free - now > path.queue_ms / 1e3:
                return None
            leaves = self._free = max(self._free, now) + size * 8 / (path.mbit * 1e6)
        self._last = max(self._last, leaves + path.delay_ms / 1e3 + self._jitter(leaves))
        return self._last

    def _jitter(self, now: float) -> float:
        if not self.path.jitter_ms:
            return 0.0
        knot, part = divmod(now, self._step)
        if knot != self._knot:
            first = self._ends[1] if knot == self._knot + 1 else self._value()
            self._ends = (first, self._value())
            self._knot = int(knot)
        return self._ends[0] + (self._ends[1] - self._ends[0]) * part / self._step

    def _value(self) -> float:
        return self._draw.uniform(0, self.path.jitter_ms / 1e3)

    def _gap(self) -> int:
        """Packets that pass before the next loss: one draw for many packets."""
        if not self.path.loss:
            return 1 << 62
        # A geometric draw by inversion; 1 - random() is never zero.
        return int(math.log(1.0 - self._draw.random()) / math.log1p(-self.path.loss))
