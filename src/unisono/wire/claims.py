"""What a hop signs about its part of an answer."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from unisono.merkle import leaf_hash
from unisono.types import LayerRange, ModelId, NodeId, SessionId, canonical, digest
from unisono.wire.identity import Identity, verify_signature
from unisono.wire.mountain_range import rows_root as rows_root

EPOCH_SECONDS = 60
"""Length of an epoch unless a network chooses another: claims of one epoch are audited with the
beacon of a later one."""
RETENTION_EPOCHS = 60
"""How many epochs after its claim's a node must be able to open it."""
EPOCH_DRIFT = 1
"""How many epochs a claim's may differ from the gateway's own when it arrives."""
TAG_BYTES = 3
"""Bytes of a row's hash that a claim carries to locate a difference; the root proves it."""


class HopClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A hop's signed statement: these rows came in, these went out.

    A row's hash is the root of a tree over its integers (`models.rows`); a Merkle mountain range
    over the hashes of all positions has the roots here (`wire.mountain_range`), so that single
    positions can be opened. The first hop's rows in are token ids. A node signs before it can know
    what will be checked: audits are drawn from the beacon of an epoch after the one that is signed
    here.
    """

    session: SessionId
    request: str
    gateway: NodeId
    model: ModelId
    node: NodeId
    hop: int
    layers: LayerRange
    positions: int
    """How many positions the claim covers, from 0."""
    rows_in: str
    rows_out: str
    out_tags: bytes
    """`TAG_BYTES` of each row out's hash."""
    tokens: str
    """Of the last hop: `tokens_root` of the sampled tokens; empty for others."""
    epoch: int
    """`epoch_at` the time of signing."""
    distributions: str | UnsetType = UNSET
    """Of the last hop in an ensemble: `wire.ensemble.distributions_root` of what it reported. The
    tokens were then given to it. Absent in all encodings, those that are signed included, in
    other claims."""
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything else."""
        return digest("claim/3", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> HopClaim:
        """The same claim with the hop's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the node that the claim names signed these contents."""
        return verify_signature(self.node, self.signed_bytes(), self.signature)


def epoch_at(seconds: float, length: int = EPOCH_SECONDS) -> int:
    """The epoch of a time in seconds since the Unix epoch; `length` is the network's."""
    return int(seconds // length)


def epoch_is_due(epoch: int, seconds: float, length: int = EPOCH_SECONDS) -> bool:
    """Whether a claim of this epoch may arrive at this time, clocks differing a little."""
    return abs(epoch - epoch_at(seconds, length)) <= EPOCH_DRIFT


def tokens_root(tokens: tuple[int, ...] | list[int]) -> str:
    """Hash of a sequence of token ids."""
    return digest("tokens/1", b"".join(t.to_bytes(4, "little") for t in tokens)).hex()


def token_hash(token: int) -> bytes:
    """Hash of the first hop's row in: a tree of one leaf, the token id, little-endian, 4 bytes."""
    return leaf_hash(token.to_bytes(4, "little"))
