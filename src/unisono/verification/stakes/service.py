"""Audits over a transport: one stream from the auditor to every member of a committee."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerGone, PeerRefused, UnisonoError, WireError
from unisono.types import LayerRange, ModelId, NodeId, PeerAddress
from unisono.verification.stakes.beacon import Beacon
from unisono.verification.stakes.committee import Committee, Outcome, Phase
from unisono.verification.stakes.faults import CommitteeFault, PlantOpening
from unisono.verification.stakes.lottery import ticket_is_good, wins
from unisono.verification.stakes.register import Register
from unisono.verification.stakes.seat import Seat
from unisono.verification.stakes.transcript import PASSED_OVER, Transcript
from unisono.verification.stakes.work import Replayer, ReplayWork
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Message, Refused
from unisono.wire.transports.base import Stream, Transport
from unisono.wire.verification_messages import (
    SALT_BYTES,
    CommitsClosed,
    ReplayResult,
    ReplayTask,
    ResultCommit,
    ResultReveal,
    Settled,
    TaskTaken,
)

log = logging.getLogger(__name__)

JOIN_SECONDS = 5.0
"""A node that has not taken its task by then is passed over."""
LATE_SECONDS = 5.0
"""After the end, reveals of those who withheld are awaited this long, to name them late."""
COMMITS_REMEMBERED = 65_536
MAX_RUNNING = 4
"""Replays that a member has in hand at once."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Audited:
    """What came of an audit."""

    outcome: Outcome | None
    """None: not one node took the task."""
    members: tuple[NodeId, ...]
    faults: tuple[CommitteeFault, ...]
    transcript: Transcript | None
    """What others check the verdict from."""


class Auditor:
    """Runs audits: seats a committee in the lottery's order and carries its messages."""

    def __init__(self, identity: Identity, transport: Transport, clock: Clock) -> None:
        self._identity = identity
        self._transport = transport
        self._clock = clock
        self._earlier: OrderedDict[str, ResultCommit] = OrderedDict()

    async def audit(
        self,
        task: ReplayTask,
        body: bytes,
        candidates: Sequence[PeerAddress],
        plant: PlantOpening,
    ) -> Audited:
        """Fill the task's seats from the candidates, in their order, and wait for the verdict.

        Candidates that cannot be reached or refuse are passed over, `PASSED_OVER` asked for each
        seat at most. Takes as long as the slowest
        member, at most the task's two deadlines.

        Args:
            plant: opening of the task's `sealed`; with a result if the outcome is known here.
        """
        streams = await self._seat(task, body, candidates)
        if not streams:
            return Audited(None, (), (), None)
        committee = Committee(
            task.work(body),
            [stream.peer for stream in streams],
            self._identity,
            self._clock,
            plant,
            seats=task.seats,
            commit_seconds=task.commit_ms / 1000,
            reveal_seconds=task.reveal_ms / 1000,
            earlier=self._earlier,
        )
        changed = asyncio.Event()
        readers = [asyncio.create_task(self._read(s, committee, changed)) for s in streams]
        try:
            await self._until_left(committee, Phase.COMMITTING, changed)
            assert committee.closed is not None
            await _tell(streams, committee.closed)
            await self._until_left(committee, Phase.REVEALING, changed)
            if any(f.kind == "no_reveal" for f in committee.faults):
                await self._clock.sleep(LATE_SECONDS)
            assert committee.outcome is not None
            await self._settle(streams, committee, committee.outcome)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            for stream in streams:
                await stream.close()
        self._remember(committee.commits)
        transcript = Transcript(
            task=task,
            rows=hashlib.sha256(body[task.token_bytes :]).digest(),
            members=committee.members,
            closed=committee.closed,
            reveals=committee.reveals,
        )
        return Audited(committee.outcome, committee.members, committee.faults, transcript)

    async def _seat(
        self, task: ReplayTask, body: bytes, candidates: Sequence[PeerAddress]
    ) -> list[Stream]:
        """Streams with those who took the task, in the candidates' order."""
        seats = task.seats
        candidates = candidates[: PASSED_OVER * seats]
        frame = encode_frame(task, body)
        taken: list[Stream] = []
        asked = 0
        while len(taken) < seats and asked < len(candidates):
            some = candidates[asked : asked + seats - len(taken)]
            asked += len(some)
            answers = await asyncio.gather(*(self._ask(peer, task.audit, frame) for peer in some))
            taken += [stream for stream in answers if stream is not None]
        return taken

    async def _ask(self, peer: PeerAddress, audit: str, frame: bytes) -> Stream | None:
        stream: Stream | None = None
        try:
            stream = await within(self._clock, JOIN_SECONDS, self._transport.dial(peer))
            await within(self._clock, JOIN_SECONDS, stream.send(frame))
            answer = await within(self._clock, JOIN_SECONDS, _next(stream))
            if isinstance(answer, Refused):
                raise PeerRefused(answer.message, answer.code)
            if not isinstance(answer, TaskTaken) or answer.audit != audit:
                raise PeerCheating(f"{type(answer).__name__} in answer to a replay task")
        except WireError as error:
            log.info("node %s… takes no part in audit %s…: %s", peer.node[:8], audit[:8], error)
            if stream is not None:
                await stream.close()
            return None
        return stream

    async def _read(self, stream: Stream, committee: Committee, changed: asyncio.Event) -> None:
        try:
            while True:
                message = await _next(stream)
                if isinstance(message, ResultCommit):
                    committee.commit(stream.peer, message)
                elif isinstance(message, ResultReveal):
                    committee.reveal(stream.peer, message)
                else:
                    raise PeerCheating(f"{type(message).__name__} from a committee's member")
                changed.set()
        except WireError as error:
            # what is missing now is named when its deadline passes
            log.info("member %s… of a committee: %s", stream.peer[:8], error)
            await stream.close()

    async def _until_left(self, committee: Committee, phase: Phase, changed: asyncio.Event) -> None:
        while True:
            committee.tick()
            if committee.phase is not phase:
                return
            changed.clear()
            seconds = max(0.0, committee.deadline - self._clock.monotonic())
            with contextlib.suppress(PeerGone):
                await within(self._clock, seconds, changed.wait())

    async def _settle(
        self, streams: Sequence[Stream], committee: Committee, outcome: Outcome
    ) -> None:
        faults = {fault.node: fault for fault in committee.faults}
        for stream in streams:
            fault = faults.get(stream.peer)
            settled = Settled(
                audit=committee.work.audit,
                decided=outcome.result is not None,
                fault=None if fault is None else fault.kind,
            )
            await _tell([stream], settled)

    def _remember(self, commits: Sequence[ResultCommit]) -> None:
        for commit in commits:
            self._earlier.setdefault(commit.digest, commit)
        while len(self._earlier) > COMMITS_REMEMBERED:
            self._earlier.popitem(last=False)


class Member:
    """The stream handler of a node that may be asked to replay."""

    def __init__(
        self,
        identity: Identity,
        replayer: Replayer,
        register: Register,
        beacon: Beacon,
        clock: Clock,
        *,
        computes: Callable[[ModelId, LayerRange], bool],
        hidden: int,
        max_positions: int,
    ) -> None:
        """`computes` says which blocks `replayer` can run; their rows have `hidden` values."""
        self._identity = identity
        self._replayer = replayer
        self._register = register
        self._beacon = beacon
        self._clock = clock
        self._computes = computes
        self._hidden = hidden
        self._max_positions = max_positions
        self._running = 0

    async def handle(self, stream: Stream, task: ReplayTask, body: bytes | memoryview) -> None:
        """Serve a stream whose first message was `task`.

        Raises:
            PeerCheating: the auditor broke the protocol.
            PeerGone: it went away.
        """
        refusal = self._refusal(stream.peer, task)
        if refusal is not None:
            await stream.send(encode_frame(refusal))
            return
        work = ReplayWork.of(task, body, self._hidden)
        self._running += 1
        try:
            await stream.send(encode_frame(TaskTaken(task.audit)))
            try:
                result = await self._replayer.replay(work)
            except WireError:
                raise
            except UnisonoError as error:
                await stream.send(encode_frame(Refused("not_computed", str(error)[:1000])))
                return
        finally:
            self._running -= 1
        await self._vote(stream, Seat(task, body, self._identity), task, result)

    async def _vote(
        self, stream: Stream, seat: Seat, task: ReplayTask, result: ReplayResult
    ) -> None:
        await stream.send(encode_frame(seat.commit(result)))
        seconds = (task.commit_ms + task.reveal_ms) / 1000
        closed = await within(self._clock, seconds, _next(stream))
        if not isinstance(closed, CommitsClosed):
            raise PeerCheating(f"{type(closed).__name__} where the commits are closed")
        await stream.send(encode_frame(seat.reveal(closed)))
        settled = await within(self._clock, seconds + LATE_SECONDS, _next(stream))
        if isinstance(settled, CommitsClosed):
            fault = seat.two_faced(settled)
            raise PeerCheating("the commits were closed twice" if fault is None else fault.message)
        if not isinstance(settled, Settled) or settled.audit != task.audit:
            raise PeerCheating(f"{type(settled).__name__} at the end of an audit")
        if settled.fault is not None:
            log.warning("audit %s… finds %s here", task.audit[:8], settled.fault)

    def _refusal(self, peer: NodeId, task: ReplayTask) -> Refused | None:
        """Why this node does not take a task, or None.

        Raises:
            PeerCheating: the task was not drawn by the lottery.
        """
        ticket = task.ticket
        if ticket.auditor != peer:
            raise PeerCheating(f"a ticket of auditor {ticket.auditor[:16]}… from another peer")
        if not self._computes(task.model, task.layers):
            wanted = f"layers {task.layers} of model {task.model[:16]}…"
            return Refused("not_held", f"this node does not hold {wanted}")
        if task.positions > self._max_positions:
            return Refused("too_long", f"replays of up to {self._max_positions} positions")
        if self._running >= MAX_RUNNING:
            return Refused("capacity", f"{self._running} replays are in hand")
        binding = self._register.binding(ticket.auditor, ticket.epoch)
        roster = self._register.roster(ticket.epoch)
        if binding is None or roster is None:
            return Refused("unknown_auditor", "its lottery key or the epoch's roster is not known")
        if roster.hash() != ticket.roster:
            return Refused("other_roster", "this node knows another roster of the epoch")
        if not (wins(ticket) and ticket_is_good(ticket, binding, self._beacon)):
            raise PeerCheating("the ticket does not win, or is not the auditor's lot")
        return None


def plant(audit: str, known: ReplayResult | None = None) -> PlantOpening:
    """A seal for a task: with the result if the auditor knows it already, from a replay of its
    own or from an answer of its own making. Members cannot tell one from the other."""
    return PlantOpening(audit, secrets.token_bytes(SALT_BYTES), known)


async def within(clock: Clock, seconds: float, work: Awaitable[_T]) -> _T:
    """The result of `work`, if it comes within `seconds` of the clock.

    Raises:
        PeerGone: it did not; the work was cancelled.
    """
    task = asyncio.ensure_future(work)
    timer = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((task, timer), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise PeerGone(f"nothing came in {seconds:.1f} s")
        return task.result()
    finally:
        task.cancel()
        timer.cancel()


async def _next(stream: Stream) -> Message:
    message, body = decode_frame(await stream.receive())
    if len(body):
        raise PeerCheating(f"a {type(message).__name__} with {len(body)} bytes of body")
    return message


async def _tell(streams: Sequence[Stream], message: Message) -> None:
    frame = encode_frame(message)
    for stream in streams:
        try:
            await stream.send(frame)
        except WireError as error:
            log.info("member %s… of a committee: %s", stream.peer[:8], error)
