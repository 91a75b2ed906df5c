"""Audits over a transport, from the auditor's side: one stream to every member of a committee
(`member`)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerGone, PeerRefused, WireError
from unisono.types import NodeId, PeerAddress
from unisono.verification.stakes.committee import Committee, Outcome, Phase
from unisono.verification.stakes.faults import CommitteeFault, PlantOpening
from unisono.verification.stakes.transcript import PASSED_OVER, Transcript
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Message, Refused
from unisono.wire.transports.base import Stream, Transport
from unisono.wire.verification_messages import (
    SALT_BYTES,
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
            tokens=hashlib.sha256(body[: task.token_bytes]).digest(),
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
            answer = await within(self._clock, JOIN_SECONDS, next_message(stream))
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
                message = await next_message(stream)
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


async def next_message(stream: Stream) -> Message:
    """The next message of a stream, which has no body.

    Raises:
        WireError: the stream failed, or there is a body.
    """
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
