"""One choice that an endpoint outside the network writes: passed on, marked, receipted as such."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, cast

import msgspec

from unisono.errors import AnswerInterrupted, ReceiptError
from unisono.gateway.completion import Ended, Engine, Event, Opened, Piece
from unisono.gateway.errors import FallbackFailed
from unisono.gateway.remote import RemoteEndpoint
from unisono.gateway.requests import Ask
from unisono.gateway.schemas import ChatAsked
from unisono.gateway.stop import StopMatcher
from unisono.verification.receipt import VERSION
from unisono.verification.unverified import UnverifiedReceipt

log = logging.getLogger(__name__)

# The gateway asks for each choice by itself, as a stream; the endpoint knows its own models.
_OURS = frozenset({"model", "n", "stream", "stream_options", "seed", "prompt", "stop"})
_SEED_MASK = (1 << 31) - 1
"""Not every server takes a seed of 63 bits."""


class RemoteCompletion:
    """Runs one choice of a request at an endpoint and emits what becomes of it."""

    def __init__(
        self,
        engine: Engine,
        endpoint: RemoteEndpoint,
        ask: Ask,
        *,
        index: int,
        receipt_id: str,
        emit: Callable[[Event], None],
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._ask = ask
        self._index = index
        self._receipt_id = receipt_id
        self._emit = emit
        self._matcher = StopMatcher(stops_of(ask))
        self._texts: list[str] = []
        self._opened = False

    async def run(self) -> None:
        """Pass the answer on, store its receipt, and emit `Ended`.

        Raises:
            FallbackFailed: before `Opened`.
            AnswerInterrupted: the endpoint failed in the middle of its answer.
        """
        clock = self._engine.clock
        ask = self._ask
        path = "/chat/completions" if isinstance(ask.asked, ChatAsked) else "/completions"
        limit = self._engine.settings.default_chat_tokens
        body = body_for(ask, self._index, self._endpoint.model, limit)
        started = first = last = clock.monotonic()
        finish = "stop"
        try:
            async with aclosing(self._endpoint.stream(path, body)) as parts:
                async for part in parts:
                    last = clock.monotonic()
                    if not self._opened:
                        first, self._opened = last, True
                        self._emit(Opened(self._index))
                    self._say(self._matcher.push(part.text))
                    if self._matcher.matched is not None:
                        break
                    if part.finish_reason is not None:
                        self._say(self._matcher.flush())
                        finish = part.finish_reason
        except FallbackFailed as error:
            if not self._opened:
                raise
            raise AnswerInterrupted(str(error)) from error
        text = "".join(self._texts)
        receipt = await self._store(
            UnverifiedReceipt(
                version=VERSION,
                id=self._receipt_id,
                verified=False,
                source=self._endpoint.url,
                source_model=self._endpoint.model,
                model=ask.model.id,
                request=hashlib.sha256(body).hexdigest(),
                answer=hashlib.sha256(text.encode(errors="replace")).hexdigest(),
                finish_reason=finish,
                gateway=self._engine.identity.node_id,
                created=int(clock.now()),
                elapsed_us=round((last - first) * 1e6),
                first_token_us=round((first - started) * 1e6),
            )
        )
        # Counted with the tokenizer that counted the prompt, whatever the endpoint says.
        tokens = len(ask.model.tokenizer.encode(text, add_start=False))
        self._emit(Ended(self._index, finish, tokens, receipt))

    def _say(self, text: str) -> None:
        if text:
            self._texts.append(text)
            self._emit(Piece(self._index, text, ()))

    async def _store(self, receipt: UnverifiedReceipt) -> str | None:
        engine = self._engine
        try:
            return await engine.receipts.put(receipt.signed_by(engine.identity))
        except ReceiptError as error:
            engine.metrics.unsigned.inc()
            log.warning("an answer of %s has no receipt: %s", receipt.source, error)
            return None


def stops_of(ask: Ask) -> list[str]:
    """The stop strings of the client's own."""
    stop = ask.asked.stop
    return [stop] if isinstance(stop, str) else list(stop or ())


def body_for(ask: Ask, index: int, model: str, default_chat_tokens: int | None = None) -> bytes:
    """The request for choice `index` of `ask`, as JSON for an endpoint that calls its model
    `model`: what the client set and nothing else, so that what an endpoint does not know it
    refuses instead of leaving it out.

    Seeds differ between choices; the first is the client's own, cut to 31 bits.
    """
    asked = ask.asked
    given = cast("dict[str, Any]", msgspec.to_builtins(asked))
    body: dict[str, Any] = {"model": model, "stream": True}
    body |= {k: v for k, v in given.items() if v is not None and k not in _OURS}
    if isinstance(asked, ChatAsked):
        body["messages"] = [
            {k: v for k, v in cast("dict[str, Any]", message).items() if v is not None}
            for message in given["messages"]
        ]
        if asked.max_tokens is None and asked.max_completion_tokens is None:
            body |= {} if default_chat_tokens is None else {"max_tokens": default_chat_tokens}
    else:
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        body["prompt"] = prompts[index // ask.choices_per_prompt]
    if stops_of(ask):
        body["stop"] = stops_of(ask)
    if asked.seed is not None:
        body["seed"] = ask.requests[index].sampling.seed & _SEED_MASK
    return msgspec.json.encode(body)
