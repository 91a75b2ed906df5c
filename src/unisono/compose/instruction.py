"""What gives the members of a case what they compute from, as its opener has to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from unisono.clock import Clock
from unisono.errors import SettlementError, WireError
from unisono.settlement.briefs import Brief
from unisono.settlement.committees import JuryHouse, Phase
from unisono.settlement.eip712 import Domain
from unisono.settlement.jury_work import task_of
from unisono.settlement.signature import SettlementKey
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.jury_messages import JuryTaken
from unisono.wire.messages import Refused
from unisono.wire.transports.base import Transport

log = logging.getLogger(__name__)

FIRST_RETRY, LONGEST_RETRY = 1.0, 60.0
"""Seconds before a member is asked again, doubled each time."""
TELL_SECONDS = 60.0
"""For one member to take its task: it checks what may be megabytes."""
FINAL = frozenset(("not_held", "too_long", "another_task"))
"""Refusals that a member does not change its mind about."""


@dataclass(frozen=True)
class Instruction:
    """One opener's."""

    house: JuryHouse
    key: SettlementKey
    domain: Domain
    transport: Transport
    address_of: Callable[[NodeId], PeerAddress | None]
    clock: Clock
    poll_seconds: float

    async def give(self, case: bytes, brief: Brief) -> None:
        """Wait for the draw, and give every member its task until it has committed. Returns when
        all have, or the time for it is over; never raises for what nodes or the chain do."""
        while True:
            with suppress(SettlementError):
                state = await self.house.state(case)
                if state.phase == Phase.VOTING:
                    seated = await self.house.named("Seated", state.block, case=case)
                    break
                if state.phase != Phase.DRAWING:
                    return
            await self.clock.sleep(self.poll_seconds)
        try:
            frame = await asyncio.to_thread(self._frame, case, brief)
        except ValueError as error:
            log.error("members of case %s… are given nothing: %s", case.hex()[:12], error)
            return
        nodes = {NodeId(event["node"].hex()): int(event["seat"]) for event in seated}
        await asyncio.gather(*(self._instruct(frame, case, s, n) for n, s in nodes.items()))

    def _frame(self, case: bytes, brief: Brief) -> bytes:
        return encode_frame(*task_of(brief, case, self.key, self.domain))

    async def _instruct(self, frame: bytes, case: bytes, seat: int, node: NodeId) -> None:
        """One member's task, again while it has not committed: it may have been restarted."""
        delay = FIRST_RETRY
        while True:
            with suppress(SettlementError):
                state = await self.house.state(case)
                if state.phase != Phase.VOTING or state.committed & 1 << seat:
                    return
            try:
                refusal = await self._hand_over(frame, node)
                if refusal is None:
                    delay = LONGEST_RETRY  # it computes; only a restart would lose the task
                else:
                    log.info("member %s… of a case: %s", node[:12], refusal.message)
                    if refusal.code in FINAL:
                        return
            except (WireError, TimeoutError) as error:
                log.info("member %s… of a case is not reached: %s", node[:12], error)
            await self.clock.sleep(delay)
            delay = min(2 * delay, LONGEST_RETRY)

    async def _hand_over(self, frame: bytes, node: NodeId) -> Refused | None:
        """Why a member does not take its task; None: it does.

        Raises:
            WireError: it is not reached, or answers what is no message.
            TimeoutError: it says nothing.
        """
        address = self.address_of(node)
        if address is None:
            return Refused("not_known", "no address of it is known here")
        async with asyncio.timeout(TELL_SECONDS):
            stream = await self.transport.dial(address)
            try:
                await stream.send(frame)
                message, _ = decode_frame(await stream.receive())
            finally:
                await stream.close()
        if isinstance(message, JuryTaken):
            return None
        if isinstance(message, Refused):
            return message
        return Refused("strange", f"{type(message).__name__} in answer to a task")
