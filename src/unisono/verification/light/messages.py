"""What a client and a node say to each other in a light audit.

`Summons` → `TraceCommitment` → `Challenge` → `Opening`, each in canonical MessagePack. Integer
arrays travel packed: one byte that gives the width, then little-endian two's complement values of
the least width that holds them all, so that every array has one encoding.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from unisono.errors import PeerCheating
from unisono.types import canonical, digest
from unisono.wire.bounds import MAX_LAYERS, MAX_POSITIONS, Hash, MessageBase, Position, TokenId
from unisono.wire.claims import HopClaim

MAX_CELLS = 4096
"""Cells, samples and heads of one challenge, each."""
MAX_OPENING_BYTES = 64 << 20
"""The largest body of a frame."""
MAX_SMALL_BYTES = 8 << 20
"""Of every other message: a summons holds the tokens of a whole context."""

_Layer = Annotated[int, Meta(ge=0, lt=MAX_LAYERS)]
_Signature = Annotated[bytes, Meta(max_length=64)]
_Path = Annotated[bytes, Meta(max_length=32 * 96)]
_Rows = Annotated[bytes, Meta(max_length=32 * MAX_POSITIONS)]
_Message = TypeVar("_Message", bound=MessageBase)


class CellName(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True
):
    """One layer at one position."""

    layer: _Layer
    position: Position


_Cells = Annotated[tuple[CellName, ...], Meta(max_length=MAX_CELLS)]


class Summons(MessageBase, frozen=True):
    """An audit begins: commit to the trace of this claim, which you signed."""

    claim: HopClaim
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_POSITIONS)] = ()
    """The tokens at the claim's positions, for a hop that begins the model; else none: such a hop
    needs the rows that it kept."""


class TraceCommitment(MessageBase, frozen=True):
    """A node's commitment to every row, key and value between its layers, of all positions.

    It is made before the node knows which cells it will open.
    """

    claim: Hash
    root: Hash
    signature: _Signature = b""

    def signed_bytes(self) -> bytes:
        return digest("light-trace/2", canonical(msgspec.structs.replace(self, signature=b"")))


class Challenge(MessageBase, frozen=True):
    """Open these cells whole, of these samples what they leave to later positions, and of these
    positions the logits."""

    claim: Hash
    trace: Hash
    cells: _Cells = ()
    samples: _Cells = ()
    heads: Annotated[tuple[Position, ...], Meta(max_length=MAX_CELLS)] = ()

    def hash(self) -> str:
        """64 hex digits; the opening names them."""
        return digest("light-challenge/1", canonical(self)).hex()


class EmbeddingRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token's row of the embedding matrix, under the root that the client keeps."""

    values: bytes
    multipliers: bytes
    path: _Path


class RowIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The residual row that enters a layer."""

    row: bytes
    """Packed."""
    proof: _Path = b""
    """At the hop's first layer: a `RowProof` under the claim's rows in."""
    embedding: EmbeddingRow | None = None
    """At the model's first layer."""


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys and values of consecutive positions, packed."""

    keys: bytes
    key_exponents: bytes
    values: bytes
    value_exponents: bytes


class RowOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The residual row that leaves a layer, and what it is under."""

    row: bytes
    proof: _Path = b""
    """At the hop's last layer: a `RowProof` under the claim's rows out."""
    memory: Annotated[bytes, Meta(max_length=32)] = b""
    """At any other: `memory_hash` of the next layer's cell, and the path of its leaf."""
    path: _Path = b""


class CellOpening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything of a cell: what came in, each operator's result, what it attended to."""

    row_in: RowIn
    products: dict[str, bytes]
    """Matrix → packed products."""
    results: dict[str, tuple[bytes, bytes]]
    """Operator → packed mantissas and exponents (empty where there are none)."""
    memory: Memory
    """Of every position that this one sees; its own is the last."""
    earlier: _Rows
    """Hashes of the rows in at the earlier of these positions, joined."""
    path: _Path
    row_out: RowOut


class SampleOpening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a position's key and value follow from the row in."""

    row_in: RowIn
    products: dict[str, bytes]
    results: dict[str, tuple[bytes, bytes]]
    memory: Memory
    path: _Path


class HeadOpening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The logits after a position, before they are aligned."""

    row: RowOut
    normal: tuple[bytes, bytes]
    product: bytes


class Opening(MessageBase, frozen=True):
    """The answer to a challenge, in its order."""

    claim: Hash
    challenge: Hash
    cells: Annotated[tuple[CellOpening, ...], Meta(max_length=MAX_CELLS)]
    samples: Annotated[tuple[SampleOpening, ...], Meta(max_length=MAX_CELLS)]
    heads: Annotated[tuple[HeadOpening, ...], Meta(max_length=MAX_CELLS)]
    signature: _Signature = b""

    def signed_bytes(self) -> bytes:
        return digest("light-opening/1", canonical(msgspec.structs.replace(self, signature=b"")))


def claim_hash(claim: HopClaim) -> str:
    """64 hex digits that stand for a claim in an audit."""
    return claim.signed_bytes().hex()


def decode(data: bytes, kind: type[_Message]) -> _Message:
    """Read a message strictly.

    Raises:
        PeerCheating: it is too large, or anything but the canonical form of a `kind`.
    """
    limit = MAX_OPENING_BYTES if kind is Opening else MAX_SMALL_BYTES
    if len(data) > limit:
        raise PeerCheating(f"a message of {len(data)} bytes; at most {limit} are allowed")
    try:
        message = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerCheating(f"not a message of a light audit: {error}") from error
    if canonical(message) != data:
        raise PeerCheating("a message of a light audit is not in canonical form")
    return message


def pack(values: NDArray[np.int64]) -> bytes:
    """Integers of any shape in their one packed form."""
    flat = np.ascontiguousarray(values.reshape(-1), dtype="<i8")
    low, high = int(flat.min(initial=0)), int(flat.max(initial=0))
    width = _width(low, high)
    return bytes([width]) + flat.view(np.uint8).reshape(-1, 8)[:, :width].tobytes()


def unpack(data: bytes, shape: tuple[int, ...], bits: int) -> NDArray[np.int64]:
    """Integers of a known shape from their packed form.

    Raises:
        PeerCheating: another size or width, or a magnitude of 2**bits or more.
    """
    count = int(np.prod(shape))
    width = data[0] if data else 0
    if not 1 <= width <= 8 or len(data) != 1 + count * width:
        raise PeerCheating(f"{len(data)} packed bytes of width {width} for {count} integers")
    wide = np.zeros((count, 8), dtype=np.uint8)
    wide[:, 8 - width :] = np.frombuffer(data, np.uint8, offset=1).reshape(count, width)
    values = wide.view("<i8").reshape(shape).astype(np.int64) >> (64 - 8 * width)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if max(-low, high) >= 1 << bits or width != _width(low, high):
        raise PeerCheating(
            f"packed integers from {low} to {high} in {width} bytes each: expected {bits} bits "
            "and the least width"
        )
    return values


def _width(low: int, high: int) -> int:
    return max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0) // 8 + 1
