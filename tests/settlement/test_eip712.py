"""Typed data hash as wallets hash them; addresses have one form."""

from __future__ import annotations

import pytest
from eth_account.messages import encode_typed_data
from eth_hash.auto import keccak
from eth_utils.address import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import ConfigurationError
from unisono.settlement.eip712 import (
    Domain,
    address_bytes,
    address_word,
    checksummed,
    parse_address,
    struct_hash,
    type_hash,
    word,
)

ADDRESSES = st.binary(min_size=20, max_size=20).map(checksummed)


@given(ADDRESSES, ADDRESSES, st.integers(0, 2**256 - 1), st.integers(1, 2**63))
def test_a_digest_is_the_one_that_wallets_sign(contract, payee, amount, chain_id) -> None:
    fields = [{"name": "payee", "type": "address"}, {"name": "amount", "type": "uint256"}]
    domain = {"name": "Some", "version": "1", "chainId": chain_id, "verifyingContract": contract}
    message = {"payee": payee, "amount": amount}
    signable = encode_typed_data(domain, {"Promise": fields}, message)
    kind = type_hash("Promise(address payee,uint256 amount)")
    ours = Domain("Some", "1", chain_id, contract)
    digest = ours.digest(struct_hash(kind, address_word(payee), word(amount)))
    assert digest == keccak(b"\x19" + signable.version + signable.header + signable.body)


@given(st.binary(min_size=20, max_size=20))
def test_an_address_has_one_written_form(raw: bytes) -> None:
    address = checksummed(raw)
    assert address == to_checksum_address(raw)
    assert address_bytes(address) == raw
    upper = "0x" + raw.hex().upper()
    assert parse_address(address) == parse_address(address.lower()) == parse_address(upper)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0x5aAeb",
        "0x" + "g" * 40,
        "0x" + "0" * 41,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="no address"):
        parse_address(text)


def test_a_mistyped_address_is_seen_by_its_checksum() -> None:
    good = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    assert parse_address(good) == good
    with pytest.raises(ConfigurationError, match="checksum"):
        parse_address(good.replace("5aA", "5aa"))


@given(st.integers(-(2**255), 2**256 - 1))
def test_a_word_is_twos_complement(value: int) -> None:
    assert word(value) == (value % 2**256).to_bytes(32, "big")


def test_numbers_and_fields_of_another_size_are_errors() -> None:
    with pytest.raises(OverflowError):
        word(2**256)
    with pytest.raises(ValueError, match="one word"):
        struct_hash(type_hash("A(uint256 b)"), b"short")
    with pytest.raises(ConfigurationError, match="20 bytes"):
        checksummed(b"short")
