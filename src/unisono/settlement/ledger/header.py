"""Headers of blocks in the form that chains hash: a list in RLP (Ethereum's yellow paper, app. B).

A contract sees hashes of the last 256 blocks. Who shows it a header with that hash shows what else
was in the block: here its randomness.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

_Hash = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{64}$")]
_Quantity = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{1,64}$")]
_Account = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{40}$")]
_Bloom = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{512}$")]
_Eight = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{16}$")]
_Extra = Annotated[str, msgspec.Meta(pattern="^0x([0-9a-fA-F]{2}){0,32}$")]

_SHORT = 55
"""Bytes up to which one byte says how long a string or list is."""


class HeaderFields(msgspec.Struct, rename="camel"):
    """A block as JSON-RPC has it, in the order of its header. Later forks append fields."""

    hash: _Hash
    parent_hash: _Hash
    sha3_uncles: _Hash
    miner: _Account
    state_root: _Hash
    transactions_root: _Hash
    receipts_root: _Hash
    logs_bloom: _Bloom
    difficulty: _Quantity
    number: _Quantity
    gas_limit: _Quantity
    gas_used: _Quantity
    timestamp: _Quantity
    extra_data: _Extra
    mix_hash: _Hash
    nonce: _Eight
    base_fee_per_gas: _Quantity | None = None
    withdrawals_root: _Hash | None = None
    blob_gas_used: _Quantity | None = None
    excess_blob_gas: _Quantity | None = None
    parent_beacon_block_root: _Hash | None = None
    requests_hash: _Hash | None = None

    def encoded(self) -> bytes:
        """The header, whose keccak-256 is the block's hash."""
        head = (
            *map(_bytes, (self.parent_hash, self.sha3_uncles, self.miner, self.state_root)),
            *map(_bytes, (self.transactions_root, self.receipts_root, self.logs_bloom)),
            *map(_number, (self.difficulty, self.number, self.gas_limit, self.gas_used)),
            *(_number(self.timestamp), _bytes(self.extra_data)),
            *(_bytes(self.mix_hash), _bytes(self.nonce)),
        )
        fee, beacon = self.base_fee_per_gas, self.parent_beacon_block_root
        later = (
            None if fee is None else _number(fee),
            None if self.withdrawals_root is None else _bytes(self.withdrawals_root),
            None if self.blob_gas_used is None else _number(self.blob_gas_used),
            None if self.excess_blob_gas is None else _number(self.excess_blob_gas),
            None if beacon is None else _bytes(beacon),
            None if self.requests_hash is None else _bytes(self.requests_hash),
        )
        return encode_fields((*head, *(x for x in later if x is not None)))


def encode_fields(fields: Iterable[bytes]) -> bytes:
    """A list of byte strings in RLP."""
    body = b"".join(_string(x) for x in fields)
    return _length(len(body), 0xC0) + body


def _string(value: bytes) -> bytes:
    if len(value) == 1 and value[0] < 0x80:
        return value
    return _length(len(value), 0x80) + value


def _length(length: int, kind: int) -> bytes:
    if length <= _SHORT:
        return bytes((kind + length,))
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((kind + _SHORT + len(size),)) + size


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def _number(text: str) -> bytes:
    """Without leading zeros: 0 is the empty string."""
    value = int(text, 16)
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
