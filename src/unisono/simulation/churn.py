"""Who comes and goes, and what goes wrong: the scenarios."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial

from unisono.simulation.events import SECOND
from unisono.simulation.geography import CITIES, local_hour
from unisono.simulation.network import Network
from unisono.simulation.placing import DRAIN, Placing
from unisono.simulation.settings import Scenario, Settings
from unisono.simulation.world import NO_LAYERS, Machine

HOUR = 3600 * SECOND
STAY_HOURS = 5.0
"""Mean time that a machine at home is on, at midday."""
AWAY_HOURS = 2.5
SERVER_STAY_HOURS = 400.0
SERVER_AWAY_HOURS = 0.5
CRASHES = 0.15
"""Part of the departures that are crashes."""
SILENT = 0.5
"""Part of the crashes that break no stream: power, line, or machine."""
CHURN_FACTOR = 10.0
CHURN_CRASHES = 0.5
SLOW_PART, SLOWNESS = 0.10, 4
LIAR_PART = 0.05
ISLAND = "Europe"


def presence(machine: Machine, time: int) -> float:
    """The chance that a machine is on at a time of day: homes sleep around 4 o'clock."""
    if not machine.kind.at_home:
        return SERVER_STAY_HOURS / (SERVER_STAY_HOURS + SERVER_AWAY_HOURS)
    hour = local_hour(CITIES[machine.city], time)
    return 0.62 - 0.22 * math.cos((hour - 4) / 24 * 2 * math.pi)


def populate(machines: Sequence[Machine], settings: Settings) -> None:
    """Who is there at the start, and who lies."""
    draw = random.Random(f"presence/{settings.seed}")
    for machine in machines:
        machine.online = draw.random() < presence(machine, settings.start)
        machine.marked, empty = draw.random() < LIAR_PART, draw.random() < 0.5
        if settings.scenario is Scenario.LIARS:
            machine.liar = machine.marked
            machine.missing = machine.marked and empty


class Churn:
    """Schedules departures and returns, and what the scenario adds."""

    def __init__(self, network: Network, placing: Placing, settings: Settings) -> None:
        self._network = network
        self._fleet = network.fleet
        self._placing = placing
        self._settings = settings
        self._events = network.events
        self._draw = random.Random(f"churn/{settings.seed}")
        hectic = settings.scenario is Scenario.CHURN
        self._speed = CHURN_FACTOR if hectic else 1.0
        self._crashes = CHURN_CRASHES if hectic else CRASHES

    def schedule(self) -> None:
        """Plan the first change of every machine, and the scenario's own events."""
        for machine in self._fleet.machines:
            if machine.online:
                self._plan_leave(machine)
            else:
                self._plan_return(machine)
        start, length = self._settings.start, self._settings.end - self._settings.start
        if self._settings.scenario is Scenario.PARTITION:
            self._events.at(start + length // 3, self._cut)
            self._events.at(start + 2 * length // 3, self._heal)
        if self._settings.scenario is Scenario.SLOW:
            for machine in self._fleet.machines:
                if self._draw.random() < SLOW_PART:
                    when = start + length // 6 + self._draw.randrange(max(1, length // 2))
                    self._events.at(when, partial(self._slow_down, machine))

    # --- coming and going

    def _plan_leave(self, machine: Machine) -> None:
        if machine.kind.at_home:
            # who is likelier on stays longer
            mean = STAY_HOURS * presence(machine, self._events.now) / 0.62
        else:
            mean = SERVER_STAY_HOURS
        self._later(machine, mean, self._depart)

    def _plan_return(self, machine: Machine) -> None:
        if machine.kind.at_home:
            mean = AWAY_HOURS * 0.62 / presence(machine, self._events.now)
        else:
            mean = SERVER_AWAY_HOURS
        self._later(machine, mean, self._come)

    def _later(self, machine: Machine, hours: float, act: Callable[[Machine], None]) -> None:
        machine.life += 1
        life = machine.life
        delay = round(self._draw.expovariate(1 / hours) / self._speed * HOUR)

        def change() -> None:
            if machine.life == life:
                act(machine)

        self._events.after(delay, change)

    def _depart(self, machine: Machine) -> None:
        if self._draw.random() < self._crashes:
            self._network.ledger.crashes += 1
            machine.silent = self._draw.random() < SILENT
            self._off(machine, said=False)
            return
        self._network.ledger.leaves += 1
        machine.leaving = True
        machine.silent = False
        self._fleet.changed(machine)
        machine.life += 1
        self._drain(machine, machine.life, self._events.now)

    def _drain(self, machine: Machine, life: int, begun: int) -> None:
        """It says that it leaves, and goes once its sessions have ended, or after a while."""
        if machine.life != life:
            return
        if machine.sessions and self._events.now - begun < DRAIN:
            self._events.after(SECOND, partial(self._drain, machine, life, begun))
            return
        self._off(machine, said=True)

    def _off(self, machine: Machine, *, said: bool) -> None:
        machine.online = False
        self._network.gone(machine)
        machine.hold(NO_LAYERS, self._fleet.model)
        self._fleet.changed(machine)
        self._fleet.farewell(machine, said=said)
        self._plan_return(machine)

    def _come(self, machine: Machine) -> None:
        self._network.ledger.joins += 1
        machine.online, machine.leaving = True, False
        self._plan_leave(machine)
        self._placing.join(machine)

    # --- what the scenarios add

    def _cut(self) -> None:
        inside = [city.continent == ISLAND for city in CITIES]
        self._fleet.cut(lambda a, b: inside[a] == inside[b])
        self._network.cut()

    def _heal(self) -> None:
        self._fleet.heal()

    def _slow_down(self, machine: Machine) -> None:
        machine.slowness = SLOWNESS
        self._fleet.changed(machine)
