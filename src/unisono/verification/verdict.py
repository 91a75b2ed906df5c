"""What a check of a receipt finds."""

from __future__ import annotations

from typing import Literal

import msgspec

from unisono.types import LayerRange, NodeId
from unisono.wire.claims import HopClaim

CommitteeFaultKind = Literal[
    "double_commit",
    "wrong_opening",
    "copied_commit",
    "stale_epoch",
    "uncomputed",
    "dissent",
    "planted_check",
    "two_faced",
    "no_commit",
    "no_reveal",
    "late_reveal",
]
FaultKind = Literal[
    "malformed",
    "claim_signature",
    "gateway_signature",
    "request_altered",
    "claims_inconsistent",
    "tokens_altered",
    "finish_reason",
    "rows_in",
    "rows_out",
    "sampling",
    "operator",
    "rows_disagree",
    "contradiction",
    "equivocation",
    "wrong_tags",
    "wrong_row",
    "other_prompt",
    "wrong_tile",
    "refusal",
    "timeout",
    "false_step",
    "false_challenge",
    "quorum",
    "ensemble",
    "distributions",
    "joint_choice",
    CommitteeFaultKind,
]


class Fault(msgspec.Struct, frozen=True):
    """What is wrong, and who answers for it where one hop does."""

    kind: FaultKind
    message: str
    hop: int | None = None
    node: NodeId | None = None
    layers: LayerRange | None = None
    position: int | None = None
    suspects: tuple[NodeId, ...] = ()
    """Nodes of which at least one lied, where it cannot be said which."""


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of a check."""

    verdict: Literal["VALID", "INVALID", "INCONCLUSIVE"]
    fault: Fault | None = None
    message: str = ""
    positions: int = 0
    seconds: float = 0.0


def fault_of(claim: HopClaim, kind: FaultKind, message: str, position: int | None = None) -> Fault:
    """A fault that one hop answers for."""
    return Fault(kind, message, claim.hop, claim.node, claim.layers, position)
