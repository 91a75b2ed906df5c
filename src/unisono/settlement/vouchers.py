"""Vouchers: signed promises to pay, sent beside the work and redeemed from a channel.

A voucher promises a *total* since its channel began, so that of many only the last one counts, a
lost one costs nothing, and a repeated one pays nothing. Its signature covers chain, contract,
payer, payee and the channel's epoch (how often it closed before): it is good in one place only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from unisono.errors import BadSignature, ConfigurationError, VoucherRefused
from unisono.settlement.eip712 import (
    Domain,
    address_bytes,
    address_word,
    checksummed,
    struct_hash,
    type_hash,
    word,
)
from unisono.settlement.signature import SIGNATURE_BYTES, SettlementKey, recover
from unisono.types import EvmAddress

NAME, VERSION = "Unisono channels", "1"
MAX_AMOUNT = 2**96 - 1
"""Most units of the coin that a channel counts."""
MAX_EPOCH = 2**24 - 1
_LAYOUT = (8, 20, 20, 20, 3, 12, SIGNATURE_BYTES)
"""Bytes of a voucher's fields on the wire, numbers big-endian."""
VOUCHER_BYTES = sum(_LAYOUT)
_TYPE = type_hash("Voucher(address payer,address payee,uint256 epoch,uint256 cumulative)")

Refusal = Literal[
    "malformed",
    "foreign_chain",
    "foreign_contract",
    "foreign_payer",
    "foreign_payee",
    "closed_epoch",
    "replayed",
    "reordered",
    "overdrawn",
    "forged",
]
REFUSALS: dict[Refusal, str] = {
    "malformed": "it cannot be read, or a number in it is out of range",
    "foreign_chain": "it is for another chain",
    "foreign_contract": "it is for another contract",
    "foreign_payer": "it is from another payer than the channel's",
    "foreign_payee": "it pays somebody else",
    "closed_epoch": "it is for the channel before it closed, or after it will",
    "replayed": "it promises as much as the last one",
    "reordered": "it promises less than the last one",
    "overdrawn": "it promises more than the deposit",
    "forged": "the payer did not sign it",
}


@dataclass(frozen=True, slots=True)
class Voucher:
    """A promise and its signature."""

    chain_id: int
    contract: EvmAddress
    payer: EvmAddress
    payee: EvmAddress
    epoch: int
    cumulative: int
    """Units of the coin since the channel's epoch began."""
    signature: bytes

    def encode(self) -> bytes:
        """The `VOUCHER_BYTES` bytes that `decode_voucher` reads.

        Raises:
            OverflowError: a number is out of range.
        """
        numbers = {0: self.chain_id, 4: self.epoch, 5: self.cumulative}
        addresses = {1: self.contract, 2: self.payer, 3: self.payee}
        fields = {i: x.to_bytes(_LAYOUT[i], "big") for i, x in numbers.items()}
        fields |= {i: address_bytes(x) for i, x in addresses.items()}
        return b"".join(fields[i] for i in range(6)) + self.signature


@dataclass(frozen=True, slots=True)
class Channel:
    """What the payee of a channel knows about it, the chain's facts and its own."""

    domain: Domain
    payer: EvmAddress
    payee: EvmAddress
    epoch: int
    deposit: int
    """Units paid in since the epoch began."""
    accepted: int = 0
    """`cumulative` of the last good voucher, or what was redeemed if that is more."""


def channels_domain(chain_id: int, contract: EvmAddress) -> Domain:
    """The domain of the channels contract at an address."""
    return Domain(NAME, VERSION, chain_id, contract)


def voucher_digest(
    domain: Domain, payer: EvmAddress, payee: EvmAddress, epoch: int, cumulative: int
) -> bytes:
    """The 32 bytes that a payer signs; the contract's `digest` gives the same."""
    content = struct_hash(
        _TYPE, address_word(payer), address_word(payee), word(epoch), word(cumulative)
    )
    return domain.digest(content)


def sign_voucher(
    key: SettlementKey, domain: Domain, payee: EvmAddress, epoch: int, cumulative: int
) -> Voucher:
    """A voucher from the key's address.

    Raises:
        ConfigurationError: a number is out of range.
    """
    if not (0 < cumulative <= MAX_AMOUNT and 0 <= epoch < MAX_EPOCH):
        raise ConfigurationError(
            f"a voucher promises 1 to {MAX_AMOUNT} units in epoch 0 to {MAX_EPOCH - 1}; "
            f"not {cumulative} in epoch {epoch}"
        )
    digest = voucher_digest(domain, key.address, payee, epoch, cumulative)
    return Voucher(
        domain.chain_id,
        domain.contract,
        key.address,
        payee,
        epoch,
        cumulative,
        key.sign(digest),
    )


def decode_voucher(data: bytes) -> Voucher:
    """Read a voucher from bytes of a peer: every voucher has one encoding.

    Raises:
        VoucherRefused: `malformed`.
    """
    if len(data) != VOUCHER_BYTES:
        raise _refused("malformed", f"{len(data)} bytes, expected {VOUCHER_BYTES}")
    ends = list(accumulate(_LAYOUT))
    chain, contract, payer, payee, epoch, cumulative, signature = (
        data[end - size : end] for end, size in zip(ends, _LAYOUT, strict=True)
    )
    return Voucher(
        int.from_bytes(chain, "big"),
        checksummed(contract),
        checksummed(payer),
        checksummed(payee),
        int.from_bytes(epoch, "big"),
        int.from_bytes(cumulative, "big"),
        signature,
    )


def accept(channel: Channel, voucher: Voucher) -> int:
    """Check a voucher against its channel; returns the units that it adds to the last one.

    Raises:
        VoucherRefused: with one of `REFUSALS` as its code.
    """
    problem = _problem(channel, voucher)
    if problem is not None:
        raise _refused(*problem)
    digest = voucher_digest(
        channel.domain, channel.payer, channel.payee, voucher.epoch, voucher.cumulative
    )
    try:
        signer = recover(digest, voucher.signature)
    except BadSignature as error:
        raise _refused("forged", str(error)) from error
    if signer != address_bytes(channel.payer):
        raise _refused("forged", f"signed by {checksummed(signer)}, expected {channel.payer}")
    return voucher.cumulative - channel.accepted


def _problem(channel: Channel, voucher: Voucher) -> tuple[Refusal, str] | None:
    """What makes a voucher worthless whoever signed it: cheaper to see than a signature."""
    domain = channel.domain
    if not (0 < voucher.cumulative <= MAX_AMOUNT and 0 <= voucher.epoch < MAX_EPOCH):
        return "malformed", f"{voucher.cumulative} units in epoch {voucher.epoch}"
    if len(voucher.signature) != SIGNATURE_BYTES:
        return "malformed", f"a signature of {len(voucher.signature)} bytes"
    places: tuple[tuple[Refusal, object, object], ...] = (
        ("foreign_chain", voucher.chain_id, domain.chain_id),
        ("foreign_contract", voucher.contract, domain.contract),
        ("foreign_payer", voucher.payer, channel.payer),
        ("foreign_payee", voucher.payee, channel.payee),
        ("closed_epoch", voucher.epoch, channel.epoch),
    )
    for refusal, found, expected in places:
        if found != expected:
            return refusal, f"{str(found)[:60]}, expected {expected}"
    if voucher.cumulative == channel.accepted:
        return "replayed", f"{voucher.cumulative} units were promised before"
    if voucher.cumulative < channel.accepted:
        return "reordered", f"{voucher.cumulative} units after {channel.accepted}"
    if voucher.cumulative > channel.deposit:
        return "overdrawn", f"{voucher.cumulative} units of a deposit of {channel.deposit}: top up"
    return None


def _refused(refusal: Refusal, detail: str) -> VoucherRefused:
    return VoucherRefused(f"voucher refused: {REFUSALS[refusal]} ({detail})", refusal)
