"""What the gateway asks of whoever audits its answers."""

from __future__ import annotations

from typing import Protocol

import msgspec

from unisono.types import NodeId
from unisono.verification.receipt import Receipt
from unisono.verification.verdict import FaultKind


class ConvictedNode(msgspec.Struct, frozen=True):
    """A node that is proven to have signed something false, here or elsewhere."""

    node: NodeId
    epoch: int
    """Of the claim."""
    fault: FaultKind
    message: str


class Auditing(Protocol):
    """Audits in the background."""

    def take(self, receipt: Receipt) -> None:
        """An answer of the network is complete: some of its hops may be audited later."""
        ...

    def convicted(self) -> tuple[ConvictedNode, ...]:
        """The nodes that get no work any more."""
        ...
