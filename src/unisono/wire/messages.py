"""Every message that two nodes exchange about sessions.

Bounds are part of the type: a message outside them is refused before anyone looks at it.
A field whose rule needs another field is checked in `__post_init__`, which runs for
messages that are built here as well as for those that are received.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta

from unisono.errors import PeerCheating
from unisono.types import LayerRange, PeerAddress, SampledToken, Sampling, is_hex
from unisono.wire.audit_messages import AuditMessage
from unisono.wire.bounds import (
    MAX_BUNDLE,
    MAX_DRAFT_ROWS,
    MAX_HOPS,
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
    TokenId,
    check,
    check_address,
    check_layers,
    check_sampling,
    small,
)
from unisono.wire.claims import TAG_BYTES, HopClaim
from unisono.wire.ensemble import EnsembleMessage
from unisono.wire.gossip_messages import Beat, Exchange, Newer, Wanted
from unisono.wire.identity import SIGNATURE_BYTES
from unisono.wire.jury_messages import JuryMessage
from unisono.wire.notices import NoticeMessage
from unisono.wire.payment_messages import Agreed, PaymentMessage
from unisono.wire.records import Info, Probe
from unisono.wire.relay_messages import RelayMessage
from unisono.wire.verification_messages import VerificationMessage


class Multiplex(MessageBase, frozen=True):
    """First message of a stream that carries messages of many sessions, both ways."""


class Bundle(MessageBase, frozen=True):
    """Several messages sent as one: the body is their frames, one after another."""

    count: Annotated[int, Meta(ge=2, le=MAX_BUNDLE)]


class Open(MessageBase, frozen=True):
    """Gateway to hop: reserve room for a session and tell the hop its place in the chain.

    A chain is a ring: rows pass from hop to hop, and the last hop's tokens go back to the first.
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
    previous: Node | None
    """From whom this hop takes rows, or the first hop tokens; None on a lone hop."""
    next: PeerAddress | None
    """Where this hop's rows go, or the last hop's tokens too; None on a lone hop."""
    resume: Position
    """The first position that `next` still wants."""
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
    draft: bool
    """Whether the first hop may guess tokens ahead, for the chain to check several at a time."""
    agreed: Agreed | None = None
    """What the hop is paid; None: nothing."""
    weigh: bool = False
    """Whether the last hop tells distributions and is given tokens, instead of choosing them."""

    def __post_init__(self) -> None:
        check_layers(self.layers, empty=False)
        check(self.hop < self.hops, f"hop {self.hop} of {self.hops}")
        alone = self.hops == 1
        check((self.next is None) == alone, "`next` is for hops that are not alone")
        check((self.previous is None) == alone, "`previous` is for hops that are not alone")
        check_address(self.next)
        check(
            self.prompt <= self.start <= self.positions,
            f"prompt {self.prompt} <= start {self.start} <= positions {self.positions}",
        )
        # tokens are sent on from those given on, rows perhaps from further ahead: the next hop may
        # have more than its gateway has heard of
        most = self.start if self.hop == self.hops - 1 else self.positions
        check(self.resume <= most, f"resume {self.resume} <= {most}")
        check_sampling(self.sampling)
        check(not (self.draft and self.weigh), "tokens that will be given are not guessed")


class Opened(MessageBase, frozen=True):
    """The hop holds the session."""

    session: Session


class Refused(MessageBase, frozen=True):
    """The hop said no; `code` is one of the protocol's refusal codes."""

    code: Code
    message: Text
    session: Session | None = None
    """The session it is about, on a link."""


class Rewire(MessageBase, frozen=True):
    """Gateway to hop: a neighbour in the ring is replaced.

    A new `previous` sends what this hop asks for in its answer; to a new `next` this hop sends
    again from position `resume` on, out of its journal.
    """

    session: Session
    previous: Node | None
    next: PeerAddress | None
    resume: Position

    def __post_init__(self) -> None:
        check(self.previous is not None or self.next is not None, "nothing is rewired")
        check_address(self.next)


class Rewired(MessageBase, frozen=True):
    """It is done; `position` is the first one that this hop has not received yet."""

    session: Session
    position: Count
    earliest: Count = 0
    """The first one that it may still be given again: what lies before is final."""


class Rows(MessageBase, frozen=True):
    """Activation rows of consecutive positions; the body is their integers, packed
    (`wire.packing`).

    Rows of a position that was sent before replace it and all that followed it.
    """

    session: Session
    position: Position
    """Of the first row."""
    widths: Annotated[bytes, Meta(min_length=1, max_length=MAX_ROWS)]
    """Bytes per value of each row in its canonical encoding (`wire.rows`), which is hashed."""
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_DRAFT_ROWS)]
    """The token at each row's position, a guess perhaps; empty for rows of the prompt."""
    low: Annotated[int, Meta(ge=3, le=5)]
    """Low bytes that the body has of every value."""
    apart: Annotated[int, Meta(ge=0, lt=1 << 32)]
    """Values that the body lists apart."""

    def __post_init__(self) -> None:
        check(
            self.position + len(self.widths) <= MAX_POSITIONS,
            f"rows past position {MAX_POSITIONS}",
        )
        check(len(self.tokens) in (0, len(self.widths)), "a token for each row, or none")


class Pages(MessageBase, frozen=True):
    """Hop to next hop, before any row: the body names pages of rows that need not be sent if they
    are there. A name has 32 bytes and stands for all rows up to the end of its page."""

    session: Session
    turn: Count
    """The answer names it: names may be sent again, to another hop."""


class Spared(MessageBase, frozen=True):
    """Hop to the hop before: the first `pages` of the pages that were named are here and at all
    hops that follow. The first hop tells its gateway too."""

    session: Session
    turn: Count
    pages: Count


class Tokens(MessageBase, frozen=True):
    """The last hop sampled tokens of consecutive positions."""

    session: Session
    tokens: Annotated[tuple[SampledToken, ...], Meta(min_length=1, max_length=MAX_DRAFT_ROWS)]

    def __post_init__(self) -> None:
        first = self.tokens[0].position
        far = not 0 <= first < MAX_POSITIONS - MAX_DRAFT_ROWS
        for i, token in enumerate(self.tokens):
            # `check` would need its text made for every token that comes
            if far or token.position != first + i:
                check(False, f"position {token.position}")
            if not 0 <= token.token < 1 << 32:
                check(False, f"token id {token.token}")
            if not small(token.logprob):
                check(False, f"logprob {token.logprob}")
            if len(token.top) > MAX_TOP_LOGPROBS:
                check(False, f"{len(token.top)} top tokens")
            for candidate, logprob in token.top:
                check(0 <= candidate < 1 << 32 and small(logprob), f"top token {candidate}")


class Close(MessageBase, frozen=True):
    """Gateway to hop: the session has ended; release what it holds."""

    session: Session


class Finish(MessageBase, frozen=True):
    """Gateway to hop: the first `tokens` tokens are accepted; sign the claim."""

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
        said = claim.distributions
        check(said is UNSET or is_hex(said, 32), "the claim's distributions are not a hash")
        check(0 <= claim.hop < MAX_HOPS, f"hop {claim.hop}")
        check_layers(claim.layers, empty=False)
        check(0 <= claim.positions <= MAX_POSITIONS, f"{claim.positions} positions")
        check(0 <= claim.epoch < 1 << 40, f"epoch {claim.epoch}")
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
    Multiplex
    | Bundle
    | Open
    | Opened
    | Refused
    | Rewire
    | Rewired
    | Rows
    | Pages
    | Spared
    | Tokens
    | Close
    | Finish
    | Claimed
    | Failed
    | Ping
    | Pong
    | Exchange
    | Newer
    | Wanted
    | Beat
    | Probe
    | Info
    | PaymentMessage
    | EnsembleMessage
    | RelayMessage
    | VerificationMessage
    | JuryMessage
    | NoticeMessage
    | AuditMessage
)
