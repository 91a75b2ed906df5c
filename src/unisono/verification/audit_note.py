"""What an audit found, as it is kept beside a receipt."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from unisono.verification.verdict import FaultKind
from unisono.wire.bounds import Code, Hop, Natural, Node, Text
from unisono.wire.verification_messages import MAX_COMMITTEE

Seats = Annotated[int, Meta(ge=0, le=MAX_COMMITTEE)]


class CaseNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A case before a chain's committee that followed; amounts in units of the coin."""

    case: Annotated[str, Meta(pattern=r"^(?:[0-9a-f]{64})?\Z")]
    """By what the contract knows it; empty: it was not opened."""
    outcome: Code
    """`open`, or how it ended."""
    paid: Natural
    """Bond and fees."""
    got: Natural
    """What came back with all shares, when it ended."""


class AuditNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
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
    case: CaseNote | None = None
    """What came of the claim on the chain that the gateway pays on, if it went there."""
