"""A fleet of simulated nodes and gateways on virtual time, for comparing ways to choose paths.

Nodes compute passes as the engine does: all decode steps that wait go together, and beside them
at most 64 rows of prompts. Rows and tokens take the time of their links. The code that chooses is
the real one. Same seed, same result.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from unisono.errors import NetworkError
from unisono.routing.costs import PROMPT_ROWS, SESSION_SHARE
from unisono.routing.experience import Experience, Trial
from unisono.routing.paths import Path
from unisono.routing.prefixes import prefix_keys
from unisono.types import LayerRange, ModelId, NodeId, PeerAddress
from unisono.wire.records import LEASE_SECONDS, NodeRecord

MODEL = ModelId("5a" * 32)
ANNOUNCE_SECONDS = 3.0
DIAL_SECONDS = 3.0
"""Until a gateway gives up on an address."""
MAX_ROWS = 256
MAX_ATTEMPTS = 6
ROW_BYTES = 2048


class Events:
    """A clock that jumps from event to event. Implements `unisono.clock.Clock`."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError("nothing in this simulation awaits: use `after`")

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` in so many seconds."""
        self._count += 1
        heapq.heappush(self._waiting, (self.time + seconds, self._count, act))

    def run(self, until: float = math.inf, done: Callable[[], bool] = lambda: False) -> None:
        """Let events happen until `until`, or until `done`."""
        while self._waiting and self._waiting[0][0] <= until and not done():
            self.time, _, act = heapq.heappop(self._waiting)
            act()


@dataclass(slots=True)
class Machine:
    """What a node is, and what it says it is."""

    layers: LayerRange
    step: float
    """Seconds of a decode step."""
    row: float
    """Seconds per row of a prompt."""
    place: tuple[int, int, int, int] = (1, 0, 0, 200)
    """Microseconds, as a coordinate."""
    positions: int = 20_000
    share: float = SESSION_SHARE
    """What one more session adds to a pass, as a share of a step; choosers take it for 0.1."""
    says_step: float | None = None
    """What it says instead of `step`."""
    lacks: bool = False
    """It holds nothing of what it says."""
    nowhere: bool = False
    """Nobody is at its address."""
    dear: bool = False
    """It asks for more than it says."""
    joins: float = 0.0
    """Seconds after the start."""


@dataclass(slots=True, eq=False)
class Work:
    """What a session does on one node."""

    session: Session
    hop: int
    rows: int = 0
    """Rows of the prompt that have come and wait."""


class Node:
    """One simulated node."""

    def __init__(self, events: Events, number: int, machine: Machine, rng: random.Random) -> None:
        self.events, self.machine = events, machine
        self.id = NodeId(hashlib.sha256(b"node %d" % number).hexdigest())
        self.rng = rng
        self.sessions = 0
        self.taken = 0
        self.sequence = 0
        self._steps: list[Work] = []
        self._prompts: deque[Work] = deque()
        self._computing = False

    def record(self) -> NodeRecord:
        m = self.machine
        self.sequence += 1
        return NodeRecord(
            node=self.id,
            address=PeerAddress(self.id, "memory", ("memory:0",)),
            model=MODEL,
            layers=m.layers,
            free_positions=m.positions - self.taken,
            sessions=self.sessions,
            sequence=self.sequence,
            expires=round((self.events.time + LEASE_SECONDS) * 1000),
            step_us=round((m.step if m.says_step is None else m.says_step) * 1e6),
            row_us=round(m.row * 1e6 * (1 if m.says_step is None else m.says_step / m.step)),
            queue=sum(w.rows for w in self._prompts),
            bandwidth=125_000_000,
            coordinate=m.place,
        )

    def read(self, work: Work, rows: int) -> None:
        """Rows of a session's prompt have come."""
        if not work.rows:
            self._prompts.append(work)
        work.rows += rows
        self._compute()

    def decode(self, work: Work) -> None:
        """A session's next row has come."""
        self._steps.append(work)
        self._compute()

    def _compute(self) -> None:
        if self._computing or not (self._steps or self._prompts):
            return
        steps, self._steps = self._steps, []
        room = PROMPT_ROWS if steps else MAX_ROWS
        parts: list[tuple[Work, int]] = []
        while self._prompts and room:
            work = self._prompts[0]
            rows = min(room, work.rows)
            work.rows -= rows
            room -= rows
            parts.append((work, rows))
            if not work.rows:
                self._prompts.popleft()
        seconds = self.machine.step * (1 + self.machine.share * max(0, len(steps) - 1))
        seconds += self.machine.row * sum(rows for _, rows in parts)
        seconds *= self.rng.uniform(0.95, 1.05)
        self._computing = True

        def end() -> None:
            self._computing = False
            for work in steps:
                work.session.stepped(work.hop)
            for work, rows in parts:
                work.session.has_read(work.hop, rows)
            self._compute()

        self.events.after(seconds, end)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client."""

    prompt: tuple[int, ...]
    tokens: int


@dataclass(slots=True)
class Outcome:
    """What became of a request."""

    asked: float
    attempts: int = 0
    first: float = math.nan
    ended: float = math.nan
    tokens: int = 0
    failed: bool = False


class Chooser(Protocol):
    """A way to choose paths."""

    def __call__(
        self, gateway: Gateway, request: Request, avoid: frozenset[NodeId], retry: bool
    ) -> Path:
        """Raises `NetworkError` if there is none."""
        ...


class Session:
    """One attempt at a request over one path."""

    def __init__(self, gateway: Gateway, request: Request, nodes: list[Node], trial: Trial) -> None:
        self.gateway, self.request, self.nodes, self.trial = gateway, request, nodes, trial
        self.work = [Work(self, i) for i in range(len(nodes))]
        self.left_to_read = [len(request.prompt)] * len(nodes)
        self.tokens = 0
        self.ended: Callable[[], None] = lambda: None
        self.came: Callable[[], None] = lambda: None

    def begin(self) -> None:
        for node in self.nodes:
            node.sessions += 1
        rows = len(self.request.prompt)
        delay = self.gateway.fleet.one_way(None, self.nodes[0], self.gateway)
        self.gateway.events.after(delay, lambda: self.nodes[0].read(self.work[0], rows))

    def has_read(self, hop: int, rows: int) -> None:
        self.left_to_read[hop] -= rows
        if hop + 1 < len(self.nodes):
            self._send(hop, rows, lambda: self.nodes[hop + 1].read(self.work[hop + 1], rows))
        elif not self.left_to_read[hop]:
            self._token()

    def stepped(self, hop: int) -> None:
        if hop + 1 < len(self.nodes):
            self._send(hop, 1, lambda: self.nodes[hop + 1].decode(self.work[hop + 1]))
        else:
            self._token()

    def _send(self, hop: int, rows: int, act: Callable[[], None]) -> None:
        delay = self.gateway.fleet.one_way(self.nodes[hop], self.nodes[hop + 1], self.gateway)
        self.gateway.events.after(delay + rows * ROW_BYTES / 125e6, act)

    def _token(self) -> None:
        self.tokens += 1
        fleet, events = self.gateway.fleet, self.gateway.events
        home = fleet.one_way(self.nodes[-1], None, self.gateway)
        last = self.tokens == self.request.tokens
        events.after(home, self.came)
        if last:
            for node in self.nodes:
                node.sessions -= 1
            events.after(home, self.ended)
        elif len(self.nodes) == 1:
            self.nodes[0].decode(self.work[0])
        else:
            back = fleet.one_way(self.nodes[-1], self.nodes[0], self.gateway)
            events.after(back, lambda: self.nodes[0].decode(self.work[0]))


class Gateway:
    """Takes requests, chooses paths, and tries again."""

    def __init__(
        self, fleet: Fleet, number: int, choose: Chooser, place: tuple[int, int, int, int]
    ) -> None:
        self.fleet, self.events, self.choose, self.place = fleet, fleet.events, choose, place
        self.experience = Experience(self.events, here=lambda: place, salt=number)
        self.records: dict[NodeId, NodeRecord] = {}
        self.rng = random.Random(number)
        self.turns: dict[int, int] = {}

    def ask(self, request: Request, ended: Callable[[], None] = lambda: None) -> Outcome:
        """Begin a request; `ended` is called with its end."""
        outcome = Outcome(self.events.time)
        self.fleet.outcomes.append(outcome)
        self._attempt(request, outcome, frozenset(), ended)
        return outcome

    def _attempt(
        self,
        request: Request,
        outcome: Outcome,
        avoid: frozenset[NodeId],
        ended: Callable[[], None],
    ) -> None:
        outcome.attempts += 1
        try:
            if outcome.attempts > MAX_ATTEMPTS:
                raise NetworkError("too many attempts")
            path = self.choose(self, request, avoid, outcome.attempts > 1)
        except NetworkError:
            outcome.failed, outcome.ended = True, self.events.time
            ended()
            return
        nodes = [self.fleet.nodes[r.node] for r in path]
        keys = prefix_keys(request.prompt)
        positions = len(request.prompt) + request.tokens
        costs = self.experience.costs(request.prompt, request.tokens, keys=keys)
        trial = self.experience.trial(path, costs, positions, keys=keys)
        session = Session(self, request, nodes, trial)
        for node in nodes:
            self.fleet.asked.append((self.events.time, node.id))

        waiting = len(nodes)
        problems: list[tuple[Node, str]] = []

        def answered(node: Node, problem: str) -> None:
            """All hops are asked at once; the first that fails ends the attempt."""
            nonlocal waiting
            waiting -= 1
            if problem:
                problems.append((node, problem))
                if len(problems) == 1:
                    if problem == "lost":
                        trial.lost(node.id)
                    else:
                        trial.refused(node.id, problem)
                    trial.close()
                    self._attempt(request, outcome, avoid | {node.id}, ended)
            else:
                node.taken += positions
                opened.append(node)
            if waiting:
                return
            if problems:
                for other in opened:
                    other.taken -= positions
            else:
                trial.opened()
                session.begin()

        opened: list[Node] = []

        def open_hop(node: Node) -> None:
            machine = node.machine
            if machine.nowhere:
                self.events.after(DIAL_SECONDS, lambda: answered(node, "lost"))
                return
            trip = self.fleet.round_trip(None, node, self)

            def answer() -> None:
                self.experience.links.pinged(node.id, trip * self.rng.uniform(1.0, 1.1))
                full = node.taken + positions > machine.positions
                problem = "not_held" if machine.lacks else "price" if machine.dear else ""
                answered(node, problem or ("capacity" if full else ""))

            self.events.after(trip, answer)

        def came() -> None:
            outcome.tokens += 1
            if outcome.tokens == 1:
                outcome.first = self.events.time
            trial.arrived()

        def finished() -> None:
            for node in nodes:
                node.taken -= positions
            outcome.ended = self.events.time
            trial.completed()
            trial.close()
            ended()

        session.came, session.ended = came, finished
        for node in nodes:
            open_hop(node)


class Fleet:
    """Nodes, gateways, and the links between them."""

    def __init__(
        self,
        machines: Sequence[Machine],
        choose: Chooser,
        *,
        layer_count: int,
        gateways: Sequence[tuple[int, int, int, int]] = ((1, 0, 0, 200),),
        seed: int = 0,
    ) -> None:
        """`gateways`: their places, in microseconds."""
        self.events = Events()
        self.start = self.events.time
        self.rng = random.Random(seed)
        self.layer_count = layer_count
        made = [Node(self.events, i, m, self.rng) for i, m in enumerate(machines)]
        self.nodes = {node.id: node for node in made}
        self.gateways = [Gateway(self, i + 1, choose, p) for i, p in enumerate(gateways)]
        self.outcomes: list[Outcome] = []
        self.asked: list[tuple[float, NodeId]] = []
        for node in made:
            first = node.machine.joins or self.rng.uniform(-ANNOUNCE_SECONDS, 0)
            if first <= 0:
                self._announce(node, 0.0)
            self.events.after(max(0.0, first) % ANNOUNCE_SECONDS, self._heart(node))

    @property
    def tokens(self) -> int:
        """Tokens that have reached gateways."""
        return sum(o.tokens for o in self.outcomes)

    def round_trip(self, a: Node | None, b: Node | None, gateway: Gateway) -> float:
        """True seconds there and back; None is the gateway. No coordinate is quite right: each
        pair is up to 15 % off."""
        pa = a.machine.place if a else gateway.place
        pb = b.machine.place if b else gateway.place
        names = sorted((a.id if a else "gateway", b.id if b else "gateway"))
        off = hashlib.sha256("".join(names).encode()).digest()[0] / 255 - 0.5
        return (math.dist(pa[:3], pb[:3]) + pa[3] + pb[3]) * 1e-6 * (1 + 0.3 * off)

    def one_way(self, a: Node | None, b: Node | None, gateway: Gateway) -> float:
        """Seconds until something small arrives, with some jitter."""
        return self.round_trip(a, b, gateway) / 2 * self.rng.uniform(1.0, 1.1)

    def _heart(self, node: Node) -> Callable[[], None]:
        def beat() -> None:
            if self.events.time - self.start >= node.machine.joins:
                self._announce(node, self.rng.uniform(0.05, 1.0))
            self.events.after(ANNOUNCE_SECONDS, beat)

        return beat

    def _announce(self, node: Node, delay: float) -> None:
        """The record reaches every gateway, some time later."""
        record = node.record()

        def arrive() -> None:
            for gateway in self.gateways:
                gateway.records[node.id] = record

        if delay:
            self.events.after(delay, arrive)
        else:
            arrive()
