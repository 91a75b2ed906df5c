"""Every message that two nodes exchange.

Bounds are part of the type: a message outside them is refused before anyone looks at it.
A field whose rule needs another field is checked in `__post_init__`, which runs for
messages that are built here as well as for those that are received.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from unisono.errors import PeerCheating
from unisono.types import (
    LayerRange,
    ModelId,
    NodeId,
    PeerAddress,
    SampledToken,
    Sampling,
    SessionId,
    canonical,
    digest,
    is_hex,
)
from unisono.wire.claims import TAG_BYTES, HopClaim
from unisono.wire.identity import SIGNATURE_BYTES, Identity, verify_signature

LEASE_SECONDS = 15.0
"""How long a node's record is good: a node that does not announce itself this long is gone."""
MAX_POSITIONS = 1 << 20
MAX_HOPS = 256
MAX_LAYERS = 4096
MAX_ROWS = 8192
"""Rows in one frame; their widths must fit in a header."""
MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIAS = 1024
MAX_ADDRESSES = 8
MAX_ADDRESS_CHARACTERS = 262
"""A DNS name, a colon, a port."""
MAX_MESSAGE_CHARACTERS = 1024

# `\Z`, not `$`: the latter also matches before a final newline.
Session = Annotated[SessionId, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Node = Annotated[NodeId, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Model = Annotated[ModelId, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Code = Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,64}\Z")]
Text = Annotated[str, Meta(max_length=MAX_MESSAGE_CHARACTERS)]
Position = Annotated[int, Meta(ge=0, lt=MAX_POSITIONS)]
Positions = Annotated[int, Meta(ge=1, le=MAX_POSITIONS)]
Count = Annotated[int, Meta(ge=0, le=MAX_POSITIONS)]
Hop = Annotated[int, Meta(ge=0, lt=MAX_HOPS)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 32)]
Natural = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
StopTokens = Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_TOKENS)]


class _Message(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag=str.lower
):
    """A tagged struct: the tag is the class's name in lower case."""


class Open(_Message, frozen=True):
    """Gateway to hop: reserve room for a session and tell the hop its place in the chain.

    The body is the given tokens (prompt, then tokens already generated) as little-endian
    u32 for the first and the last hop, and empty for the others.
    """

    session: Session
    request_hash: Hash
    gateway: Node
    model: Model
    layers: LayerRange
    hop: Hop
    hops: Annotated[int, Meta(ge=1, le=MAX_HOPS)]
    next: PeerAddress | None
    """Where this hop's rows go; None on the last hop."""
    first: PeerAddress | None
    """On a last hop that is not the first one: where its tokens go besides the gateway."""
    sampling: Sampling
    prompt: Positions
    """Tokens of the prompt."""
    positions: Positions
    """Positions to reserve."""
    start: Positions
    """Tokens given: the prompt and those already generated."""
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_POSITIONS)]
    stop_tokens: StopTokens
    top_logprobs: Annotated[int, Meta(ge=-1, le=MAX_TOP_LOGPROBS)]
    """-1: no log probabilities."""

    def __post_init__(self) -> None:
        _check_layers(self.layers, empty=False)
        _check(self.hop < self.hops, f"hop {self.hop} of {self.hops}")
        last = self.hop == self.hops - 1
        _check((self.next is None) == last, "`next` is for every hop but the last")
        _check(
            (self.first is not None) == (last and self.hop > 0),
            "`first` is for a last hop that is not the first",
        )
        _check_address(self.next)
        _check_address(self.first)
        _check(
            self.prompt <= self.start <= self.positions,
            f"prompt {self.prompt} <= start {self.start} <= positions {self.positions}",
        )
        _check_sampling(self.sampling)


class Opened(_Message, frozen=True):
    """The hop holds the session."""

    session: Session


class Refused(_Message, frozen=True):
    """The hop said no; `code` is one of the protocol's refusal codes."""

    code: Code
    message: Text


class Attach(_Message, frozen=True):
    """First message of a stream between hops: what will flow on it, and towards which hop."""

    session: Session
    hop: Hop
    kind: Literal["rows", "tokens"]


class Attached(_Message, frozen=True):
    """The receiving hop knows the session and expects this stream."""

    session: Session


class Rows(_Message, frozen=True):
    """Activation rows of consecutive positions; the body is their encoding (`wire.rows`)."""

    session: Session
    position: Position
    """Of the first row."""
    widths: Annotated[bytes, Meta(min_length=1, max_length=MAX_ROWS)]

    def __post_init__(self) -> None:
        _check(
            self.position + len(self.widths) <= MAX_POSITIONS,
            f"rows past position {MAX_POSITIONS}",
        )


class Token(_Message, frozen=True):
    """The last hop sampled a token."""

    session: Session
    token: SampledToken

    def __post_init__(self) -> None:
        token = self.token
        _check(0 <= token.position < MAX_POSITIONS, f"position {token.position}")
        _check(0 <= token.token < 1 << 32, f"token id {token.token}")
        _check(_small(token.logprob), f"logprob {token.logprob}")
        _check(len(token.top) <= MAX_TOP_LOGPROBS, f"{len(token.top)} top tokens")
        for candidate, logprob in token.top:
            _check(0 <= candidate < 1 << 32 and _small(logprob), f"top token {candidate}")


class Finish(_Message, frozen=True):
    """Gateway to hop: the first `tokens` tokens are accepted; sign and release the session."""

    session: Session
    tokens: Count


class Claimed(_Message, frozen=True):
    """A hop's signed claim.

    The claim's tags grow with the answer, so they travel as the body: use `split` to send
    and `joined` to receive.
    """

    claim: HopClaim

    def __post_init__(self) -> None:
        claim = self.claim
        _check(is_hex(claim.session, 16), "the claim's session is not an id")
        for name in ("request", "gateway", "model", "node", "rows_in", "rows_out"):
            _check(is_hex(getattr(claim, name), 32), f"the claim's {name} is not 64 hex digits")
        _check(not claim.tokens or is_hex(claim.tokens, 32), "the claim's tokens are not a hash")
        _check(0 <= claim.hop < MAX_HOPS, f"hop {claim.hop}")
        _check_layers(claim.layers, empty=False)
        _check(0 <= claim.positions <= MAX_POSITIONS, f"{claim.positions} positions")
        _check(len(claim.out_tags) <= TAG_BYTES * claim.positions, "more tags than positions")
        _check(len(claim.signature) == SIGNATURE_BYTES, "the claim is not signed")

    @classmethod
    def split(cls, claim: HopClaim) -> tuple[Claimed, bytes]:
        """The message that carries `claim`, and the body that goes with it."""
        return cls(msgspec.structs.replace(claim, out_tags=b"")), claim.out_tags

    def joined(self, body: bytes | memoryview) -> HopClaim:
        """The claim, given the body that came with this message.

        The tags may be inside the message instead if the body is empty. Whether the claim's
        signature is good is for the caller to see.

        Raises:
            PeerCheating: the body is not `TAG_BYTES` for each of at most `positions` rows.
        """
        if not body:
            return self.claim
        if self.claim.out_tags or len(body) % TAG_BYTES:
            raise PeerCheating(f"{len(body)} bytes of tags are not {TAG_BYTES} for each row")
        if len(body) > TAG_BYTES * self.claim.positions:
            raise PeerCheating(
                f"{len(body)} bytes of tags for {self.claim.positions} positions: "
                f"expected at most {TAG_BYTES * self.claim.positions}"
            )
        return msgspec.structs.replace(self.claim, out_tags=bytes(body))


class Failed(_Message, frozen=True):
    """A session ended because of an error; `peer` is the node at fault, if one is known."""

    session: Session
    code: Code
    message: Text
    peer: Node | None


class Ping(_Message, frozen=True):
    """Answer me with the same number."""

    nonce: Natural


class Pong(_Message, frozen=True):
    """The answer to a `Ping`."""

    nonce: Natural


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node says of itself: signed, numbered, and gone when it expires."""

    node: Node
    address: PeerAddress
    model: Annotated[ModelId, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
    """Empty while the node holds no layers."""
    layers: LayerRange
    free_positions: Annotated[int, Meta(ge=0, lt=1 << 40)]
    sessions: Annotated[int, Meta(ge=0, lt=1 << 32)]
    sequence: Natural
    """A record replaces those of the same node with a smaller number."""
    expires: Natural
    """Unix milliseconds."""
    signature: Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)] = b""

    def __post_init__(self) -> None:
        _check_address(self.address)
        _check(self.address.node == self.node, "the address is of another node")
        _check_layers(self.layers, empty=not self.model)

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything else."""
        return digest("record/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> NodeRecord:
        """The same record with the node's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the node that the record names signed these contents."""
        return verify_signature(self.node, self.signed_bytes(), self.signature)


class Announce(_Message, frozen=True):
    """Node to directory: I am here."""

    record: NodeRecord


class Announced(_Message, frozen=True):
    """Directory to node: your lease, and what to hold if that should change."""

    lease_ms: Annotated[int, Meta(ge=0, le=24 * 3600 * 1000)]
    layers: LayerRange | None
    model: Model | None

    def __post_init__(self) -> None:
        _check((self.layers is None) == (self.model is None), "layers and model come together")
        if self.layers is not None:
            _check_layers(self.layers, empty=False)


class Probe(_Message, frozen=True):
    """Who are you, and what do you hold?"""


class Info(_Message, frozen=True):
    """The answer to a `Probe`."""

    record: NodeRecord


Message = (
    Open
    | Opened
    | Refused
    | Attach
    | Attached
    | Rows
    | Token
    | Finish
    | Claimed
    | Failed
    | Ping
    | Pong
    | Announce
    | Announced
    | Probe
    | Info
)


def _check(good: bool, problem: str) -> None:
    # msgspec turns a ValueError raised while decoding into a ValidationError.
    if not good:
        raise ValueError(f"out of bounds: {problem}")


def _small(value: int) -> bool:
    return -(1 << 31) <= value < 1 << 31


def _check_layers(layers: LayerRange, *, empty: bool) -> None:
    least = 0 if empty else 1
    _check(
        0 <= layers.start <= layers.stop <= MAX_LAYERS and layers.count >= least,
        f"layers {layers}",
    )


def _check_address(address: PeerAddress | None) -> None:
    if address is None:
        return
    _check(is_hex(address.node, 32), "an address with a malformed node id")
    _check(0 < len(address.transport) <= 16, "an address with a malformed transport")
    _check(0 < len(address.addresses) <= MAX_ADDRESSES, f"{len(address.addresses)} addresses")
    for text in address.addresses:
        _check(0 < len(text) <= MAX_ADDRESS_CHARACTERS, f"an address of {len(text)} characters")


def _check_sampling(sampling: Sampling) -> None:
    # Only what keeps arithmetic in range; what the numbers mean is for the sampler to judge.
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ):
        _check(_small(getattr(sampling, name)), f"sampling {name}")
    _check(0 <= sampling.seed < 1 << 63, "sampling seed")
    _check(len(sampling.logit_bias) <= MAX_LOGIT_BIAS, f"{len(sampling.logit_bias)} biases")
    previous = -1
    for token, bias in sampling.logit_bias:
        _check(previous < token < 1 << 32 and _small(bias), f"bias of token {token}")
        previous = token
