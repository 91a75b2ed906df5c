"""Blocks: which machine loads which layers when, decided by `routing.placement`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from unisono.errors import ConfigurationError
from unisono.routing.placement.joining import (
    INTERVAL_MS,
    SETTLE_MS,
    choose_block,
    is_drawn,
    should_move,
)
from unisono.simulation.cell import Cell, Gateway
from unisono.simulation.events import SECOND
from unisono.simulation.network import Network
from unisono.simulation.world import NO_LAYERS, Machine
from unisono.types import LayerRange, NodeId
from unisono.wire.records import NodeRecord

DRAIN = 30 * SECOND
"""A machine that changes its block, or leaves, lets its sessions go on for so long."""
REVIEW = 5 * SECOND
"""Machines ask themselves this often whether to hold other layers."""


class Placing:
    """Asks the real code what every machine would hold, and lets it load that."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._fleet = network.fleet
        self._events = network.events
        self._model = network.model
        self._reviewed: dict[tuple[int, int], tuple[tuple[NodeId, LayerRange], ...]] = {}
        """Per cell and city without a chain, what its members held when they thought about it."""

    def settle(self, cell: Cell, draw: random.Random) -> None:
        """The state before the run: the machines that are there joined one after another, each by
        its own choice, and have loaded their blocks."""
        members = [machine for machine in cell.members if machine.online]
        draw.shuffle(members)
        for machine in members:
            block = self._choice(cell, machine)
            if not block.count:
                continue
            machine.hold(block, self._model)
            self._fleet.changed(machine)
            cell.view[machine.node] = self._fleet.record(machine)
        for machine in cell.members:
            if not machine.online and members:
                # it was there before, and what it held then is still on its disk
                machine.on_disk = self._choice(cell, machine)

    def join(self, machine: Machine) -> None:
        """A machine has come: it chooses a block by what its region holds, and loads it."""
        self._load(machine, self._choice(self._fleet.cells[machine.cell], machine))

    def review(self, cell: Cell) -> None:
        """The members ask themselves whether to hold other layers: all of them while a layer has
        no holder and something has changed, else those that are drawn for this interval."""
        now_ms = self._events.unix_ms
        sides: dict[frozenset[NodeId], list[NodeRecord]] = {}
        for city in sorted({machine.city for machine in cell.members}):
            there = [machine for machine in cell.members if machine.city == city]
            records = self._fleet.visible(there[0], (cell,))
            # cities that see the same nodes decide together: one list for all of them
            records = sides.setdefault(frozenset(r.node for r in records), records)
            self._review(cell.index, there, records, now_ms)

    def _review(
        self, cell: int, there: list[Machine], records: list[NodeRecord], now_ms: int
    ) -> None:
        complete = is_complete(records, self._model.layers)
        key = (cell, there[0].city)
        if complete:
            self._reviewed.pop(key, None)
        else:
            held = tuple(sorted((r.node, r.layers) for r in records))
            if self._reviewed.get(key) == held:
                return
            self._reviewed[key] = held
        for machine in there:
            if not (machine.online and machine.layers.count) or machine.leaving:
                continue
            # asked first what `should_move` asks last, since it is cheaper
            if complete and not is_drawn(machine.node, now_ms, INTERVAL_MS, len(records)):
                continue
            if now_ms - machine.moved_ms < (INTERVAL_MS if complete else SETTLE_MS):
                continue
            target = should_move(
                records,
                machine.facts(self._model),
                machine.layers,
                self._model,
                now_ms=now_ms,
                moved_ms=machine.moved_ms,
            )
            if target is not None:
                self._move(machine, target)

    def _move(self, machine: Machine, target: LayerRange) -> None:
        """Take no new sessions, wait until those that run have ended, then load."""
        machine.leaving = True
        machine.moved_ms = self._events.unix_ms
        self._fleet.changed(machine)
        life = machine.life
        begun = self._events.now

        def check() -> None:
            if machine.life != life:
                return
            if machine.sessions and self._events.now - begun < DRAIN:
                self._events.after(SECOND, check)
                return
            self._network.gone(machine)
            self._load(machine, target)

        self._events.after(SECOND, check)

    def _load(self, machine: Machine, block: LayerRange) -> None:
        machine.moved_ms = self._events.unix_ms
        if not block.count:
            return
        waits = machine.loading_us(block, self._model)
        machine.hold(NO_LAYERS, self._model)
        self._fleet.changed(machine)
        self._events.after(waits, partial(self._serve, machine, block, machine.life))

    def _serve(self, machine: Machine, block: LayerRange, life: int) -> None:
        if machine.life != life or not machine.online:
            return
        self._network.ledger.moves += machine.on_disk != block
        machine.leaving = False
        machine.hold(block, self._model)
        self._fleet.changed(machine)

    def _choice(self, cell: Cell, machine: Machine) -> LayerRange:
        try:
            return choose_block(
                self._fleet.visible(machine, (cell,)), machine.facts(self._model), self._model
            )
        except ConfigurationError:
            return NO_LAYERS  # too small for a single layer


def covered(gateways: Sequence[Gateway], layers: int) -> float:
    """The part of the gateways that know a chain over all `layers`."""
    return sum(is_complete(g.records(), layers) for g in gateways) / max(1, len(gateways))


def is_complete(records: Sequence[NodeRecord], layers: int) -> bool:
    """Whether whole blocks lead from layer 0 to the last (`Coverage.complete`, and nothing else
    of it)."""
    blocks = {(r.layers.start, r.layers.stop) for r in records if r.layers.count and not r.leaving}
    reached = {0}
    for start, stop in sorted(blocks):
        if start in reached:
            reached.add(stop)
    return layers in reached
