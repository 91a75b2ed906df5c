"""How nodes that cannot be dialled are reached: messages between a node and a relay.

The first frame of every stream says what the stream is for: `Direct`, `Look`, `Reserve`, `Call`,
`Answer` or `Introduce`. After `Joined`, a circuit carries `Sealed` frames only, whose bodies the
relay cannot read.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from unisono.wire.bounds import MAX_ADDRESS_CHARACTERS, MAX_ADDRESSES, MessageBase, Node

MAX_SEALED = (64 << 10) + 64
"""Bytes in the body of a `Sealed` frame: one record of the handshake's cipher, or less."""

Address = Annotated[str, Meta(min_length=1, max_length=MAX_ADDRESS_CHARACTERS)]
Addresses = Annotated[tuple[Address, ...], Meta(max_length=MAX_ADDRESSES)]
Ticket = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


class Direct(MessageBase, frozen=True):
    """What follows is for the node that this stream reaches."""


class Look(MessageBase, frozen=True):
    """At which address do you see me?"""


class Seen(MessageBase, frozen=True):
    """There; None if the transport does not tell."""

    address: Address | None


class Reserve(MessageBase, frozen=True):
    """Node to relay: keep this stream, and tell me over it who calls.

    The node says where it believes to be; the relay passes that on to those who want to meet it.
    """

    addresses: Addresses


class Reserved(MessageBase, frozen=True):
    """The place is held as long as the stream, which must not be silent for `idle_ms`."""

    seen: Address | None
    """Where the relay sees the node."""
    idle_ms: Annotated[int, Meta(ge=1000, le=3_600_000)]


class Call(MessageBase, frozen=True):
    """Caller to relay: make this stream a circuit to a node that holds a place with you."""

    target: Node


class Knock(MessageBase, frozen=True):
    """Relay to target: someone calls; open a stream to me and answer with this ticket."""

    ticket: Ticket
    caller: Node
    """Whom the relay took the call from; the handshake through the circuit proves it."""


class Answer(MessageBase, frozen=True):
    """Target to relay: make this stream the other half of the circuit."""

    ticket: Ticket


class Joined(MessageBase, frozen=True):
    """Relay to both: from here on the stream is the circuit."""


class Sealed(MessageBase, frozen=True):
    """Bytes from one end of a circuit to the other, as the body."""


class Introduce(MessageBase, frozen=True):
    """Caller to relay: I dial this node now; let it dial me."""

    target: Node
    addresses: Addresses
    """Where the caller believes to be."""


class Introduced(MessageBase, frozen=True):
    """The target was told; it was last seen here."""

    addresses: Addresses


class DialBack(MessageBase, frozen=True):
    """Relay to target: this node dials you now; dial it."""

    caller: Node
    addresses: Addresses


RelayMessage = (
    Direct
    | Look
    | Seen
    | Reserve
    | Reserved
    | Call
    | Knock
    | Answer
    | Joined
    | Sealed
    | Introduce
    | Introduced
    | DialBack
)
