"""The life of every answer: gateways choose, hops open, compute, fail and are replaced.

What a gateway decides is the real code's (`routing.experience`, `routing.paths`); what machines and
lines do is modelled. The steps follow `routing.swarm` and `routing.chain`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from unisono.errors import CapacityMissing, NetworkError
from unisono.routing.costs import Costs
from unisono.routing.paths import standbys
from unisono.routing.swarm import BACK_OFF_SECONDS, MAX_ATTEMPTS
from unisono.simulation.cell import Gateway
from unisono.simulation.control import Control
from unisono.simulation.events import SECOND
from unisono.simulation.fleet import Fleet
from unisono.simulation.geography import CITIES, one_way_us
from unisono.simulation.report import Ledger, Outcome
from unisono.simulation.session import Session, State, loop_links_us, prefill_us
from unisono.simulation.workload import Request
from unisono.simulation.world import Machine, latency_us
from unisono.wire.link import PING_SECONDS, SILENT_SECONDS
from unisono.wire.records import NodeRecord

Choose = Callable[[Gateway, Session, Costs], tuple[NodeRecord, ...]]

CLIENT_US = 10_000
"""One way from a client to a gateway of its own city."""
GATEWAYS_TRIED = 3
"""A client that one gateway cannot serve asks the next nearest, so many in all."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a session did not open."""

    hop: Machine
    code: str
    """The protocol's; empty where nothing answered."""
    wait: int
    """Microseconds until the gateway knows."""


class Network:
    """All gateways and sessions of a run."""

    def __init__(
        self,
        fleet: Fleet,
        gateways: Sequence[Gateway],
        choose: Choose,
        ledger: Ledger,
        control: Control,
    ) -> None:
        self.fleet = fleet
        self.events = fleet.events
        self.model = fleet.model
        self.gateways = gateways
        self.ledger = ledger
        self.control = control
        self.running: dict[int, Session] = {}
        """Answers in the making, by the number of their request."""
        self._choose = choose
        self._rows: dict[int, Session] = {}
        self._near = [
            sorted(gateways, key=lambda g: (one_way_us(city, g.machine.city), g.index))
            for city in range(len(CITIES))
        ]
        self._turn = 0

    # --- opening

    def arrive(self, request: Request) -> None:
        """A client's request: it goes to a gateway near it, in turn among those of its city."""
        near = self._near[request.city]
        home = [g for g in near if g.machine.city == request.city] or near[:1]
        self._turn += 1
        gateway = home[self._turn % len(home)]
        session = Session(request, gateway.index, gateway.machine)
        self.ledger.arrived += 1
        self.running[request.number] = session
        self._after(session, self._client_us(session), self._open)

    def _client_us(self, session: Session) -> int:
        return CLIENT_US + one_way_us(session.request.city, session.gateway.city)

    def _open(self, session: Session) -> None:
        """Choose a chain and ask all its hops at once."""
        gateway = self.gateways[session.served_by]
        if session.attempts >= MAX_ATTEMPTS:
            self._turn_away(session, Outcome.REFUSED)
            return
        costs = self._costs(gateway, session)
        try:
            path = self._choose(gateway, session, costs)
        except NetworkError as error:
            self._none_left(session, error)
            return
        session.attempts += 1
        session.trial = gateway.experience.trial(path, costs, session.positions)
        hops = [self.fleet.machine(record.node) for record in path]
        refusal = self._ask(session, hops, path)
        if refusal is not None:
            self._after(session, refusal.wait, partial(self._refused, refusal=refusal))
            return
        session.hops, session.path = hops, list(path)
        session.mended = -1
        self.ledger.opened(hops)
        self._begin(session, hops, max(2 * latency_us(session.gateway, hop) for hop in hops))

    def _costs(self, gateway: Gateway, session: Session) -> Costs:
        # only the number of known tokens counts: no two prompts have a beginning in common
        return gateway.experience.costs(
            range(session.known),
            session.request.max_tokens - session.tokens,
            keys=(),
            retry=session.attempts > 0,
            row_bytes=self.model.row_bytes,
        )

    def _ask(
        self, session: Session, hops: list[Machine], path: tuple[NodeRecord, ...]
    ) -> _Refusal | None:
        """What stands in the way of opening, if anything does."""
        refusal: _Refusal | None = None
        for hop, record in zip(hops, path, strict=True):
            trip = 2 * latency_us(session.gateway, hop)
            if not hop.online or not self.fleet.reachable(session.gateway.city, hop.city):
                broken = not hop.online and not hop.silent
                return _Refusal(hop, "", trip if broken else self._silence_us(session))
            if hop.missing or hop.leaving or hop.layers != record.layers:
                refusal = _Refusal(hop, "not_held", trip)
            elif hop.free < session.positions:
                refusal = _Refusal(hop, "capacity", trip)
        return refusal

    def _refused(self, session: Session, refusal: _Refusal) -> None:
        """A hop says no, or nothing: choose again without it."""
        trial, node = session.trial, refusal.hop.node
        assert trial is not None
        if refusal.code:
            # a node that leaves says so, which nobody holds against it
            if not refusal.hop.leaving:
                trial.refused(node, refusal.code)
            session.refusing |= {node}
        else:
            trial.lost(node)
            session.avoid |= {node}
            record = next(record for record in trial.path if record.node == node)
            self.gateways[session.served_by].suspect(record)
        trial.close()
        session.trial = None
        session.refusals += 1
        self.ledger.refused(refusal.hop)
        self.control.refused()
        self._open(session)

    def _none_left(self, session: Session, error: NetworkError) -> None:
        """The gateway knows no chain: ask again those that refused, after a while, or give up."""
        if session.refusing:
            session.refusing = frozenset()
            session.attempts += 1
            self.ledger.retries += 1
            wait = round(BACK_OFF_SECONDS * 2 ** max(0, session.attempts - 1) * SECOND)
            self._after(session, wait, self._open)
            return
        full = isinstance(error, CapacityMissing)
        self._turn_away(session, Outcome.NO_CAPACITY if full else Outcome.NO_COVERAGE)

    def _turn_away(self, session: Session, why: Outcome) -> None:
        """The gateway gives up: the client asks another one, if it has no part of an answer."""
        if session.tokens:
            self._fail(session, Outcome.INTERRUPTED)
            return
        session.turned_away += 1
        if session.turned_away < min(GATEWAYS_TRIED, len(self.gateways)):
            near = self._near[session.request.city]
            here = next(i for i, g in enumerate(near) if g.index == session.served_by)
            following = near[(here + 1) % len(near)]
            if self.fleet.reachable(session.request.city, following.machine.city):
                session.served_by, session.gateway = following.index, following.machine
                session.avoid = session.refusing = frozenset()
                session.attempts = 0
                self.ledger.redirected += 1
                self._after(session, 2 * self._client_us(session), self._open)
                return
        self._fail(session, why)

    def _begin(self, session: Session, joined: list[Machine], delay: int) -> None:
        """Hops have opened the session: rows flow after `delay`."""
        gateway = self.gateways[session.served_by]
        for hop in joined:
            self.fleet.reserve(hop, session)
            gateway.experience.links.pinged(hop.node, 2e-6 * latency_us(session.gateway, hop))
        session.state = State.PREFILL
        self.control.opened(len(joined))
        self._after(session, delay, self._prefill)

    # --- computing

    def _prefill(self, session: Session) -> None:
        """The prompt, and what was said before a hop was lost, goes through the chain, or from the
        journal of the hop before it to the one that is new."""
        assert session.trial is not None
        reading, sender = session.hops, None
        if session.mended < 0:
            session.trial.opened()
        else:
            reading = [session.hops[session.mended]]
            sender = session.hops[session.mended - 1] if session.mended else None
        done = prefill_us(
            reading,
            session.known,
            self.model.row_bytes,
            self.events.now,
            [self.fleet.prompt_share(hop) for hop in reading],
            self.fleet.sending_until,
            sender,
        )
        for hop in session.hops[max(0, session.mended) + 1 :] if session.mended >= 0 else ():
            done += hop.step_us
        self.fleet.reads(reading)
        self.ledger.prefilled += session.known
        wait = done - self.events.now + latency_us(session.hops[-1], session.gateway)
        self._after(session, wait, self._first_token)

    def _first_token(self, session: Session) -> None:
        """The chain's first token is at the gateway."""
        assert session.trial is not None
        now = self.events.now
        session.trial.arrived()
        if session.mended >= 0:  # only now: one hop read, so the time says nothing of the chain
            session.trial.opened()
        session.watched = session.tokens
        session.tokens += 1
        self.ledger.tokens += 1
        if not session.first_token:
            session.first_token = now + self._client_us(session)
            self.ledger.first_token(session)
        if session.stalled_at:
            self.ledger.resumed(now - session.stalled_at)
            session.stalled_at = 0
        if session.tokens >= session.request.answer:
            self._finish(session)
            return
        session.state = State.DECODING
        links = loop_links_us(session.hops, self.model.row_bytes)
        indices = [hop.index for hop in session.hops]
        session.row = self.fleet.decoding.start(
            indices, links, session.tokens, session.request.answer, now
        )
        self._rows[session.row] = session

    def tick(self) -> None:
        """Advance all decoding up to now."""
        said, ended = self.fleet.tick()
        self.ledger.ticked(said, self.fleet)
        for row, before in ended:
            self._finish(self._rows[row], before)

    def _finish(self, session: Session, before: int = 0) -> None:
        """The answer is whole, `before` microseconds ago."""
        trial = session.trial
        assert trial is not None
        self._leave_table(session)
        session.tokens = session.request.answer
        for _ in range(session.tokens - session.watched - 1):
            trial.arrived()  # only the time of the last one is looked at
        trial.completed()
        self._release(session)
        session.state = State.ENDED
        at = self.events.now - before + self._client_us(session)
        self.ledger.finished(session, at)
        self.control.finished(len(session.hops), session.known)
        del self.running[session.request.number]

    def _fail(self, session: Session, outcome: Outcome) -> None:
        self._release(session)
        session.state = State.ENDED
        self.ledger.failed(session, outcome)
        del self.running[session.request.number]

    def _leave_table(self, session: Session) -> None:
        if session.row >= 0:
            said = self.fleet.decoding.stop(session.row)
            session.tokens = max(session.tokens, min(said, session.request.answer - 1))
            del self._rows[session.row]
            session.row = -1

    def _release(self, session: Session) -> None:
        """The hops forget the session, and the gateway's counts too."""
        self._leave_table(session)
        for hop in session.hops:
            self.fleet.release(hop, session)
        if session.trial is not None:
            session.trial.close()
            session.trial = None

    # --- losing hops

    def gone(self, machine: Machine) -> None:
        """It serves no more, by crash, by leave or by taking another block: sessions through it
        stand still until their gateways notice."""
        for session in self.fleet.gone(machine):
            broken = latency_us(machine, session.gateway)
            self._stall(session, machine, self._silence_us(session) if machine.silent else broken)

    def cut(self) -> None:
        """Packets stopped passing between some cities: chains across the cut stand still."""
        for session in list(self.running.values()):
            if session.state not in (State.PREFILL, State.DECODING):
                continue
            ring = [session.gateway, *session.hops]
            for a, b in zip(ring, [*ring[1:], ring[0]], strict=True):
                if not self.fleet.reachable(a.city, b.city):
                    lost = a if b is session.gateway else b
                    self._stall(session, lost, self._silence_us(session))
                    break

    def _stall(self, session: Session, lost: Machine, wait: int) -> None:
        if session.state is State.STALLED:
            return
        self._leave_table(session)
        session.state = State.STALLED
        if session.tokens and not session.stalled_at:
            session.stalled_at = self.events.now
        session.version += 1
        self._after(session, wait, partial(self._replace, lost=lost))

    def _replace(self, session: Session, lost: Machine) -> None:
        """The gateway has noticed: another hop in the place of the lost one, or if there is none
        another chain."""
        assert session.trial is not None
        gateway = self.gateways[session.served_by]
        if not lost.leaving:  # who says goodbye in time is not held to blame
            session.trial.lost(lost.node)
        gateway.suspect(session.path[session.hops.index(lost)])
        session.avoid |= {lost.node}
        session.refusing = frozenset()
        self.ledger.retries += 1
        if session.tokens:
            self.ledger.replaced += 1
        if session.attempts < MAX_ATTEMPTS and self._mend(gateway, session, lost):
            return
        self._release(session)
        session.hops, session.path = [], []
        self._open(session)

    def _mend(self, gateway: Gateway, session: Session, lost: Machine) -> bool:
        """Put another machine with the same layers in the place of the lost one, which is given the
        journal of the one before it; whether there is one."""
        down = [hop for hop in session.hops if not self._answers(session, hop)]
        if down != [lost] or len(session.hops) == 1:
            return False
        place = session.hops.index(lost)
        costs = self._costs(gateway, session)
        able = standbys(session.path, gateway.records(), session.positions, costs, session.avoid)
        record = able[place]
        if record is None:
            return False
        hop = self.fleet.machine(record.node)
        if self._ask(session, [hop], (record,)) is not None:
            return False
        assert session.trial is not None
        session.attempts += 1
        session.trial.close()
        session.hops[place], session.path[place] = hop, record
        session.mended = place
        session.trial = gateway.experience.trial(tuple(session.path), costs, session.positions)
        self.fleet.release(lost, session)
        self.ledger.mended += 1
        # neighbours are rewired before and after the new hop opens: three round trips
        trips = 6 * max(latency_us(session.gateway, each) for each in session.hops)
        self._begin(session, [hop], trips)
        return True

    def _answers(self, session: Session, hop: Machine) -> bool:
        held = self.fleet.holds(hop, session)
        return held and self.fleet.reachable(session.gateway.city, hop.city)

    def _silence_us(self, session: Session) -> int:
        """How long it takes to see that a machine answers no pings."""
        # the phase of the pings is the session's own, and the same in every run
        phase = session.request.number * 7919 % 1000
        return round((SILENT_SECONDS + PING_SECONDS * phase / 1000) * SECOND)

    def _after(self, session: Session, delay: int, action: Callable[[Session], None]) -> None:
        """Do it later, unless the session was stalled or ended before."""
        version = session.version

        def act() -> None:
            if session.version == version and session.state is not State.ENDED:
                action(session)

        self.events.after(delay, act)
