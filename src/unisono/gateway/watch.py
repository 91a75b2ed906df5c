"""The gateway's eye on its network: how healthy each model is, and what is wrong if not."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from unisono.clock import Clock
from unisono.gateway.served import ServedModel
from unisono.routing.health import WHOLE, Attendance, Health
from unisono.routing.network import Network, NodeStatus
from unisono.types import ModelId

WATCH_SECONDS = 5.0
"""Between two looks at a network that nobody asks about: who departs in between is noticed."""

SOON_SECONDS = 0.1
"""The least time between two looks, however many requests fail."""


class Trouble(enum.StrEnum):
    """Why the network should not or cannot answer. The values are those of the response header
    `x-unisono-degraded`."""

    UNREACHABLE = "unreachable"
    """Not one node of any model answers."""
    COVERAGE = "coverage"
    """A layer has no holder, or holders do not form a chain."""
    AVAILABILITY = "availability"
    """Less of the placement answers than the threshold asks."""
    CAPACITY = "capacity"
    """Every holder of some layer is full."""
    ERROR = "error"
    """A peer failed in a way that leaving it out did not heal."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One model's health, and what is wrong with it."""

    health: Health
    trouble: Trouble | None

    @property
    def availability(self) -> str:
        """A share from 0 to 1 with up to three decimals, as response headers have it."""
        return f"{self.health.availability / WHOLE:.3g}"


class Watch:
    """Looks at a network at most every `fresh_seconds`, and remembers who departed."""

    def __init__(
        self,
        network: Network,
        clock: Clock,
        *,
        threshold: int = 900,
        fresh_seconds: float = 0.5,
    ) -> None:
        """`threshold` is the least availability that is no trouble, in thousandths."""
        self._network = network
        self._clock = clock
        self._threshold = threshold
        self._fresh = fresh_seconds
        self._attendance = Attendance(clock)
        self._looked: float | None = None
        self._conditions: dict[ModelId, Condition] = {}

    def nodes(self) -> tuple[NodeStatus, ...]:
        """The nodes that are known now."""
        self._look()
        return self._attendance.present

    def departed(self) -> tuple[NodeStatus, ...]:
        """The nodes that went away unannounced within the window, as they last were."""
        self._look()
        return self._attendance.departed

    def reachable(self) -> bool:
        """Whether any node answers, whatever it holds."""
        return any(node.alive for node in self.nodes())

    def condition(self, model: ServedModel) -> Condition:
        """How `model` is now."""
        self._look()
        known = self._conditions.get(model.id)
        if known is None:
            known = self._conditions[model.id] = self._judge(model)
        return known

    def look_again(self) -> None:
        """Something showed that the network has changed: look before the picture gets old, if it
        is not quite new."""
        if self._looked is not None and self._clock.monotonic() - self._looked >= SOON_SECONDS:
            self._looked = None

    async def run(self) -> None:
        """Look now and then, until cancelled, so that departures between requests are seen."""
        while True:
            self._look()
            await self._clock.sleep(WATCH_SECONDS)

    def _judge(self, model: ServedModel) -> Condition:
        health = self._attendance.health(model.id, model.layer_count)
        trouble: Trouble | None = None
        if health.missing:
            trouble = Trouble.COVERAGE if self.reachable() else Trouble.UNREACHABLE
        elif health.availability < self._threshold:
            trouble = Trouble.AVAILABILITY
        return Condition(health, trouble)

    def _look(self) -> None:
        now = self._clock.monotonic()
        # while nobody is known the network may begin any moment
        fresh = self._fresh if self._attendance.present else SOON_SECONDS
        if self._looked is None or now - self._looked >= fresh:
            self._looked = now
            self._attendance.observe(self._network.nodes())
            self._conditions.clear()
