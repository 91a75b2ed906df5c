"""What becomes of a request, dressed as OpenAI's objects: whole answers and chunks."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import UNSET, UnsetType

from unisono.gateway.completion import Ended, Piece, ScoredToken
from unisono.gateway.generation import Generation, Silence
from unisono.gateway.requests import Ask
from unisono.gateway.schemas import (
    AssistantMessage,
    ChainNote,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChunkNote,
    QuorumNote,
    Reply,
    TextChoice,
    TextLogprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
    WholeNote,
)
from unisono.gateway.sources import Origin
from unisono.types import Q16
from unisono.wire.votes import Vote


@dataclass(slots=True)
class Collected:
    """One choice of an answer that is sent whole."""

    index: int
    text: str = ""
    scores: list[ScoredToken] = field(default_factory=list[ScoredToken])
    finish_reason: str = ""
    tokens: int = 0
    receipt: str | None = None
    votes: tuple[Vote, ...] = ()


async def collect(generation: Generation) -> list[Collected]:
    """Wait for the end of every choice, in the order of their index.

    Raises:
        AnswerInterrupted: a hop of some choice was lost and none replaces it, or no majority of
            its quorum agrees.
    """
    choices = [Collected(index) for index in range(len(generation.ask.requests))]
    texts: list[list[str]] = [[] for _ in choices]
    async for event in generation.events():
        if isinstance(event, Silence):
            continue
        choice = choices[event.index]
        if isinstance(event, Piece):
            texts[event.index].append(event.text)
            choice.scores.extend(event.scores)
        else:
            choice.finish_reason = event.finish_reason
            choice.tokens = event.tokens
            choice.receipt = event.receipt
            choice.votes = event.votes
    for choice, parts in zip(choices, texts, strict=True):
        choice.text = "".join(parts)
    return choices


class Format(Protocol):
    """One of OpenAI's two shapes of an answer."""

    def opening(self, index: int) -> Reply | None:
        """The chunk before a choice's first text, if the shape has one."""
        ...

    def piece(self, piece: Piece) -> Reply:
        """A chunk of text."""
        ...

    def ended(self, ended: Ended) -> Reply:
        """The chunk that ends a choice and names its receipt."""
        ...

    def usage(self, completion_tokens: int) -> Reply:
        """The last chunk of a stream that asked for it; has no choices."""
        ...

    def whole(self, choices: Sequence[Collected]) -> Reply:
        """The answer that is not streamed."""
        ...


class _Envelope:
    """What both shapes write around their choices."""

    def __init__(
        self, ask: Ask, origin: Origin, created: int, prefix: str, whole: str, chunk: str
    ) -> None:
        self._ask = ask
        self._origin = origin
        self._verified: bool | UnsetType = UNSET if origin.verified else False
        self._id = prefix + secrets.token_hex(16)
        self._created = created
        self._whole = whole
        self._chunk = chunk
        self._tokenizer = ask.model.tokenizer
        # OpenAI sends a null usage in every chunk of a stream whose last one has it.
        self._no_usage: UnsetType | None = None if ask.include_usage else UNSET

    def _reply(
        self,
        choices: Sequence[ChatChoice | ChatChunkChoice | TextChoice],
        *,
        object: str,
        usage: Usage | UnsetType | None,
        unisono: WholeNote | ChunkNote | UnsetType = UNSET,
    ) -> Reply:
        return Reply(
            id=self._id,
            object=object,
            created=self._created,
            model=self._origin.model,
            choices=choices,
            system_fingerprint=self._origin.fingerprint,
            usage=usage,
            unisono=unisono,
        )

    def _part(
        self,
        choice: ChatChunkChoice | TextChoice,
        note: ChunkNote | UnsetType = UNSET,
    ) -> Reply:
        return self._reply([choice], object=self._chunk, usage=self._no_usage, unisono=note)

    def usage(self, completion_tokens: int) -> Reply:
        """See `Format`."""
        return self._reply([], object=self._chunk, usage=self._usage(completion_tokens))

    def _all(
        self, choices: Sequence[ChatChoice | TextChoice], collected: Sequence[Collected]
    ) -> Reply:
        return self._reply(
            choices,
            object=self._whole,
            usage=self._usage(sum(each.tokens for each in collected)),
            unisono=WholeNote(
                [each.receipt for each in collected],
                self._verified,
                [_quorum(each.votes) for each in collected] if self._ask.quorum > 1 else UNSET,
            ),
        )

    def _note(self, ended: Ended) -> ChunkNote:
        quorum = _quorum(ended.votes) if self._ask.quorum > 1 else UNSET
        return ChunkNote(ended.receipt, self._verified, quorum)

    def _usage(self, completion_tokens: int) -> Usage:
        prompt = self._ask.prompt_tokens
        return Usage(prompt, completion_tokens, prompt + completion_tokens)


def _quorum(votes: Sequence[Vote]) -> QuorumNote | None:
    if not votes:
        return None
    return QuorumNote(
        asked=len(votes),
        agreed=sum(vote.outcome == "agreed" for vote in votes),
        chains=[
            ChainNote(
                vote.outcome,
                vote.nodes,
                vote.tokens,
                vote.count,
                bool(vote.hops),
                vote.reason or UNSET,
            )
            for vote in votes
        ],
    )


class ChatFormat(_Envelope):
    """`chat.completion` and its chunks."""

    def __init__(self, ask: Ask, origin: Origin, created: int) -> None:
        super().__init__(
            ask, origin, created, "chatcmpl-", "chat.completion", "chat.completion.chunk"
        )

    def opening(self, index: int) -> Reply | None:
        """See `Format`."""
        return self._part(ChatChunkChoice(index, ChatDelta(role="assistant", content="")))

    def piece(self, piece: Piece) -> Reply:
        """See `Format`."""
        delta = ChatDelta(content=piece.text)
        return self._part(ChatChunkChoice(piece.index, delta, self._logprobs(piece.scores)))

    def ended(self, ended: Ended) -> Reply:
        """See `Format`."""
        choice = ChatChunkChoice(ended.index, ChatDelta(), finish_reason=ended.finish_reason)
        return self._part(choice, self._note(ended))

    def whole(self, choices: Sequence[Collected]) -> Reply:
        """See `Format`."""
        return self._all(
            [
                ChatChoice(
                    each.index,
                    AssistantMessage(each.text),
                    self._logprobs(each.scores),
                    each.finish_reason,
                )
                for each in choices
            ],
            choices,
        )

    def _logprobs(self, scores: Sequence[ScoredToken]) -> ChatLogprobs | None:
        if self._ask.top_logprobs < 0:
            return None
        tokenizer = self._tokenizer
        return ChatLogprobs(
            [
                TokenLogprob(
                    tokenizer.token_text(score.sampled.token),
                    score.sampled.logprob / Q16,
                    list(tokenizer.token_bytes(score.sampled.token)),
                    [
                        TopLogprob(
                            tokenizer.token_text(token),
                            logprob / Q16,
                            list(tokenizer.token_bytes(token)),
                        )
                        for token, logprob in score.sampled.top
                    ],
                )
                for score in scores
            ]
        )


class TextFormat(_Envelope):
    """`text_completion`, whole and in chunks."""

    def __init__(self, ask: Ask, origin: Origin, created: int) -> None:
        super().__init__(ask, origin, created, "cmpl-", "text_completion", "text_completion")

    def opening(self, index: int) -> Reply | None:
        """See `Format`."""
        return None

    def piece(self, piece: Piece) -> Reply:
        """See `Format`."""
        return self._part(TextChoice(piece.index, piece.text, self._logprobs(piece.scores)))

    def ended(self, ended: Ended) -> Reply:
        """See `Format`."""
        choice = TextChoice(ended.index, "", finish_reason=ended.finish_reason)
        return self._part(choice, self._note(ended))

    def whole(self, choices: Sequence[Collected]) -> Reply:
        """See `Format`."""
        return self._all(
            [
                TextChoice(each.index, each.text, self._logprobs(each.scores), each.finish_reason)
                for each in choices
            ],
            choices,
        )

    def _logprobs(self, scores: Sequence[ScoredToken]) -> TextLogprobs | None:
        wanted, text_of = self._ask.top_logprobs, self._tokenizer.token_text
        if wanted < 0:
            return None
        return TextLogprobs(
            tokens=[text_of(score.sampled.token) for score in scores],
            token_logprobs=[score.sampled.logprob / Q16 for score in scores],
            top_logprobs=[
                {text_of(token): logprob / Q16 for token, logprob in score.sampled.top}
                for score in scores
            ]
            if wanted
            else None,
            text_offset=[score.offset for score in scores],
        )
