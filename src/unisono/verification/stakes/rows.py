"""Rows for the audit of a hop that does not begin the model: the blocks before it, computed again.

Nobody is believed: rows count if their root is the one that the hop before signed, and the
audited hop as what it was given.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerRefused, WireError
from unisono.models.decoder import Rows
from unisono.models.rows import row_hashes
from unisono.types import PeerAddress
from unisono.verification.stakes.service import JOIN_SECONDS, within
from unisono.wire.claims import rows_root
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Refused
from unisono.wire.rows import decode_rows
from unisono.wire.transports.base import Transport
from unisono.wire.verification_messages import RowsGiven, RowsTask

log = logging.getLogger(__name__)

MAX_ASKED = 4
"""Nodes that are asked for the same rows, one after another."""


async def rows_after(
    transport: Transport,
    clock: Clock,
    task: RowsTask,
    body: bytes,
    holders: Iterable[PeerAddress],
    *,
    hidden: int,
    root: str,
    seconds: float,
) -> Rows | None:
    """The rows of a task, int64 [positions, hidden], from whichever holder computes those that
    `root` stands for; None if nobody does.

    Args:
        seconds: how long one holder may take.
    """
    frame = encode_frame(task, body)
    for place, holder in enumerate(holders):
        if place >= MAX_ASKED:
            break
        try:
            rows = await _ask(transport, clock, frame, holder, hidden, seconds)
        except WireError as error:
            log.info("node %s… gives no rows: %s", holder.node[:8], error)
            continue
        if rows_root(row_hashes(rows)) == root:
            return rows
        log.info("node %s… computes other rows than were signed", holder.node[:8])
    return None


async def _ask(
    transport: Transport,
    clock: Clock,
    frame: bytes,
    holder: PeerAddress,
    hidden: int,
    seconds: float,
) -> Rows:
    stream = await within(clock, JOIN_SECONDS, transport.dial(holder))
    try:
        await within(clock, JOIN_SECONDS, stream.send(frame))
        message, body = decode_frame(await within(clock, seconds, stream.receive()))
        if isinstance(message, Refused):
            raise PeerRefused(message.message, message.code)
        if not isinstance(message, RowsGiven):
            raise PeerCheating(f"{type(message).__name__} where rows are due")
        return decode_rows(message.widths, body, hidden)
    finally:
        await stream.close()
