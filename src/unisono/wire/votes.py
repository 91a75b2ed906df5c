"""What the chains of a quorum said, as it stands in a receipt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from unisono.wire.bounds import MAX_HOPS, Count, Hash, Node, Text, TokenId
from unisono.wire.claims import HopClaim, rows_root, token_hash

MIN_QUORUM, MAX_QUORUM = 2, 8
"""Chains that may answer one request."""

Outcome = Literal["agreed", "dissented", "late", "lost"]


class Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One chain of a quorum."""

    outcome: Outcome
    """`agreed`: it gave and signed the answer's tokens and the rows behind them. `dissented`: it
    gave another token, or signed other rows. `late`: it agreed as far as it came, and had not
    signed in time. `lost`: a node of it was lost and none replaced it."""
    nodes: Annotated[tuple[Node, ...], Meta(min_length=1, max_length=MAX_HOPS)]
    """Its nodes, in the order of their layers."""
    count: Count
    """Tokens that it gave; of a dissenter, up to the one that differs."""
    tokens: Hash
    """`tokens_root` of these."""
    said: TokenId | None = None
    """The last of them, if the answer has another in its place."""
    hops: Annotated[tuple[HopClaim, ...], Meta(max_length=MAX_HOPS)] = ()
    """What its nodes signed for these tokens; empty if they did not in time."""
    reason: Text = ""
    """Of one that did not agree, for people."""


class Quorum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the chains that answered one request, all but the one whose claims are the receipt's."""

    votes: Annotated[tuple[Vote, ...], Meta(min_length=MIN_QUORUM - 1, max_length=MAX_QUORUM - 1)]

    @property
    def asked(self) -> int:
        """How many chains computed the answer."""
        return 1 + len(self.votes)

    @property
    def agreed(self) -> int:
        """How many of them signed the same."""
        return 1 + sum(vote.outcome == "agreed" for vote in self.votes)

    @property
    def summary(self) -> str:
        """One line for people: how many agreed, and who did not."""
        others = [
            f"{vote.outcome}: {_named(vote)}{f' ({vote.reason})' if vote.reason else ''}"
            for vote in self.votes
            if vote.outcome != "agreed"
        ]
        return "; ".join([f"{self.agreed} of {self.asked} chains agree", *others])


def _named(vote: Vote) -> str:
    return ("node " if len(vote.nodes) == 1 else "nodes ") + ", ".join(
        f"{node[:16]}…" for node in vote.nodes
    )


def incoherence(claims: Sequence[HopClaim], tokens: Sequence[int]) -> HopClaim | None:
    """The first claim of a chain whose rows in are not what came before: `tokens` (the prompt and
    the answer without its last token) at the first hop, else what the hop before signed."""
    given = rows_root([token_hash(token) for token in tokens])
    for claim in claims:
        if claim.rows_in != given:
            return claim
        given = claim.rows_out
    return None


def disagreement(ours: Sequence[HopClaim], theirs: Sequence[HopClaim]) -> int | None:
    """The first layer after which two chains signed other rows for the same positions; None if
    they agree wherever blocks of both end. All chains end at the model's last layer, so the last
    rows are always compared, however the chains are cut."""
    known = {claim.layers.stop: claim.rows_out for claim in ours}
    for claim in theirs:
        if known.get(claim.layers.stop, claim.rows_out) != claim.rows_out:
            return claim.layers.stop
    return None
