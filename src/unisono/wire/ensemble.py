"""What the chains of an ensemble and its gateway exchange, and how it stands in a receipt.

Every model of an ensemble runs on a chain of its own, whose last hop tells the gateway what the
model says of the next token and is given the token that all of them choose together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.types import Distribution, canonical, digest
from unisono.wire.bounds import MAX_HOPS, MessageBase, Model, Position, Session, TokenId, check
from unisono.wire.claims import HopClaim

MIN_MODELS, MAX_MODELS = 2, 8
"""Models that may answer one request together."""
MAX_LISTED = 256
"""Tokens of a distribution that are told one by one."""
_ONE = 1 << 28


class Weighed(MessageBase, frozen=True):
    """Last hop to gateway: what its model says of the token at `position`."""

    session: Session
    position: Position
    distribution: Distribution

    def __post_init__(self) -> None:
        said = self.distribution
        count = len(said.ids)
        check(1 <= count <= MAX_LISTED, f"a distribution of {count} tokens")
        check(len(said.likelihoods) == count, "a likelihood for each token")
        check(len({*said.ids}) == count, "a token is listed twice")
        check(all(0 <= token < 1 << 32 for token in said.ids), "a token id out of range")
        check(said.likelihoods[0] == _ONE, "the likeliest token's likelihood is 1")
        check(all(a >= b for a, b in pairwise(said.likelihoods)), "best first")
        check(said.likelihoods[-1] > 0, "a likelihood of 0")
        # nothing that is not listed is likelier than the last that is
        check(0 <= said.rest <= said.likelihoods[-1] << 20, f"a rest of {said.rest}")


class Given(MessageBase, frozen=True):
    """Gateway to last hop: this is the token at `position`; go on."""

    session: Session
    position: Position
    token: TokenId


EnsembleMessage = Weighed | Given


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of an ensemble."""

    model: Model
    hops: Annotated[tuple[HopClaim, ...], Meta(max_length=MAX_HOPS)]
    """What the nodes of its chain signed."""


class Ensemble(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the models that answered together, all but the one that the receipt's request names."""

    members: Annotated[tuple[Member, ...], Meta(min_length=MIN_MODELS - 1, max_length=MAX_MODELS)]


def distribution_hash(said: Distribution) -> bytes:
    """Hash of what a model said of one token."""
    return digest("distribution/1", canonical(said))


def distributions_root(hashes: Sequence[bytes]) -> str:
    """What a last hop signs of its distributions: one `distribution_hash` for each token of the
    answer."""
    return digest("distributions/1", *hashes).hex()
