"""What nodes say of themselves, and the messages that spread it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.types import LayerRange, ModelId, PeerAddress, canonical, digest
from unisono.wire.bounds import (
    MessageBase,
    Model,
    Natural,
    Node,
    check,
    check_address,
    check_layers,
)
from unisono.wire.identity import SIGNATURE_BYTES, Identity, verify_signature
from unisono.wire.terms import Terms

LEASE_SECONDS = 15.0
"""How long a node's record is good: a node that does not announce itself this long is gone."""
MAX_WARM = 8

Microseconds = Annotated[int, Meta(ge=0, lt=1 << 40)]
Coordinate = Annotated[int, Meta(gt=-(1 << 40), lt=1 << 40)]


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
    step_us: Microseconds = 0
    """Measured time of one decode step of the block, alone; 0 if it was not measured."""
    row_us: Microseconds = 0
    """Measured time per row of a prompt through the block."""
    queue: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    """Rows that wait for a pass."""
    memory: Natural = 0
    """Bytes that the node offers for weights, keys and values."""
    bandwidth: Natural = 0
    """Bytes per second that it can send; 0 if it was not measured."""
    coordinate: tuple[Coordinate, Coordinate, Coordinate, Coordinate] = (0, 0, 0, 0)
    """Network coordinate in microseconds (`routing.coordinates`): x, y, z, height."""
    uncertainty: Annotated[int, Meta(ge=0, le=1_000_000)] = 1_000_000
    """Expected relative error of a round trip computed with the coordinate, in millionths."""
    price_in: Natural = 0
    """Asked per million prompt tokens through the whole model, in millionths of the stable unit;
    a block asks for its share of the layers."""
    price_out: Natural = 0
    """The same per million tokens of an answer."""
    terms: Terms | None = None
    """How it is paid; None: it serves for nothing."""
    warm: Annotated[tuple[Model, ...], Meta(max_length=MAX_WARM)] = ()
    """Other models that it holds ready."""
    relay: bool = False
    """Whether it can be reached by everyone and carries traffic for those who cannot."""
    leaving: bool = False
    """It takes no new sessions and hands its own over."""
    signature: Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)] = b""

    def __post_init__(self) -> None:
        check_address(self.address)
        check(self.address.node == self.node, "the address is of another node")
        for text in self.address.addresses:
            # Such an address would be an error of another kind in whoever dials it.
            check(text.isascii() and text.isprintable(), "an address with odd characters")
        check_layers(self.layers, empty=not self.model)

    @staticmethod
    def of_member(address: PeerAddress, memory: int = 0) -> NodeRecord:
        """What a member says that holds no layers; gossip numbers and signs it."""
        return NodeRecord(
            node=address.node,
            address=address,
            model=ModelId(""),
            layers=LayerRange(0, 0),
            free_positions=0,
            sessions=0,
            sequence=0,
            expires=0,
            memory=memory,
        )

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything else."""
        return digest("record/2", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> NodeRecord:
        """The same record with the node's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the node that the record names signed these contents."""
        return verify_signature(self.node, self.signed_bytes(), self.signature)


class Probe(MessageBase, frozen=True):
    """Who are you, and what do you hold?"""


class Info(MessageBase, frozen=True):
    """The answer to a `Probe`."""

    record: NodeRecord
