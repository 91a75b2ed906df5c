"""A run: the world built, let go, and summed up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import msgspec

from unisono.routing.costs import Costs
from unisono.routing.paths import best_path
from unisono.simulation import cell as cells_of
from unisono.simulation import world
from unisono.simulation.cell import Cell, Gateway
from unisono.simulation.churn import Churn, populate
from unisono.simulation.control import Control
from unisono.simulation.events import SECOND, EventQueue, SimulatedClock
from unisono.simulation.fleet import RENEW, SLOTS, TICK, Fleet
from unisono.simulation.geography import CITIES
from unisono.simulation.hardware import MODEL, MODEL_NAME
from unisono.simulation.network import Choose, Network
from unisono.simulation.placing import REVIEW, Placing, covered
from unisono.simulation.policies import Walk, fewest_hops
from unisono.simulation.report import SAMPLE, Ledger, Report
from unisono.simulation.session import Session
from unisono.simulation.settings import Policy, Regions, Settings
from unisono.simulation.workload import Request, requests
from unisono.wire.records import NodeRecord

Progress = Callable[[int, int, str], None]
MODELLED = (
    "compute: step and row times from each machine's memory bandwidth and operations; sessions "
    "batched as the engine does, advanced every 0.25 s",
    "links: mean round trips between cities, access lines, and bandwidth; prompts queue on lines",
    "gossip: records reach their gateways after a fixed delay, and cost fixed bytes, both measured "
    "on the real exchange code",
    "signatures: records are not signed; drafts: one token per loop; prefixes: none in common",
)
"""What is not the real code."""


class Simulation:
    """Everything of one run; `run` once."""

    def __init__(self, settings: Settings) -> None:
        """Raises: ConfigurationError, if the settings make no sense."""
        self.settings = settings.checked()
        self.events = EventQueue(settings.start)
        self.ledger = Ledger()
        self.control = Control()
        machines = world.build(settings.seed, settings.nodes)
        populate(machines, settings)
        near = settings.regions is Regions.DISTANCE
        groups = (cells_of.by_distance if near else cells_of.by_hash)(machines, settings.view)
        self.cells = [Cell(index, members) for index, members in enumerate(groups)]
        self.fleet = Fleet(self.events, machines, self.cells, MODEL)
        self.gateways = self._gateways(near)
        places = [*machines, *(gateway.machine for gateway in self.gateways)]
        world.find_places(places, settings.seed)
        choose = _rule(settings)
        self.network = Network(self.fleet, self.gateways, choose, self.ledger, self.control)
        self.placing = Placing(self.network)
        self.churn = Churn(self.network, self.placing, settings)
        self._machine_seconds = 0.0

    def _gateways(self, near: bool) -> list[Gateway]:
        """As many as regions, in cities as clients are, or where their region is."""
        settings, cells = self.settings, self.cells
        draw = random.Random(f"gateways/{settings.seed}")
        cities = draw.choices(range(len(CITIES)), [c.share for c in CITIES], k=len(cells))
        if near:
            cities = [cells_of.main_city(cell.members) for cell in cells]
        clock = SimulatedClock(self.events)
        found: list[Gateway] = []
        for index, city in enumerate(cities):
            machine = world.gateway(settings.seed, index, city)
            known = cells_of.known_to(index, cells, settings.gateway_view, near=near)
            found.append(Gateway(index, machine, known, self.fleet.visible, clock))
        return found

    def run(self, progress: Progress = lambda done, total, what: None) -> Report:
        """Let the time pass; `progress` is told (minutes done, in all, what happens)."""
        settings, events = self.settings, self.events
        draw = random.Random(f"joins/{settings.seed}")
        minutes = max(1, round(settings.hours * 60))
        for number, cell in enumerate(self.cells):
            self.placing.settle(cell, draw)
            progress(0, minutes, f"region {number + 1} of {len(self.cells)} chooses its blocks")
        self.churn.schedule()
        self._feed(requests(settings.seed, settings.start, settings.end, settings.rate))
        self._every(TICK, self.network.tick)
        self._every(RENEW // SLOTS, self.fleet.beat)
        self._every(SAMPLE, self._sample)
        for number, cell in enumerate(self.cells):
            offset = REVIEW * number // len(self.cells)
            self._every(REVIEW, lambda cell=cell: self.placing.review(cell), offset)
        for minute in range(minutes):
            done = settings.start + (settings.end - settings.start) * (minute + 1) // minutes
            events.run_until(done)
            progress(minute + 1, minutes, f"{len(self.network.running)} answers in the making")
        return self.ledger.report(
            settings,
            MODEL_NAME,
            len(self.cells),
            len(self.network.running),
            self.fleet.decoding.gaps,
            self.control.per_machine(max(1.0, self._machine_seconds)),
            MODELLED,
        )

    def _feed(self, stream: Iterator[Request]) -> None:
        """Bring the next request when it is time; one is planned at a time."""
        request = next(stream, None)
        if request is None:
            return

        def arrive() -> None:
            self.network.arrive(request)
            self._feed(stream)

        self.events.at(request.arrives, arrive)

    def _every(self, period: int, act: Callable[[], None], offset: int = 0) -> None:
        def again() -> None:
            act()
            self.events.after(period, again)

        self.events.after(period + offset, again)

    def _sample(self) -> None:
        """A point of the curves."""
        online = [machine for machine in self.fleet.machines if machine.online]
        placed = [
            (gateway.machine, self.fleet.machine(record.node), record)
            for gateway, cell in zip(self.gateways, self.cells, strict=True)
            for record in self.fleet.visible(gateway.machine, (cell,))
            if record.layers.count and not record.leaving
        ]
        answering = sum(
            machine.online
            and machine.layers == record.layers
            and not machine.missing
            and self.fleet.reachable(machine.city, observer.city)
            for observer, machine, record in placed
        )
        running = self.network.running.values()
        links = {(s.gateway.index, hop.index) for s in running for hop in s.hops}
        links |= {(a.index, b.index) for s in running for a, b in pairwise(s.hops)}
        there = Counter(machine.cell for machine in online)
        self.control.elapsed(SAMPLE, there.values(), len(links))
        self._machine_seconds += len(online) * SAMPLE / SECOND
        self.ledger.sample(
            (self.events.now - self.settings.start) / (60 * SECOND),
            len(online),
            len(placed),
            answering,
            covered(self.gateways, MODEL.layers),
            len(running),
        )


def _rule(settings: Settings) -> Choose:
    """How gateways choose, by the policy."""
    if settings.policy is Policy.BEST_PATH:
        return _best_path
    if settings.policy is Policy.FEWEST_HOPS:
        return _fewest_hops
    chance = settings.policy is Policy.RANDOM
    walk = Walk(random.Random(f"policy/{settings.seed}") if chance else None)

    def walked(gateway: Gateway, session: Session, costs: Costs) -> tuple[NodeRecord, ...]:
        del costs
        left_out = session.avoid | session.refusing
        return walk(gateway.records(), MODEL.layers, session.positions, left_out)

    return walked


def _best_path(gateway: Gateway, session: Session, costs: Costs) -> tuple[NodeRecord, ...]:
    return best_path(
        gateway.records(),
        MODEL.model,
        MODEL.layers,
        session.positions,
        costs,
        session.avoid | session.refusing,
    )


def _fewest_hops(gateway: Gateway, session: Session, costs: Costs) -> tuple[NodeRecord, ...]:
    records = [
        msgspec.structs.replace(record, sessions=costs.load.sessions(record))
        for record in gateway.records()
        if not record.leaving and costs.load.room(record) >= session.positions
    ]
    left_out = session.avoid | session.refusing
    return fewest_hops(records, MODEL.layers, session.positions, left_out)


def simulate(settings: Settings, progress: Progress = lambda done, total, what: None) -> Report:
    """Run a simulation. The same settings give the same report.

    Raises:
        ConfigurationError: the settings make no sense.
    """
    return Simulation(settings).run(progress)
