"""Vouchers off chain: each way to cheat with one has a name."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.settlement.evm import account
from unisono.errors import ConfigurationError, VoucherRefused
from unisono.settlement.signature import SettlementKey
from unisono.settlement.vouchers import (
    MAX_AMOUNT,
    MAX_EPOCH,
    REFUSALS,
    VOUCHER_BYTES,
    Channel,
    Refusal,
    Voucher,
    accept,
    channels_domain,
    decode_voucher,
    sign_voucher,
)

PAYER = SettlementKey(bytes(31) + b"\x01")
OTHER = SettlementKey(bytes(31) + b"\x02")
PAYEE = account(3)
DOMAIN = channels_domain(31_337, account(4))
CHANNEL = Channel(DOMAIN, PAYER.address, PAYEE, epoch=2, deposit=1_000, accepted=400)


def voucher(**changes: object) -> Voucher:
    """A good voucher over 500, or one whose signer meant what `changes` say."""
    terms = {"key": PAYER, "domain": DOMAIN, "payee": PAYEE, "epoch": 2, "cumulative": 500}
    return sign_voucher(**(terms | changes))  # type: ignore[arg-type]


def test_a_good_voucher_adds_what_is_new_in_it() -> None:
    assert accept(CHANNEL, voucher()) == 100
    assert accept(CHANNEL, voucher(cumulative=1_000)) == 600


@pytest.mark.parametrize(
    ("refusal", "bad"),
    [
        ("foreign_chain", voucher(domain=channels_domain(1, DOMAIN.contract))),
        ("foreign_contract", voucher(domain=channels_domain(31_337, account(5)))),
        ("foreign_payer", voucher(key=OTHER)),
        ("foreign_payee", voucher(payee=account(6))),
        ("closed_epoch", voucher(epoch=1)),
        ("closed_epoch", voucher(epoch=3)),
        ("replayed", voucher(cumulative=400)),
        ("reordered", voucher(cumulative=399)),
        ("overdrawn", voucher(cumulative=1_001)),
        ("forged", dataclasses.replace(voucher(key=OTHER), payer=PAYER.address)),
        ("forged", dataclasses.replace(voucher(cumulative=401), cumulative=500)),
        ("forged", dataclasses.replace(voucher(), signature=bytes(65))),
        ("malformed", dataclasses.replace(voucher(), signature=b"")),
        ("malformed", dataclasses.replace(voucher(), cumulative=0)),
        ("malformed", dataclasses.replace(voucher(), cumulative=-1)),
        ("malformed", dataclasses.replace(voucher(), epoch=MAX_EPOCH)),
    ],
)
def test_a_bad_voucher_is_refused_by_name(refusal: Refusal, bad: Voucher) -> None:
    with pytest.raises(VoucherRefused, match=REFUSALS[refusal][:20]) as caught:
        accept(CHANNEL, bad)
    assert caught.value.code == refusal


def test_every_refusal_is_tried() -> None:
    mark = test_a_bad_voucher_is_refused_by_name.pytestmark[0]  # type: ignore[attr-defined]
    assert {refusal for refusal, _ in mark.args[1]} == set(REFUSALS)


@given(st.integers(0, VOUCHER_BYTES - 1), st.integers(1, 255))
def test_no_byte_of_a_voucher_can_be_changed(place: int, change: int) -> None:
    raw = bytearray(voucher().encode())
    raw[place] ^= change
    with pytest.raises(VoucherRefused):
        accept(CHANNEL, decode_voucher(bytes(raw)))


@given(st.integers(0, MAX_EPOCH - 1), st.integers(1, MAX_AMOUNT))
def test_a_voucher_survives_the_wire(epoch: int, cumulative: int) -> None:
    sent = voucher(epoch=epoch, cumulative=cumulative)
    assert decode_voucher(sent.encode()) == sent
    channel = dataclasses.replace(CHANNEL, epoch=epoch, deposit=MAX_AMOUNT, accepted=0)
    assert accept(channel, sent) == cumulative


@given(st.binary(max_size=2 * VOUCHER_BYTES))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(VoucherRefused):
        accept(CHANNEL, decode_voucher(data))


@pytest.mark.parametrize(
    "terms",
    [{"cumulative": 0}, {"cumulative": MAX_AMOUNT + 1}, {"epoch": -1}, {"epoch": MAX_EPOCH}],
)
def test_nobody_signs_what_no_channel_takes(terms: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="a voucher promises"):
        voucher(**terms)
