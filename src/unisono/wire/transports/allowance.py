"""How much one peer may send through a relay, and how fast."""

from __future__ import annotations

from collections import OrderedDict

from unisono.clock import Clock
from unisono.types import NodeId

QUOTA_SECONDS = 3600.0
"""The time that a quota is for."""
MAX_REMEMBERED = 4096
"""Peers whose use is remembered; those that used nothing for longest are forgotten first."""


class Bucket:
    """A token bucket: `rate` per second on average, `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Clock) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._at = clock.monotonic()

    def _fill(self) -> None:
        now = self._clock.monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now

    def take(self, amount: float) -> float:
        """Use `amount`; the seconds to wait before the next use."""
        self._fill()
        self._level -= amount
        return max(0.0, -self._level / self._rate)

    def allows(self, amount: float) -> bool:
        """Use `amount` if it is there; whether it was."""
        self._fill()
        if self._level < amount:
            return False
        self._level -= amount
        return True


class Allowance:
    """One peer's: bytes per second, bytes per hour, introductions."""

    def __init__(self, rate: float, quota: int, clock: Clock) -> None:
        self._clock = clock
        self._quota = quota
        self._used = 0
        self._since = clock.monotonic()
        self.bytes = Bucket(rate, rate, clock)
        """A second's worth may come at once."""
        self.introductions = Bucket(1.0, 8.0, clock)
        self.circuits = 0
        """Open ones, as caller or as target."""

    @property
    def spent(self) -> bool:
        """Whether the quota of this hour is used up."""
        now = self._clock.monotonic()
        if now - self._since >= QUOTA_SECONDS:
            self._used, self._since = 0, now
        return self._used >= self._quota

    def use(self, size: int) -> float:
        """Count bytes; the seconds to wait before more."""
        self._used += size
        return self.bytes.take(size)


class Allowances:
    """Those of all peers of a relay."""

    def __init__(self, rate: float, quota: int, clock: Clock) -> None:
        self._rate = rate
        self._quota = quota
        self._clock = clock
        self._of: OrderedDict[NodeId, Allowance] = OrderedDict()

    def of(self, node: NodeId) -> Allowance:
        """The allowance of a peer, new if it is not remembered."""
        found = self._of.get(node)
        if found is None:
            found = self._of[node] = Allowance(self._rate, self._quota, self._clock)
            self._forget()
        self._of.move_to_end(node)
        return found

    def _forget(self) -> None:
        while len(self._of) > MAX_REMEMBERED:
            idle = next((node for node, a in self._of.items() if not a.circuits), None)
            if idle is None:
                return
            del self._of[idle]
