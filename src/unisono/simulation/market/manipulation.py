"""Whether a bidder raises its pay by splitting identities or boasting of speed.

Gateways choose by the code that real ones use (`routing.paths`, `costs`, `experience`); machines,
their true speeds and the arrival of sessions are drawn. All records are known to all gateways.
One operator manipulates, all others are honest; the same draws without the trick are the measure.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from enum import Enum

from unisono.errors import NetworkError
from unisono.routing.demand import price_of
from unisono.routing.experience import Experience, Trial
from unisono.routing.paths import best_path
from unisono.types import EvmAddress, LayerRange, ModelId, NodeId, PeerAddress
from unisono.wire.records import NodeRecord
from unisono.wire.terms import Terms

MODEL = ModelId("ab" * 32)
LAYERS = 32
PROMPT, TOKENS = 256, 32
POSITIONS = 4096
GATEWAYS = 4
UNIT = 1_000_000
CHAIN, CONTRACT = 1, EvmAddress("0x" + "00" * 20)


class Trick(Enum):
    """Of one operator with one machine."""

    NONE = "honest"
    SPLIT = "two identities for one machine"
    CROWD = "five identities for one machine"
    BOAST = "says that it is four times faster"
    BOAST_CROWD = "five identities, each four times faster"
    DEAR = "bids half as much again"
    DEAR_CROWD = "one fair bid and four dear ones"


_IDENTITIES = {Trick.SPLIT: 2, Trick.CROWD: 5, Trick.BOAST_CROWD: 5, Trick.DEAR_CROWD: 5}


class _Now:
    """A clock that is set."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class _Machine:
    """As it really is."""

    step: float
    """Seconds of a decode step alone."""
    price: int
    """Millionths of the unit per million tokens."""
    sessions: int = 0
    earned: int = 0
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Pay:
    """The operator's in one run."""

    earned: float
    """Millionths of the unit."""
    tokens: float
    others: float
    """What all others earned."""


@dataclass(order=True, slots=True)
class _Event:
    at: float
    number: int
    trial: Trial | None = field(compare=False, default=None)
    machine: int = field(compare=False, default=0)
    seconds: float = field(compare=False, default=0.0)


def run(trick: Trick, seed: int, *, machines: int = 16, sessions: int = 1500) -> Pay:
    """One market's day: `sessions` answers, bought one by one."""
    rng = random.Random(seed)
    # among the better ones, so that it is asked often without any trick
    drawn = [_Machine(0.02, round(0.03 * UNIT)), *(_drawn(rng) for _ in range(machines - 1))]
    records, owner = _records(trick, drawn)
    arrivals = [rng.expovariate(1.0) for _ in range(sessions)]
    gateways = [rng.randrange(GATEWAYS) for _ in range(sessions)]
    # so that machines are half used
    mean = sum(TOKENS * m.step for m in drawn) / machines / (0.5 * machines) / 3
    clock = _Now()
    known = [
        Experience(
            clock,
            salt=1 + rng.getrandbits(32),
            price_seconds=0.1,
            wallets=frozenset({(CHAIN, CONTRACT)}),
        )
        for _ in range(GATEWAYS)
    ]
    heap: list[_Event] = []
    earned = tokens = 0
    at = clock.at
    for number in range(sessions):
        at += arrivals[number] * mean
        while heap and heap[0].at <= at:
            _end(heapq.heappop(heap), drawn, clock)
        clock.at = at
        experience = known[gateways[number]]
        costs = experience.costs(range(PROMPT), TOKENS, keys=())
        try:
            path = best_path(records, MODEL, LAYERS, PROMPT + TOKENS, costs)
        except NetworkError:
            continue
        index = owner[path[0].node]
        machine = drawn[index]
        paid = price_of(path, LAYERS, PROMPT, TOKENS)
        machine.earned += paid
        trial = experience.trial(path, costs, PROMPT + TOKENS)
        trial.opened()
        machine.sessions += 1
        pace = machine.step * (1 + 0.1 * (machine.sessions - 1))
        seconds = PROMPT * pace / 32 + TOKENS * pace
        heapq.heappush(heap, _Event(at + seconds, number, trial, index, pace))
        if index == 0:
            earned += paid
            tokens += TOKENS
    while heap:
        _end(heapq.heappop(heap), drawn, clock)
    return Pay(earned, tokens, sum(m.earned for m in drawn[1:]))


def _drawn(rng: random.Random) -> _Machine:
    step = 0.03 * math.exp(rng.gauss(0.0, 0.4))
    # what a second of it costs, over the tokens of that second, and a margin
    price = round(0.05 * step / 0.03 * math.exp(rng.gauss(0.0, 0.25)) * UNIT)
    return _Machine(step, price)


def _records(trick: Trick, drawn: list[_Machine]) -> tuple[list[NodeRecord], dict[NodeId, int]]:
    records: list[NodeRecord] = []
    owner: dict[NodeId, int] = {}
    for index, machine in enumerate(drawn):
        faces = _IDENTITIES.get(trick, 1) if index == 0 else 1
        for face in range(faces):
            speed, price = machine.step, machine.price
            if index == 0 and trick in (Trick.BOAST, Trick.BOAST_CROWD):
                speed /= 4
            if index == 0 and (trick is Trick.DEAR or (trick is Trick.DEAR_CROWD and face)):
                price = price * 3 // 2
            node = NodeId(f"{1 + index * 8 + face:064x}")
            owner[node] = index
            records.append(
                NodeRecord(
                    node=node,
                    address=PeerAddress(node, "memory", (f"memory:{index}-{face}",)),
                    model=MODEL,
                    layers=LayerRange(0, LAYERS),
                    free_positions=8 * POSITIONS // faces,
                    sessions=0,
                    sequence=1,
                    expires=1,
                    step_us=round(speed * 1e6),
                    row_us=round(speed * 1e6 / 32),
                    price_in=price // 4,
                    price_out=price,
                    terms=Terms(CONTRACT, CHAIN, CONTRACT),
                )
            )
    return records, owner


def _end(event: _Event, drawn: list[_Machine], clock: _Now) -> None:
    """A session has ended: its gateway learns how long each token took."""
    trial, pace = event.trial, event.seconds
    assert trial is not None
    drawn[event.machine].sessions -= 1
    for number in range(TOKENS):
        clock.at = event.at - (TOKENS - 1 - number) * pace
        trial.arrived(1)
    trial.completed()
    trial.close()


@dataclass(frozen=True, slots=True)
class Gain:
    """What a trick brings over many runs."""

    trick: Trick
    ratio: float
    """Of the operator's pay with it to its pay without, sums over all runs."""
    error: float
    """One standard error of `ratio`, from the runs' differences."""


def gain(trick: Trick, runs: int, seed: int = 0, *, sessions: int = 1500) -> Gain:
    """Compare runs with the same draws."""
    pairs = [
        (
            run(trick, seed + i, sessions=sessions).earned,
            run(Trick.NONE, seed + i, sessions=sessions).earned,
        )
        for i in range(runs)
    ]
    base = sum(plain for _, plain in pairs)
    ratio = sum(tricky for tricky, _ in pairs) / base
    spread = [tricky - ratio * plain for tricky, plain in pairs]
    variance = sum(x * x for x in spread) / max(1, runs - 1)
    return Gain(trick, ratio, math.sqrt(variance * runs) / base)
