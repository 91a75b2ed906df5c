"""The messages by which members tell each other who is here.

Records travel in a frame's body, each in its canonical form (which is what was signed),
together compressed: the names of fields and the digits of ids repeat. A body is taken apart
only within bounds that are known before.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.errors import PeerCheating, PeerRefused
from unisono.types import LayerRange, ModelId, NodeId, PeerAddress, canonical
from unisono.wire.bounds import MessageBase, check
from unisono.wire.identity import SIGNATURE_BYTES
from unisono.wire.records import NodeRecord

MAX_DEPTH = 32
"""Bits of a hash that can choose a region."""
MAX_DIGEST = 1024
"""Lines in the digest of one exchange."""
MAX_RECORDS = 256
"""Records in one message."""
MAX_CONTACTS = 8
"""Further records in one message, of nodes that the receiver need not keep."""
MAX_RECORD_BYTES = 2048
"""Of one record; most have under 600."""
MAX_PACKED_BYTES = 256 << 10
"""Of the records of one message together, before they are compressed."""
KEY_BYTES = 8
"""Leading bytes of the SHA-256 of a node id, which name the node in digests."""
DIGEST_BYTES = KEY_BYTES + 8
"""One line of a digest: a key, then a sequence number, most significant byte first."""

_LENGTH = struct.Struct(">H")
_LINE = struct.Struct(f">{KEY_BYTES}sQ")
_decoder = msgspec.msgpack.Decoder(NodeRecord)
_LEVEL = 1
"""Higher levels save 4 % of the bytes and cost twice the time."""
_DICTIONARY = canonical(
    NodeRecord(
        node=NodeId("00" * 32),
        address=PeerAddress(NodeId("00" * 32), "iroh", ("127.0.0.1:4433",)),
        model=ModelId("00" * 32),
        layers=LayerRange(0, 1),
        free_positions=0,
        sessions=0,
        sequence=1_700_000_000_000,
        expires=1_700_000_000_000,
        signature=bytes(SIGNATURE_BYTES),
    )
)
"""What every record has in common, for the compressor: a record alone takes half the bytes."""

Lines = Annotated[int, Meta(ge=0, le=MAX_DIGEST)]
Depth = Annotated[int, Meta(ge=0, le=MAX_DEPTH)]
Known = Annotated[int, Meta(ge=0, lt=1 << 32)]


class Region(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All nodes whose hash (SHA-256 of the id) starts with the `depth` bits of `prefix`."""

    prefix: Annotated[int, Meta(ge=0, lt=1 << MAX_DEPTH)]
    depth: Depth

    def __post_init__(self) -> None:
        check(self.prefix < 1 << self.depth, f"{self.prefix} has more than {self.depth} bits")


class Exchange(MessageBase, frozen=True):
    """First message of an exchange: my record, and what I know of a region.

    The body is `digest` lines, then the packed records; the first is the sender's own.
    """

    depth: Depth
    """The sender keeps the records of nodes whose hash shares this many bits with its own."""
    known: Known
    """How many records it keeps."""
    region: Region | None
    """The digest lists every record of the sender in there; None: there is no digest."""
    digest: Lines
    seek: Annotated[bytes, Meta(max_length=KEY_BYTES)]
    """Tell me of nodes whose hash is near this one; empty: I need none."""

    def __post_init__(self) -> None:
        check(self.region is not None or not self.digest, "a digest without a region")
        check(len(self.seek) in (0, KEY_BYTES), f"{len(self.seek)} bytes to seek")


class Newer(MessageBase, frozen=True):
    """The answer: my record, those that you lack, and what I lack.

    The body is `wanted` keys, then the packed records; the first is the sender's own and the
    last `contacts` are near what was sought.
    """

    depth: Depth
    known: Known
    wanted: Lines
    contacts: Annotated[int, Meta(ge=0, le=MAX_CONTACTS)]


class Wanted(MessageBase, frozen=True):
    """The records that were asked for, packed in the body."""


class Beat(MessageBase, frozen=True):
    """I am here, and so are they: packed records in the body, the first the sender's own.

    The answer is a `Beat` with the record of the one who answers.
    """


GossipMessage = Exchange | Newer | Wanted | Beat


def pack(records: Iterable[bytes]) -> bytes:
    """Encoded records as they travel: each after its length (2 bytes), all compressed."""
    plain = b"".join(_LENGTH.pack(len(r)) + r for r in records)
    if not plain:
        return b""
    deflater = zlib.compressobj(_LEVEL, zdict=_DICTIONARY)
    return deflater.compress(plain) + deflater.flush()


def unpack(body: bytes | memoryview, limit: int = MAX_RECORDS + MAX_CONTACTS + 1) -> list[bytes]:
    """The encoded records of a body, whatever they hold.

    Raises:
        PeerCheating: the bytes are not what `pack` makes of at most `limit` records.
    """
    if not len(body):
        return []
    inflater = zlib.decompressobj(zdict=_DICTIONARY)
    try:
        plain = inflater.decompress(body, MAX_PACKED_BYTES + 1)
    except zlib.error as error:
        raise PeerCheating(f"the packed records do not open: {error}") from error
    if len(plain) > MAX_PACKED_BYTES:
        raise PeerCheating(f"packed records have at most {MAX_PACKED_BYTES} bytes")
    if not inflater.eof or inflater.unused_data:
        raise PeerCheating("the packed records are cut or followed by other bytes")
    records: list[bytes] = []
    at = 0
    while at < len(plain):
        if len(records) >= limit:
            raise PeerCheating(f"more than {limit} records in a message")
        if at + 2 > len(plain):
            raise PeerCheating("the packed records end within a length")
        (size,) = _LENGTH.unpack_from(plain, at)
        if at + 2 + size > len(plain):
            raise PeerCheating("the packed records end within a record")
        records.append(plain[at + 2 : at + 2 + size])
        at += 2 + size
    return records


@lru_cache(maxsize=4096)  # the same record comes from several partners
def decode_record(data: bytes) -> NodeRecord:
    """The record of its canonical form; whether the signature is good is for the caller to see.

    Raises:
        PeerRefused: `oversized`, or `malformed`: not the canonical form of a record.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise PeerRefused(
            f"a record has at most {MAX_RECORD_BYTES} bytes; this one has {len(data)}", "oversized"
        )
    try:
        record = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerRefused(f"the bytes are not a record: {error}", "malformed") from error
    if canonical(record) != data:
        raise PeerRefused("the record is not in its canonical form", "malformed")
    return record


def digest_line(key: bytes, sequence: int) -> bytes:
    """One line of a digest; `key` is the node's hash."""
    return _LINE.pack(key[:KEY_BYTES], sequence)


def read_digest(data: bytes | memoryview) -> dict[bytes, int]:
    """Sequence numbers by key; of a key that is there twice, the last."""
    return dict(_LINE.iter_unpack(data))


def read_keys(data: bytes | memoryview) -> Sequence[bytes]:
    """The keys of a `Newer`'s body."""
    plain = bytes(data)
    return [plain[i : i + KEY_BYTES] for i in range(0, len(plain), KEY_BYTES)]


def split_body(body: bytes | memoryview, head: int) -> tuple[memoryview, memoryview]:
    """A body's first `head` bytes, and the rest.

    Raises:
        PeerCheating: the body is shorter.
    """
    if len(body) < head:
        raise PeerCheating(f"the body has {len(body)} bytes where {head} were announced")
    view = memoryview(body)
    return view[:head], view[head:]
