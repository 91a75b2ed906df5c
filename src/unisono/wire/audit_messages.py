"""Light audits and disputes on a stream of their own: envelopes, whose bodies others read.

A body holds a whole claim, a manifest or a row of logits, which no header has room for. What is
inside is in canonical form and bounded by those who read it: `verification.light.messages` and
`verification.fraud.wire`.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from unisono.types import PeerAddress
from unisono.wire.bounds import MessageBase, check_address


class AuditSummons(MessageBase, frozen=True):
    """Client to node: commit to the trace of this claim. The body is a `Summons`."""


class AuditTrace(MessageBase, frozen=True):
    """Node to client: a `TraceCommitment`."""


class AuditChallenge(MessageBase, frozen=True):
    """Client to node: open these cells. The body is a `Challenge`."""


class AuditOpening(MessageBase, frozen=True):
    """Node to client: an `Opening`."""


class DisputeCall(MessageBase, frozen=True):
    """To the node whose claim is contradicted: a game begins. The body is a `Dispute`."""


class DisputeHost(MessageBase, frozen=True):
    """Challenger to a third node: host this game with the node at `defender`. The body is a
    `Dispute`."""

    defender: PeerAddress

    def __post_init__(self) -> None:
        check_address(self.defender)


class DisputeMove(MessageBase, frozen=True):
    """Either way: the body is a signed move."""


class DisputeOver(MessageBase, frozen=True):
    """The game has ended. The body is its transcript, as it is kept in files."""


class SettlementAsked(MessageBase, frozen=True):
    """Gateway to node: sign your claim for the court of the chain on which I pay. The body is a
    `Brief`."""

    payer: Annotated[str, Meta(pattern="^0x[0-9a-fA-F]{40}$")]
    """Who is refunded if the claim is false."""


class SettlementSigned(MessageBase, frozen=True):
    """Node to gateway: the body is the signature, 65 bytes."""


AuditMessage = (
    AuditSummons
    | AuditTrace
    | AuditChallenge
    | AuditOpening
    | DisputeCall
    | DisputeHost
    | DisputeMove
    | DisputeOver
    | SettlementAsked
    | SettlementSigned
)
