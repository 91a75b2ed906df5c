"""All machines of a run: what they reserve, compute and say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from unisono.routing.own_record import RENEW_SECONDS
from unisono.routing.placement.facts import ModelFacts
from unisono.simulation.cell import Cell
from unisono.simulation.control import FAREWELL_MS, GONE_MS, KNOWN_MS
from unisono.simulation.decoding import PROMPT_ROWS, Decoding
from unisono.simulation.events import SECOND, EventQueue
from unisono.simulation.session import Session
from unisono.simulation.world import LEASE_MS, Machine
from unisono.types import NodeId
from unisono.wire.records import NodeRecord

TICK = SECOND // 4
"""Decoding advances in steps of this many microseconds."""
SLOTS = 20
"""Heartbeats of all machines are spread over so many moments of a period."""
RENEW = round(RENEW_SECONDS * SECOND)
KNOWN = KNOWN_MS * 1000
LONGEST_CHAIN = 96


class Fleet:
    """The machines, and the model of their work."""

    def __init__(
        self, events: EventQueue, machines: Sequence[Machine], cells: list[Cell], model: ModelFacts
    ) -> None:
        count = len(machines)
        self.events = events
        self.machines = machines
        self.model = model
        self.decoding = Decoding(count, min(LONGEST_CHAIN, model.layers))
        self.reachable: Callable[[int, int], bool] = lambda a, b: True
        """Whether packets pass between two cities now."""
        self._cut_at: int | None = None
        self.sending_until: dict[int, int] = {}
        """Per machine, when its line will have sent the prompts' rows that wait."""
        self.step_us = np.zeros(count + 1)
        self.prefilling = np.zeros(count + 1, dtype=bool)
        self._row_us = np.zeros(count + 1)
        self._prefill_until = np.zeros(count + 1)
        self.cells = cells
        self._by_id = {machine.node: machine for machine in machines}
        self._here: list[dict[int, Session]] = [{} for _ in machines]
        """Per machine, the sessions that it serves, by the number of the request."""
        self._news = np.ones(count, dtype=bool)
        """Machines whose record would say something new."""
        self._slots: list[list[Machine]] = [[] for _ in range(SLOTS)]
        for machine in machines:
            self._slots[machine.phase % SLOTS].append(machine)
        self._slot = 0

    def machine(self, node: NodeId) -> Machine:
        """The machine of an id."""
        return self._by_id[node]

    # --- work

    def tick(self) -> tuple[float, list[tuple[int, int]]]:
        """Advance all decoding by `TICK`, up to now; see `Decoding.tick`."""
        self.prefilling = self._prefill_until > self.events.now
        return self.decoding.tick(
            self.step_us, self._row_us, self.prefilling, TICK, self.events.now
        )

    def prompt_share(self, hop: Machine) -> float:
        """The part of a machine's time that prompts get: what decoding leaves, and at least one
        piece per pass."""
        piece = PROMPT_ROWS * hop.row_us
        least = piece / max(1, piece + hop.step_us)
        return max(1 - float(self.decoding.busy[hop.index]), least, 0.01)

    def reads(self, hops: Iterable[Machine]) -> None:
        """The machines were given a prompt (`session.prefill_us`)."""
        for hop in hops:
            self._prefill_until[hop.index] = hop.prefill_until
            self._news[hop.index] = True

    def reserve(self, hop: Machine, session: Session) -> None:
        """The machine keeps room for a session."""
        hop.free -= session.positions
        hop.sessions += 1
        self._here[hop.index][session.request.number] = session
        self._news[hop.index] = True

    def release(self, hop: Machine, session: Session) -> None:
        """The session is over there; nothing if the machine knows it no more."""
        if self._here[hop.index].pop(session.request.number, None) is not None:
            hop.free += session.positions
            hop.sessions -= 1
            self._news[hop.index] = True

    def holds(self, hop: Machine, session: Session) -> bool:
        """Whether the machine still has the session."""
        return hop.online and session.request.number in self._here[hop.index]

    def gone(self, machine: Machine) -> list[Session]:
        """The machine forgets everything; the sessions that it had."""
        machine.prefill_until = 0
        self._prefill_until[machine.index] = 0
        self.sending_until.pop(machine.index, None)
        here, self._here[machine.index] = self._here[machine.index], {}
        return list(here.values())

    def changed(self, machine: Machine) -> None:
        """Its block, speed or intent changed."""
        machine.retime(self.model)
        self.step_us[machine.index] = machine.step_us
        self._row_us[machine.index] = machine.row_us
        self._news[machine.index] = True

    # --- records

    def record(self, machine: Machine) -> NodeRecord:
        """What the machine says of itself now."""
        self._news[machine.index] = False
        return machine.record(self.model, self.events.now, self.events.unix_ms)

    def beat(self) -> None:
        """The next slot's machines renew their records; their gateways know them `KNOWN` later.

        A record that would say the same again is not made: its lease is extended without.
        """
        said = [
            (machine, machine.life, self.record(machine))
            for machine in self._slots[self._slot]
            if machine.online and (self._news[machine.index] or self._reading(machine))
        ]
        self._slot = (self._slot + 1) % SLOTS
        if said:
            self.events.after(KNOWN, lambda: self._hear(said))

    def _reading(self, machine: Machine) -> bool:
        return machine.prefill_until > self.events.now

    def _hear(self, said: list[tuple[Machine, int, NodeRecord]]) -> None:
        for machine, life, record in said:
            if machine.life == life:  # else it has gone since, and may have said so
                self.cells[machine.cell].view[machine.node] = record

    def visible(self, observer: Machine, cells: Sequence[Cell]) -> list[NodeRecord]:
        """The records of regions that have reached `observer` and whose lease runs there."""
        if self._cut_at is None or self.events.now < self._cut_at + LEASE_MS * 1000:
            return [record for cell in cells for record in cell.view.values()]
        here = observer.city
        return [
            record
            for cell in cells
            for node, record in cell.view.items()
            if self.reachable(here, self._by_id[node].city)
        ]

    def farewell(self, machine: Machine, *, said: bool) -> None:
        """A machine is off: its region forgets it when it says so, else when its lease ends."""
        life = machine.life
        delay = 1000 * (FAREWELL_MS if said else GONE_MS)

        def forget() -> None:
            if machine.life <= life + 1:
                self.cells[machine.cell].view.pop(machine.node, None)

        self.events.after(delay, forget)

    def cut(self, reachable: Callable[[int, int], bool]) -> None:
        """Packets pass only between some cities from now on."""
        self.reachable, self._cut_at = reachable, self.events.now

    def heal(self) -> None:
        """Packets pass everywhere again."""
        self.reachable, self._cut_at = (lambda a, b: True), None
