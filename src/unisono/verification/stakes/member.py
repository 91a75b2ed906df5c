"""A committee's member over a transport: it takes tasks that the lottery drew, and votes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from unisono.clock import Clock
from unisono.errors import PeerCheating, UnisonoError, WireError
from unisono.types import LayerRange, ModelId, NodeId
from unisono.verification.stakes.beacon import Beacon
from unisono.verification.stakes.lottery import ticket_is_good, wins
from unisono.verification.stakes.register import Register
from unisono.verification.stakes.seat import Seat
from unisono.verification.stakes.service import LATE_SECONDS, next_message, within
from unisono.verification.stakes.work import Replayer, ReplayWork
from unisono.wire.frames import encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Refused
from unisono.wire.transports.base import Stream
from unisono.wire.verification_messages import (
    CommitsClosed,
    ReplayResult,
    ReplayTask,
    RowsGiven,
    RowsTask,
    Settled,
    TaskTaken,
)

log = logging.getLogger(__name__)

MAX_RUNNING = 4
"""Replays that a member has in hand at once."""
MAX_TASKS = 8
"""Tasks of one audit that a member takes: one per committee, and rows for the hops behind it."""
POSITIONS_PER_EPOCH = 32_768
"""Positions that a member computes for one auditor about claims of one epoch: an auditor names its
rate itself, and must not get for nothing what clients pay for."""
AUDITS_REMEMBERED = 4096


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
        self._tasks: OrderedDict[str, int] = OrderedDict()
        """Tasks taken, by audit."""
        self._positions: OrderedDict[tuple[str, int], int] = OrderedDict()
        """Positions computed, by auditor and epoch."""

    async def handle(
        self, stream: Stream, task: ReplayTask | RowsTask, body: bytes | memoryview
    ) -> None:
        """Serve a stream whose first message was `task`.

        Raises:
            PeerCheating: the auditor broke the protocol.
            PeerGone: it went away.
        """
        refusal = self._refusal(stream.peer, task)
        if refusal is not None:
            await stream.send(encode_frame(refusal))
            return
        if isinstance(task, RowsTask):
            await self._give_rows(stream, ReplayWork.before(task, body, self._hidden))
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

    async def _give_rows(self, stream: Stream, work: ReplayWork) -> None:
        self._running += 1
        try:
            widths, rows = await self._replayer.rows(work)
        except WireError:
            raise
        except UnisonoError as error:
            await stream.send(encode_frame(Refused("not_computed", str(error)[:1000])))
            return
        finally:
            self._running -= 1
        await stream.send(encode_frame(RowsGiven(widths), b"".join(rows)))

    async def _vote(
        self, stream: Stream, seat: Seat, task: ReplayTask, result: ReplayResult
    ) -> None:
        await stream.send(encode_frame(seat.commit(result)))
        seconds = (task.commit_ms + task.reveal_ms) / 1000
        closed = await within(self._clock, seconds, next_message(stream))
        if not isinstance(closed, CommitsClosed):
            raise PeerCheating(f"{type(closed).__name__} where the commits are closed")
        await stream.send(encode_frame(seat.reveal(closed)))
        settled = await within(self._clock, seconds + LATE_SECONDS, next_message(stream))
        if isinstance(settled, CommitsClosed):
            fault = seat.two_faced(settled)
            raise PeerCheating("the commits were closed twice" if fault is None else fault.message)
        if not isinstance(settled, Settled) or settled.audit != task.audit:
            raise PeerCheating(f"{type(settled).__name__} at the end of an audit")
        if settled.fault is not None:
            log.warning("audit %s… finds %s here", task.audit[:8], settled.fault)

    def _refusal(self, peer: NodeId, task: ReplayTask | RowsTask) -> Refused | None:
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
        roster = self._register.roster(ticket.epoch, ticket.auditor)
        if binding is None or roster is None:
            return Refused("unknown_auditor", "its lottery key or the epoch's roster is not known")
        if roster.hash() != ticket.roster:
            return Refused("other_roster", "this node knows another roster of the epoch")
        if not (wins(ticket) and ticket_is_good(ticket, binding, self._beacon)):
            raise PeerCheating("the ticket does not win, or is not the auditor's lot")
        return self._over_limits(task)

    def _over_limits(self, task: ReplayTask | RowsTask) -> Refused | None:
        """Why this auditor has had enough; if it has not, the task counts from now on."""
        ticket = task.ticket
        audit, account = ticket.audit(), (ticket.auditor, ticket.epoch)
        tasks, positions = self._tasks.get(audit, 0) + 1, self._positions.get(account, 0)
        positions += task.positions
        if tasks > MAX_TASKS or positions > POSITIONS_PER_EPOCH:
            return Refused("too_often", "this auditor has asked for enough: see the limits")
        self._tasks[audit], self._positions[account] = tasks, positions
        for counts in (self._tasks, self._positions):
            while len(counts) > AUDITS_REMEMBERED:
                counts.popitem(last=False)
        return None
