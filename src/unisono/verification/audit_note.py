"""What an audit found, as it is kept beside a receipt."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from unisono.verification.verdict import FaultKind
from unisono.wire.bounds import Hop, Natural, Node, Text
from unisono.wire.verification_messages import MAX_COMMITTEE

Seats = Annotated[int, Meta(ge=0, le=MAX_COMMITTEE)]


class AuditNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The gateway's word for now: its transcript, or a replay, shows it."""

    hop: Hop
    node: Node
    epoch: Natural
    """The claim's."""
    verdict: Literal["VALID", "INVALID", "INCONCLUSIVE"]
    fault: FaultKind | None
    message: Text
    seats: Seats
    """Of the committee."""
    votes: Seats
    """Equal results of its largest group."""
    members: Annotated[tuple[Node, ...], Meta(max_length=MAX_COMMITTEE)]
    """Who sat."""
