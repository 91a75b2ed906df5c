"""Typed data as wallets show and sign it (EIP-712): domains, struct hashes, digests.

Only structs of one-word fields are needed here, so an encoding is a run of 32-byte words. A domain
binds a signature to one contract on one chain: nothing that was signed elsewhere counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from eth_hash.auto import keccak

from unisono.errors import ConfigurationError
from unisono.types import EvmAddress

WORD = 32
ADDRESS_BYTES = 20
_HEX_DIGITS = set("0123456789abcdefABCDEF")
_DOMAIN_TYPE = keccak(
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)


def address_bytes(address: EvmAddress) -> bytes:
    """The 20 bytes of an address that `parse_address` or `checksummed` made."""
    return bytes.fromhex(address[2:])


@lru_cache(maxsize=4096)
def checksummed(address: bytes) -> EvmAddress:
    """The written form of 20 bytes: the case of its letters is a checksum (EIP-55)."""
    if len(address) != ADDRESS_BYTES:
        raise ConfigurationError(f"an address has 20 bytes; this one has {len(address)}")
    digits = address.hex()
    marks = keccak(digits.encode()).hex()
    letters = (d.upper() if m > "7" else d for d, m in zip(digits, marks, strict=False))
    return EvmAddress("0x" + "".join(letters))


def parse_address(text: str) -> EvmAddress:
    """Read `0x` and 40 hex digits, all of one case or with the right checksum.

    Raises:
        ConfigurationError: it is no address, or its checksum says that a digit is mistyped.
    """
    digits = text[2:]
    if not text.startswith("0x") or len(digits) != 40 or set(digits) - _HEX_DIGITS:
        raise ConfigurationError(f"'{text[:60]}' is no address: expected 0x and 40 hex digits")
    address = checksummed(bytes.fromhex(digits))
    if digits not in (digits.lower(), digits.upper(), address[2:]):
        raise ConfigurationError(f"the checksum of address {text} is wrong: copy it again")
    return address


def word(value: int) -> bytes:
    """An integer as one word: big-endian, two's complement.

    Raises:
        OverflowError: it needs more than 256 bits.
    """
    return value.to_bytes(WORD, "big", signed=value < 0)


def address_word(address: EvmAddress) -> bytes:
    """An address as one word."""
    return bytes(WORD - ADDRESS_BYTES) + address_bytes(address)


def type_hash(declaration: str) -> bytes:
    """Of a struct's declaration, such as `Voucher(address payer,uint64 epoch)`."""
    return keccak(declaration.encode())


def struct_hash(kind: bytes, *words: bytes) -> bytes:
    """Of a struct: its `type_hash` and its fields in order, one word each."""
    if any(len(x) != WORD for x in words):
        raise ValueError("every field of a struct is one word of 32 bytes")
    return keccak(b"".join((kind, *words)))


@dataclass(frozen=True, slots=True)
class Domain:
    """What signatures are bound to."""

    name: str
    version: str
    chain_id: int
    contract: EvmAddress
    separator: bytes = field(init=False, repr=False)
    """32 bytes: the hash of the domain, which contracts compute too."""

    def __post_init__(self) -> None:
        separator = struct_hash(
            _DOMAIN_TYPE,
            keccak(self.name.encode()),
            keccak(self.version.encode()),
            word(self.chain_id),
            address_word(self.contract),
        )
        object.__setattr__(self, "separator", separator)

    def digest(self, struct: bytes) -> bytes:
        """The 32 bytes that are signed: of a `struct_hash` in this domain."""
        return keccak(b"\x19\x01" + self.separator + struct)
