"""OpenAI's objects: what clients send and what they get back.

Fields that a client may leave out it may also send as null; unknown fields are ignored
here, and `requests` refuses those that would change the answer's meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class AskedSampling(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and text completions have in common."""

    model: str
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    """Generate up to `max_tokens` whatever the model says: for benchmarks."""
    quorum: int | None = None
    """So many chains without a common node compute the answer, and a majority decides."""
    ensemble: list[str] | None = None
    """Models that answer together, `model` among them: tokens are drawn from the mean of what they
    say."""
    max_cost: float | None = None
    """In the stable unit: nodes that would ask for more in all do not serve the request."""
    tier: str | None = None
    """The service level that every node has to promise."""


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None


class ChatAsked(AskedSampling, frozen=True, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class TextAsked(AskedSampling, frozen=True, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: str | list[Any]
    """Text, texts, token ids, or lists of token ids."""
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """Token counts. Those of the answer are the tokens that its receipts list."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChainNote(msgspec.Struct, frozen=True):
    """What one chain of a quorum said."""

    outcome: str
    """`agreed`, `dissented`, `late` or `lost`."""
    nodes: tuple[str, ...]
    tokens: str
    """Hash of the tokens that it gave."""
    count: int
    """How many these are; of a dissenter, up to the one that differs."""
    signed: bool
    reason: str | UnsetType = UNSET
    """Of one that did not agree."""


class QuorumNote(msgspec.Struct, frozen=True):
    """What became of a request for a quorum; first the chain whose receipt is named."""

    asked: int
    agreed: int
    chains: list[ChainNote]


class WholeNote(msgspec.Struct, frozen=True):
    """Ours: one receipt id per choice, null where the hops did not sign."""

    receipts: list[str | None]
    verified: bool | UnsetType = UNSET
    """False if the answer came from outside the network; else absent."""
    quorums: list[QuorumNote | None] | UnsetType = UNSET
    """One per choice if a quorum was asked for; null where the chains did not sign in time."""


class ChunkNote(msgspec.Struct, frozen=True):
    """Ours: the receipt id of the choice that a chunk ends, null if the hops did not sign."""

    receipt: str | None
    verified: bool | UnsetType = UNSET
    """As in `WholeNote`."""
    quorum: QuorumNote | UnsetType | None = UNSET
    """If a quorum was asked for, as in `WholeNote`."""


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class AssistantMessage(msgspec.Struct, frozen=True):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatDelta(msgspec.Struct, frozen=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class TextChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer or a chunk of one: `object` says which, and so the type of the choices."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[ChatChoice | ChatChunkChoice | TextChoice]
    system_fingerprint: str | None
    """The model id: the same fingerprint, request and seed give the same tokens. None: nothing
    is promised."""
    usage: Usage | UnsetType | None = UNSET
    unisono: WholeNote | ChunkNote | UnsetType = UNSET


class ModelCard(msgspec.Struct, frozen=True):
    id: str
    created: int
    context_length: int
    aliases: tuple[str, ...]
    model_hash: str
    object: str = "model"
    owned_by: str = "unisono"


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelCard]
    object: str = "list"
