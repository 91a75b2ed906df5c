"""What the gateway asks of the routing layer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from unisono.types import GenerationRequest, LayerRange, ModelId, NodeId, SampledToken
from unisono.wire.claims import HopClaim


class NodeStatus(msgspec.Struct, frozen=True):
    """One node as routing sees it."""

    node: NodeId
    address: str
    model: ModelId
    layers: LayerRange
    free_positions: int
    sessions: int
    alive: bool


class Answer(Protocol):
    """One answer in the making. Lost hops are replaced behind it; its tokens do not change."""

    @property
    def attempts(self) -> int:
        """Chains that were opened; more than one means that a hop was replaced."""
        ...

    def __aiter__(self) -> AsyncIterator[SampledToken]:
        """Tokens in order, until a stop token (which is yielded) or `max_tokens`.

        Raises:
            AnswerInterrupted: a hop was lost and none replaces it.
        """
        ...

    async def finish(self, tokens: int) -> tuple[HopClaim, ...]:
        """Accept the first `tokens` tokens, release the nodes, and return one claim per hop.

        Raises:
            AnswerInterrupted: a hop does not sign.
        """
        ...

    async def cancel(self) -> None:
        """Release the nodes at once; idempotent, never raises."""
        ...


class Network(Protocol):
    """Nodes that together hold models."""

    async def open(self, request: GenerationRequest, *, top_logprobs: int = -1) -> Answer:
        """Reserve a chain and start the answer. `top_logprobs` < 0: no log probabilities.

        Raises:
            CoverageMissing: a layer of `request.model` has no holder.
            CapacityMissing: all holders of some layer are full.
        """
        ...

    def nodes(self) -> tuple[NodeStatus, ...]:
        """Every node known now."""
        ...

    async def close(self) -> None:
        """Release everything; idempotent."""
        ...
