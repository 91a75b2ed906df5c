"""What a chain asks of each of its hops: the session as it opens it, and the claim that it owes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import UNSET

from unisono.types import GenerationRequest, NodeId, SessionId, request_hash
from unisono.wire.claims import HopClaim, epoch_is_due, tokens_root
from unisono.wire.messages import Open
from unisono.wire.payment_messages import Agreed
from unisono.wire.records import NodeRecord


@dataclass(frozen=True, slots=True)
class Commission:
    """One session of one gateway; its hops may change, and this does not."""

    session: SessionId
    gateway: NodeId
    request: GenerationRequest
    top_logprobs: int
    draft: bool
    """Whether the first hop may guess tokens ahead."""
    weigh: bool
    """Whether the last hop tells distributions instead of choosing tokens."""
    epoch_seconds: int

    @property
    def positions(self) -> int:
        """Positions that the session may use."""
        return len(self.request.prompt) + self.request.max_tokens

    def opening(
        self,
        hops: Sequence[NodeRecord],
        index: int,
        tokens: Sequence[int],
        resume: int,
        agreed: Agreed | None,
    ) -> tuple[Open, bytes]:
        """The message that opens the session on a hop, and its body.

        Args:
            tokens: prompt and answer so far.
            resume: where the hop begins to send to the next.
            agreed: what it is paid.
        """
        request, count = self.request, len(hops)
        last = index == count - 1
        opened = Open(
            session=self.session,
            request_hash=request_hash(request),
            gateway=self.gateway,
            model=request.model,
            layers=hops[index].layers,
            hop=index,
            hops=count,
            previous=None if count == 1 else hops[index - 1].node,
            next=None if count == 1 else hops[(index + 1) % count].address,
            resume=resume,
            sampling=request.sampling,
            prompt=len(request.prompt),
            positions=self.positions,
            start=len(tokens),
            max_tokens=request.max_tokens,
            stop_tokens=request.stop_tokens,
            top_logprobs=self.top_logprobs if last else -1,
            # One that takes the first hop's place is behind the others: its wrong guesses would
            # replace right rows of theirs, which they may be about to sign.
            draft=self.draft,
            agreed=agreed,
            weigh=self.weigh,
        )
        ends = index == 0 or last
        return opened, np.array(tokens if ends else (), dtype="<u4").tobytes()

    def is_due(
        self,
        claim: HopClaim,
        hops: Sequence[NodeRecord],
        index: int,
        answer: list[int],
        tokens: int,
        distributions: str | None,
        now: float,
    ) -> bool:
        """Whether a claim is the one that a hop owes for the first `tokens` tokens of an answer.

        Args:
            distributions: what the hop has to sign of them; None if it is not asked for any.
            now: seconds since the Unix epoch.
        """
        record, last = hops[index], index == len(hops) - 1
        return (
            claim.signature_is_good()
            and claim.node == record.node
            and claim.layers == record.layers
            and claim.session == self.session
            and claim.hop == index
            and claim.gateway == self.gateway
            and claim.model == self.request.model
            and claim.request == request_hash(self.request)
            and epoch_is_due(claim.epoch, now, self.epoch_seconds)
            and claim.positions == len(self.request.prompt) + tokens - 1
            and claim.tokens == (tokens_root(answer[:tokens]) if last else "")
            and claim.distributions == (UNSET if distributions is None else distributions)
        )
