"""The receipt: what was asked, what was answered, and who vouches for which part."""

from __future__ import annotations

import binascii

import msgspec
from msgspec import UNSET, UnsetType

from unisono.errors import ReceiptError
from unisono.types import GenerationRequest, NodeId, canonical, digest, is_hex
from unisono.verification.audit_note import AuditNote
from unisono.verification.unverified import UnverifiedReceipt
from unisono.wire.claims import HopClaim
from unisono.wire.ensemble import Ensemble
from unisono.wire.identity import Identity, verify_signature
from unisono.wire.votes import Quorum

VERSION = 2
MAX_BYTES = 16 << 20


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sent with every answer; `unisono verify` replays it alone."""

    version: int
    id: str
    """32 hex digits, drawn at random when the answer starts: streams name their receipt before
    it exists."""
    request: GenerationRequest
    tokens: tuple[int, ...]
    finish_reason: str
    """`stop` (a stop token or string), `length`, or `cancelled`."""
    hops: tuple[HopClaim, ...]
    gateway: NodeId
    created: int
    """Unix seconds."""
    elapsed_us: int
    """From the start of decoding to the last token."""
    first_token_us: int
    attempts: int
    """Chains that were tried; more than one means that a hop was replaced."""
    quorum: Quorum | UnsetType = UNSET
    """The other chains, if several computed the answer. Absent in all encodings, those that are
    signed included, where one did."""
    ensemble: Ensemble | UnsetType = UNSET
    """The other models' claims, if several models answered together. Absent likewise."""
    signature: bytes = b""
    audits: tuple[AuditNote, ...] | UnsetType = UNSET
    """What audits found since, as the gateway that is asked for the receipt adds it. Not signed: it
    is not part of the answer."""

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed, the first token left out."""
        if len(self.tokens) < 2 or self.elapsed_us <= 0:
            return 0.0
        return (len(self.tokens) - 1) * 1e6 / self.elapsed_us

    def signed_bytes(self) -> bytes:
        """What the gateway's signature covers: everything else but audits."""
        unsigned = msgspec.structs.replace(self, signature=b"", audits=UNSET)
        return digest("receipt/1", canonical(unsigned))

    def signed_by(self, identity: Identity) -> Receipt:
        """The same receipt with the gateway's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the gateway that the receipt names signed these contents."""
        return verify_signature(self.gateway, self.signed_bytes(), self.signature)


class _Mark(msgspec.Struct, frozen=True):
    """What tells the two kinds of receipts apart."""

    verified: bool = True


def to_json(receipt: Receipt | UnverifiedReceipt) -> bytes:
    """The form that is served and stored: JSON, bytes as base64."""
    return msgspec.json.encode(receipt)


def from_json(data: bytes) -> Receipt:
    """Read the receipt of an answer of the network strictly.

    Raises:
        ReceiptError: not a receipt, or one of another version, or too large, or one that says
            that its answer came from elsewhere.
    """
    receipt = read_json(data)
    if isinstance(receipt, UnverifiedReceipt):
        raise ReceiptError(
            f"the answer of receipt {receipt.id} is not verifiable: it came from "
            f"{receipt.source[:200]}, outside the network, and no node signed it"
        )
    return receipt


def read_json(data: bytes) -> Receipt | UnverifiedReceipt:
    """Read a receipt of either kind strictly.

    Raises:
        ReceiptError: not a receipt, or one of another version, or too large.
    """
    if len(data) > MAX_BYTES:
        raise ReceiptError(f"the receipt is larger than {MAX_BYTES >> 20} MiB")
    receipt: Receipt | UnverifiedReceipt
    try:
        if msgspec.json.decode(data, type=_Mark).verified:
            receipt = msgspec.json.decode(data, type=Receipt)
        else:
            receipt = msgspec.json.decode(data, type=UnverifiedReceipt)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error) as error:
        raise ReceiptError(f"not a receipt: {error}") from error
    if receipt.version != VERSION:
        raise ReceiptError(
            f"the receipt has version {receipt.version}; this program reads version {VERSION}"
        )
    if not is_hex(receipt.id, 16):
        raise ReceiptError("the receipt's id is not 32 hex digits")
    return receipt
