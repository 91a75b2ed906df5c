"""What the gateway asks of the routing layer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from unisono.routing.demand import ANY, Demand
from unisono.types import GenerationRequest, LayerRange, ModelId, NodeId, SampledToken
from unisono.wire.claims import HopClaim
from unisono.wire.votes import Vote


class NodeStatus(msgspec.Struct, frozen=True):
    """One node as routing sees it."""

    node: NodeId
    address: str
    model: ModelId
    layers: LayerRange
    free_positions: int
    sessions: int
    alive: bool
    """It answers heartbeats."""
    leaving: bool = False
    """It takes no new sessions and hands its own over."""
    queue: int = 0
    """Rows that wait for a pass."""
    step_us: int = 0
    """Time of one decode step of its block, as it says; 0 if it does not."""
    rtt_us: int = 0
    """Round trip from here, from pings or else from coordinates; 0 if neither is known."""
    bandwidth: int = 0
    """Bytes per second that it can send, as it says; 0 if it does not."""
    coordinate: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Network coordinate in microseconds: x, y, z, height; all zeros if it has none."""
    convicted: bool = False
    """It is proven to have signed something false, and gets no work."""
    price_in: int = 0
    """Asked per million prompt tokens, as in `wire.records.NodeRecord`."""
    price_out: int = 0
    """Asked per million tokens of an answer."""


class Answer(Protocol):
    """One answer in the making. Lost hops are replaced behind it; its tokens do not change."""

    @property
    def attempts(self) -> int:
        """Chains that were opened; more than one means that a hop was replaced. Of a quorum, one
        and the replacements in any of its chains."""
        ...

    @property
    def votes(self) -> tuple[Vote, ...]:
        """Of a quorum, once `finish` has returned: what each chain said, first the one whose claims
        `finish` returned. Else empty."""
        ...

    def __aiter__(self) -> AsyncIterator[SampledToken]:
        """Tokens in order, until a stop token (which is yielded) or `max_tokens`.

        Raises:
            AnswerInterrupted: a hop was lost and none replaces it, or no majority of a quorum
                agrees.
        """
        ...

    async def finish(self, tokens: int) -> tuple[HopClaim, ...]:
        """Accept the first `tokens` tokens, release the nodes, and return one claim per hop: of an
        ensemble (`request.ensemble`) those of every model's chain.

        Raises:
            AnswerInterrupted: a hop does not sign, or no majority of a quorum does.
        """
        ...

    async def cancel(self) -> None:
        """Release the nodes at once; idempotent, never raises."""
        ...


class Network(Protocol):
    """Nodes that together hold models."""

    async def open(
        self,
        request: GenerationRequest,
        *,
        top_logprobs: int = -1,
        quorum: int = 1,
        demand: Demand = ANY,
    ) -> Answer:
        """Reserve a chain and start the answer. `top_logprobs` < 0: no log probabilities.

        `demand`: what each chain has to promise; its limit of price is for all of them together.

        `quorum`: so many chains without a common node compute it, and its tokens are those of
        more than half of them.

        Raises:
            CoverageMissing: a layer of `request.model` has no holder, or too few for the quorum.
            CapacityMissing: all holders of some layer are full.
            OfferMissing: no chain serves on the demand's terms.
            NetworkUnreachable: no node is known at all.
        """
        ...

    def nodes(self) -> tuple[NodeStatus, ...]:
        """Every node known now."""
        ...

    async def close(self) -> None:
        """Release everything; idempotent."""
        ...
