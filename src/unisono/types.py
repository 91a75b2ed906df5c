"""The vocabulary that every layer shares.

Values here cross process boundaries or are hashed, so they are frozen, hold
integers instead of floats, and have one canonical encoding (`canonical`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NewType, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from unisono.errors import ConfigurationError

NodeId = NewType("NodeId", str)
"""64 lowercase hex digits: the node's ed25519 public key."""

ModelId = NewType("ModelId", str)
"""64 lowercase hex digits: the root over all fields of the model (`models.fields`)."""

SessionId = NewType("SessionId", str)
"""32 lowercase hex digits, drawn at random by the gateway for one attempt at one request."""

EvmAddress = NewType("EvmAddress", str)
"""`0x` and 40 hex digits with the EIP-55 checksum in their case: who owns money on a chain."""

Q16 = 1 << 16
"""The unit of fixed-point numbers with 16 fraction bits."""


class LayerRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """A contiguous block of decoder layers, `start` included, `stop` excluded."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    @property
    def count(self) -> int:
        """How many layers the block has."""
        return self.stop - self.start


class PeerAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a peer can be reached, and the key it must prove there.

    Written `TRANSPORT://NODE_ID@HOST:PORT[,HOST:PORT…]`.
    """

    node: NodeId
    transport: str
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.transport}://{self.node}@{','.join(self.addresses)}"

    @classmethod
    def parse(cls, text: str) -> PeerAddress:
        """Read the written form.

        Raises:
            ConfigurationError: the text is not such an address.
        """
        transport, found, rest = text.partition("://")
        node, at, addresses = rest.partition("@")
        if not (found and at and addresses and is_hex(node, 32)):
            raise ConfigurationError(
                f"'{text}' is not a peer address: expected TRANSPORT://NODE_ID@HOST:PORT "
                "with a node id of 64 hex digits; copy the line that the other node printed"
            )
        return cls(NodeId(node), transport, tuple(addresses.split(",")))


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the next token is chosen. Every fraction is an integer with 16 fraction bits."""

    temperature: int = 0
    """0 is greedy."""
    top_k: int = 0
    """0 is off."""
    top_p: int = Q16
    min_p: int = 0
    repetition_penalty: int = Q16
    presence_penalty: int = 0
    frequency_penalty: int = 0
    logit_bias: tuple[tuple[int, int], ...] = ()
    """(token id, bias) pairs, ascending by id."""
    seed: int = 0
    """Unsigned, 63 bits."""

    def problem(self, vocabulary: int) -> str | None:
        """Which setting has no meaning for a model of `vocabulary` tokens, or None."""
        small = 1 << 31
        good = {
            "temperature": 0 <= self.temperature < small,
            "top_k": 0 <= self.top_k < small,
            "top_p": 0 <= self.top_p <= Q16,
            "min_p": 0 <= self.min_p <= Q16,
            "repetition_penalty": 0 < self.repetition_penalty < 64 * Q16,
            "presence_penalty": -small <= self.presence_penalty < small,
            "frequency_penalty": -small <= self.frequency_penalty < small,
            "logit_bias": all(
                0 <= t < vocabulary and -small <= b < small for t, b in self.logit_bias
            )
            and all(a < b for (a, _), (b, _) in pairwise(self.logit_bias)),
            "seed": 0 <= self.seed < 1 << 63,
        }
        wrong = next((name for name, fine in good.items() if not fine), None)
        return None if wrong is None else f"sampling.{wrong} is out of range"


class GenerationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The canonical request: everything that determines the tokens of the answer."""

    model: ModelId
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end the answer (end of text, end of turn)."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer."""
    ensemble: tuple[ModelId, ...] | UnsetType = UNSET
    """The models whose mean distribution the tokens are drawn from, `model` among them. Absent in
    all encodings, those that are hashed included, where `model` alone decides."""


class SampledToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token of an answer, as the last hop sends it."""

    position: int
    """Absolute position of this token in the sequence (the prompt starts at 0)."""
    token: int
    logprob: int = 0
    """Natural-log probability before any filter, 16 fraction bits."""
    top: tuple[tuple[int, int], ...] = ()
    """(token id, log probability) of the likeliest tokens, if they were asked for."""


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one model of an ensemble says of the next token (`numerics.ensemble`)."""

    ids: tuple[int, ...]
    """The likeliest tokens, best first, ties by id."""
    likelihoods: tuple[int, ...]
    """Of each, relative to the first: 28 fraction bits, above 0."""
    rest: int
    """The sum of all others'."""


def is_hex(text: str, size: int) -> bool:
    """Whether `text` is exactly `size` bytes as lowercase hex digits."""
    return len(text) == 2 * size and not set(text) - set("0123456789abcdef")


def canonical(value: object) -> bytes:
    """The one encoding that is hashed and signed: MessagePack, struct fields by name in the
    order of their declaration, integers in their shortest form, no floats."""
    return msgspec.msgpack.encode(value)


def digest(domain: str, *parts: bytes) -> bytes:
    """SHA-256 of the parts, each with its length before it, under a domain string."""
    state = hashlib.sha256(b"unisono/" + domain.encode() + b"\0")
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def tokens_hash(tokens: Sequence[int]) -> bytes:
    """SHA-256 of token ids of 4 bytes each, little-endian."""
    return hashlib.sha256(b"".join(t.to_bytes(4, "little") for t in tokens)).digest()


def request_hash(request: GenerationRequest) -> str:
    """64 hex digits that name the canonical request; every hop signs it."""
    terms = msgspec.structs.replace(request, prompt=())
    return request_hash_over(terms, len(request.prompt), tokens_hash(request.prompt))


def request_hash_over(terms: GenerationRequest, count: int, prompt: bytes) -> str:
    """The same of a request without its prompt, which only its length and `tokens_hash` stand for:
    so that what was asked for can be shown without what was said."""
    return digest("request/2", count.to_bytes(8, "little"), prompt, canonical(terms)).hex()


class Limits(Protocol):
    """What says where an answer ends: a canonical request, or the `Open` that carries it."""

    @property
    def max_tokens(self) -> int: ...

    @property
    def stop_tokens(self) -> tuple[int, ...]: ...


def stop_rule(limits: Limits, count: int, last: int) -> bool:
    """Whether an answer of `count` > 0 tokens that ends with `last` is complete: by a stop token,
    or since it has as many as were asked for."""
    return count >= limits.max_tokens or last in limits.stop_tokens


def is_complete(limits: Limits, answer: Sequence[int]) -> bool:
    """`stop_rule` of a whole answer, which may be empty."""
    if not answer:
        return limits.max_tokens <= 0
    return stop_rule(limits, len(answer), answer[-1])
