"""One session on one hop: its place in the chain, its cache, and the hashes it will sign."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from unisono.errors import PeerCheating, PeerRefused
from unisono.models.cache import PAGE, SessionCache
from unisono.models.decoder import Draw
from unisono.types import Q16, digest, stop_rule
from unisono.wire.claims import TAG_BYTES, HopClaim, rows_root, tokens_root
from unisono.wire.identity import Identity
from unisono.wire.messages import Open
from unisono.wire.transports.base import Stream


def page_keys(tokens: Sequence[int], count: int) -> list[bytes]:
    """Keys of the first `count` pages of a sequence of tokens."""
    keys: list[bytes] = []
    key = b""
    for page in range(count):
        part = np.array(tokens[page * PAGE : (page + 1) * PAGE], dtype="<u4")
        key = digest("prefix/1", key, part.tobytes())
        keys.append(key)
    return keys


class HopSession:
    """State only; `execution.worker` moves the bytes."""

    def __init__(
        self, opened: Open, tokens: Sequence[int], cache: SessionCache, control: Stream
    ) -> None:
        self.opened = opened
        self.cache = cache
        self.control = control
        """The stream to the gateway."""
        self.tokens = list(tokens)
        """Prompt and answer so far, on the first and the last hop."""
        self.in_hashes: list[bytes] = []
        self.out_hashes: list[bytes] = []
        self.arrived: asyncio.Queue[int] = asyncio.Queue()
        """Tokens that the last hop sent back, on the first hop."""
        self.next: Stream | None = None
        """Rows go out here, except on the last hop."""
        self.back: Stream | None = None
        """Tokens go back to the first hop here, from a last hop that is not the first."""
        self.attached = False
        """Whether the stream from another hop has come: rows, or on the first hop tokens."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.dropped = asyncio.Event()

    @property
    def is_first(self) -> bool:
        return self.opened.hop == 0

    @property
    def is_last(self) -> bool:
        return self.opened.hop == self.opened.hops - 1

    @property
    def generated(self) -> tuple[int, ...]:
        """The answer so far, on the first and the last hop."""
        return tuple(self.tokens[self.opened.prompt :])

    @property
    def ended(self) -> bool:
        """Whether the answer is complete: a stop token, or as many tokens as were asked for."""
        answered = len(self.tokens) - self.opened.prompt
        return answered > 0 and stop_rule(self.opened, answered, self.tokens[-1])

    def draw_after(self, position: int) -> Draw | None:
        """What to sample after the row at `position`: only the row of the last known token."""
        if not self.is_last or position != len(self.tokens) - 1:
            return None
        s = self.opened.sampling
        penalised = s.repetition_penalty != Q16 or s.presence_penalty or s.frequency_penalty
        # only penalties look at the tokens: copying them for each would cost O(length)
        tokens = np.array(self.tokens if penalised else (), dtype=np.int32)
        prompt = min(self.opened.prompt, len(tokens))
        return Draw(s, tokens, prompt, self.opened.top_logprobs)

    def prefix_keys(self) -> list[bytes]:
        """Names of the prompt's complete pages, each by all tokens up to its end, if this hop
        computes everything from tokens that it knows. The last token is never part of one: its
        row must be computed for the answer to begin."""
        if not (self.is_first and self.is_last):
            return []
        return page_keys(self.tokens, (len(self.tokens) - 1) // PAGE)

    def check_rows(self, position: int, count: int) -> None:
        """Rows must come once and in order, and never before their token is known.

        Raises:
            PeerCheating: they do not.
        """
        if position != len(self.in_hashes):
            raise PeerCheating(
                f"rows from position {position} came when position {len(self.in_hashes)} was next"
            )
        if position + count > self.opened.positions:
            raise PeerCheating(
                f"rows up to position {position + count - 1} in a session of "
                f"{self.opened.positions} positions"
            )
        if self.is_last and position + count > len(self.tokens):
            raise PeerCheating(f"a row came for position {position + count - 1} before its token")

    def cancel(self) -> None:
        """Stop what computes or moves for this session."""
        for task in tuple(self.tasks):
            task.cancel()

    def claim(self, tokens: int, identity: Identity) -> HopClaim:
        """Sign the part of the answer that ends with its `tokens`-th token.

        Raises:
            PeerRefused: this hop has not computed that far.
        """
        positions = self.opened.prompt + tokens - 1
        if tokens < 1 or positions > len(self.out_hashes):
            raise PeerRefused(
                f"{tokens} tokens need {positions} positions; {len(self.out_hashes)} are computed",
                code="not_computed",
            )
        out = self.out_hashes[:positions]
        answer = self.generated[:tokens]
        if self.is_last and len(answer) < tokens:
            raise PeerRefused(f"only {len(answer)} tokens were sampled", code="not_computed")
        unsigned = HopClaim(
            session=self.opened.session,
            request=self.opened.request_hash,
            gateway=self.opened.gateway,
            model=self.opened.model,
            node=identity.node_id,
            hop=self.opened.hop,
            layers=self.opened.layers,
            positions=positions,
            rows_in=rows_root(self.in_hashes[:positions]),
            rows_out=rows_root(out),
            out_tags=b"".join(h[:TAG_BYTES] for h in out),
            tokens=tokens_root(answer) if self.is_last else "",
        )
        return unsigned.signed_by(identity)
