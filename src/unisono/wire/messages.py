"""Every message that two nodes exchange about sessions.

Bounds are part of the type: a message outside them is refused before anyone looks at it.
A field whose rule needs another field is checked in `__post_init__`, which runs for
messages that are built here as well as for those that are received.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from unisono.errors import PeerCheating
from unisono.types import LayerRange, PeerAddress, SampledToken, Sampling, is_hex
from unisono.wire.bounds import (
    MAX_HOPS,
    MAX_LOGIT_BIAS,
    MAX_POSITIONS,
    MAX_ROWS,
    MAX_TOP_LOGPROBS,
    Code,
    Count,
    Hash,
    Hop,
    MessageBase,
    Model,
    Natural,
    Node,
    Position,
    Positions,
    Session,
    StopTokens,
    Text,
    check,
    check_address,
    check_layers,
    small,
)
from unisono.wire.claims import TAG_BYTES, HopClaim
from unisono.wire.identity import SIGNATURE_BYTES
from unisono.wire.records import Announce, Announced, Info, Probe


class Open(MessageBase, frozen=True):
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
        check_layers(self.layers, empty=False)
        check(self.hop < self.hops, f"hop {self.hop} of {self.hops}")
        last = self.hop == self.hops - 1
        check((self.next is None) == last, "`next` is for every hop but the last")
        check(
            (self.first is not None) == (last and self.hop > 0),
            "`first` is for a last hop that is not the first",
        )
        check_address(self.next)
        check_address(self.first)
        check(
            self.prompt <= self.start <= self.positions,
            f"prompt {self.prompt} <= start {self.start} <= positions {self.positions}",
        )
        _check_sampling(self.sampling)


class Opened(MessageBase, frozen=True):
    """The hop holds the session."""

    session: Session


class Refused(MessageBase, frozen=True):
    """The hop said no; `code` is one of the protocol's refusal codes."""

    code: Code
    message: Text


class Attach(MessageBase, frozen=True):
    """First message of a stream between hops: what will flow on it, and towards which hop."""

    session: Session
    hop: Hop
    kind: Literal["rows", "tokens"]


class Attached(MessageBase, frozen=True):
    """The receiving hop knows the session and expects this stream."""

    session: Session


class Rows(MessageBase, frozen=True):
    """Activation rows of consecutive positions; the body is their encoding (`wire.rows`)."""

    session: Session
    position: Position
    """Of the first row."""
    widths: Annotated[bytes, Meta(min_length=1, max_length=MAX_ROWS)]

    def __post_init__(self) -> None:
        check(
            self.position + len(self.widths) <= MAX_POSITIONS,
            f"rows past position {MAX_POSITIONS}",
        )


class Token(MessageBase, frozen=True):
    """The last hop sampled a token."""

    session: Session
    token: SampledToken

    def __post_init__(self) -> None:
        token = self.token
        check(0 <= token.position < MAX_POSITIONS, f"position {token.position}")
        check(0 <= token.token < 1 << 32, f"token id {token.token}")
        check(small(token.logprob), f"logprob {token.logprob}")
        check(len(token.top) <= MAX_TOP_LOGPROBS, f"{len(token.top)} top tokens")
        for candidate, logprob in token.top:
            check(0 <= candidate < 1 << 32 and small(logprob), f"top token {candidate}")


class Finish(MessageBase, frozen=True):
    """Gateway to hop: the first `tokens` tokens are accepted; sign and release the session."""

    session: Session
    tokens: Count


class Claimed(MessageBase, frozen=True):
    """A hop's signed claim.

    The claim's tags grow with the answer, so they travel as the body: use `split` to send
    and `joined` to receive.
    """

    claim: HopClaim

    def __post_init__(self) -> None:
        claim = self.claim
        check(is_hex(claim.session, 16), "the claim's session is not an id")
        for name in ("request", "gateway", "model", "node", "rows_in", "rows_out"):
            check(is_hex(getattr(claim, name), 32), f"the claim's {name} is not 64 hex digits")
        check(not claim.tokens or is_hex(claim.tokens, 32), "the claim's tokens are not a hash")
        check(0 <= claim.hop < MAX_HOPS, f"hop {claim.hop}")
        check_layers(claim.layers, empty=False)
        check(0 <= claim.positions <= MAX_POSITIONS, f"{claim.positions} positions")
        check(len(claim.out_tags) <= TAG_BYTES * claim.positions, "more tags than positions")
        check(len(claim.signature) == SIGNATURE_BYTES, "the claim is not signed")

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


class Failed(MessageBase, frozen=True):
    """A session ended because of an error; `peer` is the node at fault, if one is known."""

    session: Session
    code: Code
    message: Text
    peer: Node | None


class Ping(MessageBase, frozen=True):
    """Answer me with the same number."""

    nonce: Natural


class Pong(MessageBase, frozen=True):
    """The answer to a `Ping`."""

    nonce: Natural


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
        check(small(getattr(sampling, name)), f"sampling {name}")
    check(0 <= sampling.seed < 1 << 63, "sampling seed")
    check(len(sampling.logit_bias) <= MAX_LOGIT_BIAS, f"{len(sampling.logit_bias)} biases")
    previous = -1
    for token, bias in sampling.logit_bias:
        check(previous < token < 1 << 32 and small(bias), f"bias of token {token}")
        previous = token
