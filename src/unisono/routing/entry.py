"""A record as a member keeps it, and regions of hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from unisono.types import NodeId, canonical
from unisono.wire.gossip_messages import KEY_BYTES, MAX_DEPTH, Region, digest_line
from unisono.wire.records import NodeRecord

WHOLE = Region(0, 0)
"""The region of all nodes."""


@dataclass(slots=True, eq=False)
class Entry:
    """One record, with what would otherwise be computed again and again."""

    record: NodeRecord
    encoded: bytes
    """The canonical form."""
    key: bytes
    """SHA-256 of the node id."""
    line: bytes
    """Its line in a digest."""
    depth: int | None = None
    """The depth of the region that the node itself keeps, once it said so."""
    known: int = 0
    """How many records it keeps."""


def node_key(node: NodeId) -> bytes:
    """The hash that places a node: SHA-256 of the 32 bytes of its id.

    Hashed, so that nodes are spread evenly however their keys were made.
    """
    return hashlib.sha256(bytes.fromhex(node)).digest()


def make_entry(record: NodeRecord, encoded: bytes | None = None, key: bytes | None = None) -> Entry:
    """The entry of a record; `encoded` is its canonical form, `key` its node's hash, if known."""
    key = key or node_key(record.node)
    line = digest_line(key, record.sequence)
    return Entry(record, canonical(record) if encoded is None else encoded, key, line)


def prefix(key: bytes, depth: int) -> int:
    """The first `depth` bits of a hash."""
    return int.from_bytes(key[: MAX_DEPTH // 8], "big") >> (MAX_DEPTH - depth)


def region_of(key: bytes, depth: int) -> Region:
    """The region of `depth` bits that holds `key`."""
    return Region(prefix(key, depth), depth)


def contains(region: Region, key: bytes) -> bool:
    """Whether the region holds the hash."""
    return prefix(key, region.depth) == region.prefix


def shared_bits(one: bytes, other: bytes) -> int:
    """How many leading bits two hashes have in common, at most `MAX_DEPTH`."""
    size = MAX_DEPTH // 8
    different = int.from_bytes(one[:size], "big") ^ int.from_bytes(other[:size], "big")
    return MAX_DEPTH - different.bit_length()


def overlap(one: Region, other: Region) -> Region | None:
    """What two regions share: the smaller of them if it is inside the other, else nothing."""
    if one.depth > other.depth:
        one, other = other, one
    inside = other.prefix >> (other.depth - one.depth) == one.prefix
    return other if inside else None


def distance(one: bytes, other: bytes) -> int:
    """How far apart two hashes are, by exclusive or of their leading bytes."""
    return int.from_bytes(one[:KEY_BYTES], "big") ^ int.from_bytes(other[:KEY_BYTES], "big")
