"""One choice of one request: tokens become text, the text may stop, the answer is receipted.

Knows nothing of OpenAI's formats: it emits events, and `replies` dresses them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from unisono.clock import Clock
from unisono.errors import AnswerInterrupted, NetworkError, ReceiptError, WireError
from unisono.gateway.audits import Auditing
from unisono.gateway.metrics import GatewayMetrics
from unisono.gateway.race import Overtaken, unless
from unisono.gateway.receipts import ReceiptStore
from unisono.gateway.served import ServedModel
from unisono.gateway.settings import GatewaySettings
from unisono.gateway.stop import StopMatcher
from unisono.routing.demand import ANY, Demand
from unisono.routing.network import Answer, Network
from unisono.types import GenerationRequest, SampledToken
from unisono.verification.receipt import VERSION, Receipt
from unisono.wire.claims import HopClaim
from unisono.wire.ensemble import Ensemble, Member
from unisono.wire.identity import Identity
from unisono.wire.votes import Quorum, Vote

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token with its log probabilities and where its text begins in the answer's text."""

    sampled: SampledToken
    offset: int


@dataclass(frozen=True, slots=True)
class Opened:
    """The nodes are reserved; from here on the answer can only be interrupted."""

    index: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The next text of a choice, and the tokens that begin in it if scores were asked for."""

    index: int
    text: str
    scores: tuple[ScoredToken, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is complete."""

    index: int
    finish_reason: str
    """`stop` or `length`."""
    tokens: int
    """Tokens of the answer, a stop token or the tokens of a stop string included."""
    receipt: str | None
    """Id of the stored receipt; None if the hops did not sign or the store failed."""
    votes: tuple[Vote, ...] = ()
    """Of a quorum, first the chain of the receipt; empty if it did not come to a count."""


Event = Opened | Piece | Ended


@dataclass(frozen=True, slots=True)
class Engine:
    """What every choice needs to be computed."""

    network: Network
    identity: Identity
    receipts: ReceiptStore
    settings: GatewaySettings
    clock: Clock
    metrics: GatewayMetrics
    audits: Auditing | None = None


class Completion:
    """Runs one generation request and emits what becomes of it."""

    def __init__(
        self,
        engine: Engine,
        model: ServedModel,
        request: GenerationRequest,
        *,
        index: int,
        receipt_id: str,
        top_logprobs: int,
        quorum: int = 1,
        demand: Demand = ANY,
        emit: Callable[[Event], None],
    ) -> None:
        self._engine = engine
        self._model = model
        self._request = request
        self._index = index
        self._receipt_id = receipt_id
        self._top_logprobs = top_logprobs
        self._quorum = quorum
        self._demand = demand
        self._emit = emit
        self._decoder = model.tokenizer.decoder()
        self._matcher = StopMatcher(request.stop)
        self._tokens: list[int] = []
        self._unreported: deque[ScoredToken] = deque()
        self._decoded = 0
        """Characters that the tokens so far have given, held back or not."""
        self._sent = 0
        """Characters that were emitted."""
        self._first_token_us = 0
        self._elapsed_us = 0

    async def run(self) -> None:
        """Compute the answer, store its receipt, and emit `Ended`.

        If this raises or is cancelled, the answer is cancelled and its nodes are free.

        Raises:
            CoverageMissing, CapacityMissing, OfferMissing: before `Opened`.
            AnswerInterrupted: a hop was lost and none replaces it, or no majority of the quorum
                agrees.
        """
        engine, started = self._engine, self._engine.clock.monotonic()
        answer = await engine.network.open(
            self._request,
            top_logprobs=self._top_logprobs,
            quorum=self._quorum,
            demand=self._demand,
        )
        finished = False
        try:
            self._emit(Opened(self._index))
            finish_reason = await self._decode(answer, started)
            self._count()
            receipt = await self._receipt(answer, finish_reason)
            finished = receipt is not None
        finally:
            engine.metrics.attempts.labels(self._model.name).inc(answer.attempts)
            if not finished:
                await answer.cancel()
        self._emit(Ended(self._index, finish_reason, len(self._tokens), receipt, answer.votes))

    async def _decode(self, answer: Answer, started: float) -> str:
        """Read tokens until the answer ends; returns the finish reason."""
        request, clock = self._request, self._engine.clock
        first = started
        async for sampled in answer:
            now = clock.monotonic()
            if not self._tokens:
                first = now
                self._first_token_us = round((now - started) * 1e6)
            self._elapsed_us = round((now - first) * 1e6)
            self._tokens.append(sampled.token)
            if sampled.token in request.stop_tokens:
                self._advance(self._decoder.flush(), last=True)
                return "stop"
            self._take(sampled)
            if self._matcher.matched is not None:
                return "stop"
            if len(self._tokens) >= request.max_tokens:
                self._advance(self._decoder.flush(), last=True)
                return "length" if self._matcher.matched is None else "stop"
        raise AnswerInterrupted(
            f"the answer ended after {len(self._tokens)} of {request.max_tokens} tokens "
            "without a stop token: try again"
        )

    def _take(self, sampled: SampledToken) -> None:
        if self._top_logprobs >= 0:
            self._unreported.append(ScoredToken(sampled, self._decoded))
        text = self._decoder.push(sampled.token)
        self._decoded += len(text)
        self._advance(text, last=False)

    def _advance(self, text: str, *, last: bool) -> None:
        """Emit what `text` decides. `last`: no text follows, so nothing is held back."""
        decided = self._matcher.push(text)
        if last:
            decided += self._matcher.flush()
        self._sent += len(decided)
        scores: list[ScoredToken] = []
        # A token is reported with the text in which it begins, so that the tokens of a stop
        # string stay as unseen as its characters.
        ended = last and self._matcher.matched is None
        while self._unreported and (ended or self._unreported[0].offset < self._sent):
            scores.append(self._unreported.popleft())
        if decided or scores:
            self._emit(Piece(self._index, decided, tuple(scores)))

    def _count(self) -> None:
        metrics, name = self._engine.metrics, self._model.name
        metrics.tokens_out.labels(name).inc(len(self._tokens))
        metrics.first_token.labels(name).observe(self._first_token_us / 1e6)
        if len(self._tokens) > 1:
            metrics.token.labels(name).observe(self._elapsed_us / 1e6 / (len(self._tokens) - 1))

    async def _receipt(self, answer: Answer, finish_reason: str) -> str | None:
        """Have the hops sign, and store the receipt.

        The client has its text by now, so a hop that does not sign costs the answer its
        receipt and not its ending.
        """
        engine, count = self._engine, len(self._tokens)
        try:
            claims = await unless(
                engine.clock.sleep(engine.settings.receipt_seconds), answer.finish(count)
            )
            receipt = Receipt(
                version=VERSION,
                id=self._receipt_id,
                request=self._request,
                tokens=tuple(self._tokens),
                finish_reason=finish_reason,
                hops=tuple(claim for claim in claims if claim.model == self._request.model),
                gateway=engine.identity.node_id,
                created=int(engine.clock.now()),
                elapsed_us=self._elapsed_us,
                first_token_us=self._first_token_us,
                attempts=answer.attempts,
                quorum=Quorum(answer.votes[1:]) if answer.votes else UNSET,
                ensemble=_others(self._request, claims),
            ).signed_by(engine.identity)
            stored = await engine.receipts.put(receipt)
            if engine.audits is not None:
                engine.audits.take(receipt)
            return stored
        except (NetworkError, WireError, ReceiptError) as error:
            reason = str(error)
        except Overtaken:
            reason = f"not every hop signed within {engine.settings.receipt_seconds:g} seconds"
        engine.metrics.unsigned.inc()
        log.warning("an answer of %d tokens has no receipt: %s", count, reason)
        return None


def _others(request: GenerationRequest, claims: Sequence[HopClaim]) -> Ensemble | UnsetType:
    """What the chains of an ensemble's other models signed."""
    if request.ensemble is UNSET:
        return UNSET
    return Ensemble(
        tuple(
            Member(model, tuple(claim for claim in claims if claim.model == model))
            for model in request.ensemble
            if model != request.model
        )
    )
