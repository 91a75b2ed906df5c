"""The machines: where they are, what they are, and what is true of them whatever they say."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from unisono.routing.coordinates import Position
from unisono.routing.placement.facts import ModelFacts, NodeFacts
from unisono.simulation import hardware
from unisono.simulation.events import SECOND
from unisono.simulation.geography import CITIES, one_way_us
from unisono.simulation.hardware import KINDS, Kind
from unisono.types import LayerRange, ModelId, NodeId, PeerAddress
from unisono.wire.records import LEASE_SECONDS, NodeRecord

NO_LAYERS = LayerRange(0, 0)
GIGABYTE = 1_000_000_000
LEASE_MS = int(LEASE_SECONDS * 1000)
ROUNDS = 24
"""Round trips that every machine measured before the run, for its coordinate."""
OVERSTATED = 8
"""A liar says that it is this many times faster than it is."""


@dataclass(slots=True, eq=False)
class Machine:
    """One node as it really is."""

    index: int
    node: NodeId
    address: PeerAddress
    city: int
    kind: Kind
    access_us: int
    """One way through its access line."""
    memory: int
    """Bytes offered."""
    up: int
    """Bytes per second that it can send."""
    down: int
    coordinate: tuple[int, int, int, int] = (0, 0, 0, 0)
    cell: int = 0
    """The part of the network whose records it keeps."""
    online: bool = True
    layers: LayerRange = NO_LAYERS
    """Loaded and served."""
    capacity: int = 0
    """Positions of keys and values in all."""
    free: int = 0
    """Positions that no session reserved."""
    sessions: int = 0
    slowness: int = 1
    """How many times slower than its kind it runs now."""
    marked: bool = False
    """One of those that lie in the scenario of liars, and are watched in the others."""
    liar: bool = False
    missing: bool = False
    """A liar that does not hold what it says, and refuses every session."""
    step_us: int = 0
    """True time of a decode step of its block."""
    row_us: int = 0
    prefill_until: int = 0
    """When the prompts that wait here now will be done."""
    sequence: int = 0
    life: int = 0
    """Counts its starts and ends: what was planned for an earlier one is void."""
    silent: bool = False
    """It went without a word, and no stream broke: only missing pings tell."""
    leaving: bool = False
    """It takes no new sessions: it will go, or load other layers."""
    moved_ms: int = 0
    """When it last chose a block, Unix milliseconds."""
    on_disk: LayerRange = NO_LAYERS
    """Weights that it need not download again."""
    phase: int = 0
    """A number at random, for when in their period its heartbeats come."""

    def hold(self, layers: LayerRange, model: ModelFacts) -> None:
        """Serve a block from now on, or none: room and times follow."""
        self.layers = layers
        self.on_disk = layers if layers.count else self.on_disk
        self.capacity = self.free = hardware.positions(self.memory, model, layers)
        self.sessions = 0
        self.retime(model)

    def retime(self, model: ModelFacts) -> None:
        """Times of the block, after the block or the slowness changed."""
        self.step_us = self.slowness * hardware.step_us(self.kind, model, self.layers)
        self.row_us = self.slowness * hardware.row_us(self.kind, model, self.layers)

    @property
    def boast(self) -> int:
        """How many times faster than it is it says to be."""
        return OVERSTATED if self.liar else 1

    def facts(self, model: ModelFacts) -> NodeFacts:
        """What it knows of itself when it chooses a block: speeds per layer as for one alone."""
        one = LayerRange(1, 2)
        return NodeFacts(
            node=self.node,
            memory=self.memory,
            step_us=hardware.step_us(self.kind, model, one) / self.boast,
            row_us=hardware.row_us(self.kind, model, one) / self.boast,
            bandwidth=self.up,
            coordinate=self.coordinate,
        )

    def record(self, model: ModelFacts, now: int, now_ms: int) -> NodeRecord:
        """What it says of itself at a time (microseconds, and Unix milliseconds).

        A machine measures its speed when it loads its block: slowness that comes later is not
        in the record.
        """
        self.sequence += 1
        said = self.slowness * self.boast
        waiting = max(0, self.prefill_until - now)
        return NodeRecord(
            node=self.node,
            address=self.address,
            model=model.model if self.layers.count else ModelId(""),
            layers=self.layers,
            free_positions=self.free,
            sessions=self.sessions,
            sequence=self.sequence,
            expires=now_ms + LEASE_MS,
            step_us=self.step_us // said,
            row_us=self.row_us // said,
            queue=waiting // max(1, self.row_us),
            memory=self.memory,
            bandwidth=self.up,
            coordinate=self.coordinate,
            leaving=self.leaving,
        )

    def loading_us(self, layers: LayerRange, model: ModelFacts) -> int:
        """Microseconds until it serves `layers`: downloads what is not on its disk, reads the
        rest at 1 GB/s."""
        overlap = min(layers.stop, self.on_disk.stop) - max(layers.start, self.on_disk.start)
        known = max(0, overlap)
        fetched = (layers.count - known) * model.layer_bytes
        read = layers.count * model.layer_bytes
        return fetched * SECOND // self.down + read * SECOND // GIGABYTE


def build(seed: int, count: int) -> list[Machine]:
    """`count` machines, drawn from the shares of cities and kinds."""
    draw = random.Random(f"world/{seed}")
    cities = draw.choices(range(len(CITIES)), [c.share for c in CITIES], k=count)
    kinds = draw.choices(KINDS, [k.share for k in KINDS], k=count)
    machines: list[Machine] = []
    for index, (city, kind) in enumerate(zip(cities, kinds, strict=True)):
        node = NodeId(hashlib.sha256(f"node/{seed}/{index}".encode()).hexdigest())
        access = kind.access_ms * math.exp(draw.gauss(0, 0.5))
        line = math.exp(draw.gauss(0, 0.4))
        machines.append(
            Machine(
                index=index,
                node=node,
                address=PeerAddress(node, "memory", (f"node-{index}:1",)),
                city=city,
                kind=kind,
                access_us=round(access * 1000),
                memory=round(kind.memory_gb * GIGABYTE),
                up=round(kind.up_mbit_s * line * 125_000),
                down=round(kind.down_mbit_s * line * 125_000),
                phase=draw.randrange(1 << 40),
            )
        )
    return machines


def gateway(seed: int, index: int, city: int) -> Machine:
    """A machine that serves clients and holds no layers, in a data centre of the city."""
    kind = KINDS[-1]
    node = NodeId(hashlib.sha256(f"gateway/{seed}/{index}".encode()).hexdigest())
    line = round(kind.up_mbit_s * 125_000)
    return Machine(
        index=-1 - index,
        node=node,
        address=PeerAddress(node, "memory", (f"gateway-{index}:1",)),
        city=city,
        kind=kind,
        access_us=round(kind.access_ms * 1000),
        memory=0,
        up=line,
        down=line,
    )


def find_places(machines: Sequence[Machine], seed: int) -> None:
    """Coordinates from measured round trips to `ROUNDS` machines at random, by the real code."""
    draw = random.Random(f"places/{seed}")
    places = [Position(random.Random(f"place/{seed}/{m.index}")) for m in machines]
    for _ in range(ROUNDS):
        for machine, place in zip(machines, places, strict=True):
            other = draw.randrange(len(machines))
            if machines[other] is machine:
                continue
            trip = round(2 * latency_us(machine, machines[other]) * (1 + draw.expovariate(20)))
            place.update(max(1, trip), places[other].coordinate, places[other].uncertainty)
    for machine, place in zip(machines, places, strict=True):
        machine.coordinate = place.coordinate


def latency_us(a: Machine, b: Machine) -> int:
    """Microseconds for a small packet from `a` to `b`."""
    if a is b:
        return 0
    return one_way_us(a.city, b.city) + a.access_us + b.access_us
