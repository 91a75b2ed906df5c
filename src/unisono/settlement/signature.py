"""Keys and signatures of an EVM chain: secp256k1, 65 bytes r, s, v, in the one form contracts take.

Of the two signatures (r, s) and (r, -s) that are good for one digest, only the one with the lower
s counts, so that nobody can make a second signature out of a first (EIP-2).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import cast

from coincurve import PrivateKey, PublicKey
from eth_hash.auto import keccak

from unisono.errors import BadSignature, ConfigurationError
from unisono.settlement.eip712 import checksummed
from unisono.types import EvmAddress

SIGNATURE_BYTES = 65
KEY_BYTES = 32
_Sign = Callable[..., bytes]
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


class SettlementKey:
    """A secp256k1 key that owns money on a chain. Its text forms never show the secret."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        """Raises:
        ConfigurationError: the secret is not 32 bytes of a number from 1 to the order less 1.
        """
        if len(secret) != KEY_BYTES or not 0 < int.from_bytes(secret, "big") < _ORDER:
            raise ConfigurationError("a settlement key is 32 bytes, not zero, below the order")
        self._key = PrivateKey(secret)
        self.address: EvmAddress = checksummed(_address(self._key.public_key))

    @classmethod
    def generate(cls) -> SettlementKey:
        """A new key from the operating system's randomness."""
        return cls((secrets.randbelow(_ORDER - 1) + 1).to_bytes(KEY_BYTES, "big"))

    def sign(self, digest: bytes) -> bytes:
        """The signature of 32 bytes that are a hash already: r, s and v (27 or 28)."""
        signature = cast(_Sign, self._key.sign_recoverable)(digest, hasher=None)  # pyright: ignore
        return signature[:64] + bytes((signature[64] + 27,))

    def secret(self) -> bytes:
        """The 32 bytes of the key: only for the keystore and the signing of transactions."""
        return self._key.secret

    def __repr__(self) -> str:
        return f"SettlementKey({self.address})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a settlement key does not travel: it holds a secret")


def recover(digest: bytes, signature: bytes) -> bytes:
    """The 20-byte address whose key signed a 32-byte digest.

    Raises:
        BadSignature: not 65 bytes, v not 27 or 28, a number out of range, s in the upper half, or
            no key fits.
    """
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28):
        raise BadSignature("a signature is 65 bytes: r, s, and 27 or 28")
    if int.from_bytes(signature[32:64], "big") > _ORDER // 2:
        raise BadSignature("the signature's s is in the upper half: it is another's, turned over")
    plain = signature[:64] + bytes((signature[64] - 27,))
    try:
        key = PublicKey.from_signature_and_message(plain, digest, hasher=None)
    except ValueError as error:
        raise BadSignature(f"no key made this signature: {error}") from error
    return _address(key)


def _address(key: PublicKey) -> bytes:
    return keccak(key.format(compressed=False)[1:])[12:]
