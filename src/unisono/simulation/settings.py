"""What a run is made of."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from unisono.errors import ConfigurationError
from unisono.simulation.events import SECOND

MOST_NODES = 100_000
MOST_HOURS = 24.0
VIEW = 256
"""`routing.membership.VIEW`, named here so that reading the command line loads none of it."""
REQUESTS_PER_NODE = 0.003
"""Requests per second and node, if nothing else is asked for."""


class Policy(StrEnum):
    """Rules for choosing a chain."""

    BEST_PATH = "best_path"
    FEWEST_HOPS = "fewest_hops"
    RANDOM = "random"
    ROUND_ROBIN = "round_robin"


class Scenario(StrEnum):
    """What goes wrong."""

    STEADY = "steady"
    """Nodes come and go with the hours of the day; a few crash."""
    CHURN = "churn"
    """Nodes come and go ten times as often, and half of those that go crash."""
    PARTITION = "partition"
    """Europe cannot reach other continents during the middle third of the run."""
    SLOW = "slow"
    """A tenth of the nodes becomes four times slower, without saying so."""
    LIARS = "liars"
    """A twentieth claims eight times its speed; half of them hold no layers at all."""


class Regions(StrEnum):
    """Which nodes know each other."""

    HASH = "hash"
    """Those whose hashed ids share their first bits, as `routing.membership` has it."""
    DISTANCE = "distance"
    """Those that are near each other: what the network would be if regions followed distance."""


class Settings(msgspec.Struct, frozen=True):
    """One run: everything that its result depends on."""

    nodes: int = 10_000
    hours: float = 1.0
    seed: int = 1
    scenario: Scenario = Scenario.STEADY
    policy: Policy = Policy.BEST_PATH
    requests_per_second: float = 0.0
    """Of the whole network, as a mean over a day; 0 is `REQUESTS_PER_NODE` for every node."""
    view: int = VIEW
    """Nodes that know each other, at most."""
    gateway_view: int = VIEW
    """Nodes that a gateway knows and chooses from, at most."""
    regions: Regions = Regions.HASH
    start_hour: int = 14
    """Hour of the day in UTC at which the run begins."""

    @property
    def start(self) -> int:
        """Microseconds since midnight UTC."""
        return self.start_hour * 3600 * SECOND

    @property
    def end(self) -> int:
        """Microseconds since midnight UTC."""
        return self.start + round(self.hours * 3600 * SECOND)

    @property
    def rate(self) -> float:
        """Requests per second of the whole network, as a mean over a day."""
        return self.requests_per_second or self.nodes * REQUESTS_PER_NODE

    def checked(self) -> Settings:
        """These settings, if they make sense.

        Raises:
            ConfigurationError: one of them does not; the message says which and what would.
        """
        problems = {
            f"--nodes {self.nodes}: expected 8 to {MOST_NODES}": (8 <= self.nodes <= MOST_NODES),
            f"--hours {self.hours:g}: expected more than 0.001 and at most {MOST_HOURS:g}": (
                0.001 < self.hours <= MOST_HOURS
            ),
            f"--seed {self.seed}: expected 0 or more": self.seed >= 0,
            f"--requests-per-second {self.requests_per_second:g}: expected 0 to 100000": (
                0 <= self.requests_per_second <= 100_000
            ),
            f"--view {self.view}: expected 16 to {MOST_NODES}": 16 <= self.view <= MOST_NODES,
            f"--gateway-view {self.gateway_view}: expected --view ({self.view}) or more": (
                self.view <= self.gateway_view <= MOST_NODES
            ),
            f"--start-hour {self.start_hour}: expected 0 to 23": 0 <= self.start_hour <= 23,
        }
        wrong = next((problem for problem, fine in problems.items() if not fine), None)
        if wrong is not None:
            raise ConfigurationError(wrong)
        return self
