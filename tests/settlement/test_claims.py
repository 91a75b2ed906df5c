"""Claims in the form that a chain takes: what is signed, and what is refused."""

from __future__ import annotations

from dataclasses import fields, replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verification.fraud.dispute import answer_of
from unisono.errors import BadSignature, ConfigurationError
from unisono.settlement.claims import (
    NO_PAYER,
    SettlementClaim,
    court_domain,
    sampling_hash,
    sequence_tree,
    settlement_claim,
)
from unisono.settlement.eip712 import checksummed
from unisono.settlement.signature import SettlementKey
from unisono.types import Sampling
from unisono.verification.fraud.tree import EMPTY

OPERATOR, OTHER = (SettlementKey(bytes(31) + bytes((n,))) for n in (7, 8))
PAYER, COURT = OTHER.address, checksummed(b"\5" * 20)
DOMAIN = court_domain(31_337, COURT)
PROGRAM = b"\6" * 32


def claim_of(layers: tuple[int, int] = (0, 2)) -> SettlementClaim:
    subject = answer_of("llama", layers=layers).subject(epoch=5)
    return settlement_claim(
        subject.claim, subject.request, subject.tokens, PROGRAM, 50, PAYER
    ).signed_by(OPERATOR, DOMAIN)


def test_a_claim_is_signed_by_the_operator_for_one_court() -> None:
    claim = claim_of()
    claim.check(DOMAIN, OPERATOR.address, claim)
    for domain in (court_domain(31_338, COURT), court_domain(31_337, PAYER)):
        assert claim.signer(domain) != OPERATOR.address
    with pytest.raises(BadSignature, match="not signed by operator"):
        claim.check(DOMAIN, OTHER.address, claim)
    with pytest.raises(BadSignature):
        replace(claim, signature=b"").signer(DOMAIN)


def test_every_field_is_signed_and_compared() -> None:
    claim = claim_of()
    for field in fields(claim):
        value = getattr(claim, field.name)
        if field.name == "signature":
            continue
        if isinstance(value, bytes):
            other: object = bytes((value[0] ^ 1,)) + value[1:]
        else:
            other = value + 1 if isinstance(value, int) else COURT
        changed = replace(claim, **{field.name: other})
        assert changed.digest(DOMAIN) != claim.digest(DOMAIN), field.name
        with pytest.raises(BadSignature, match="not what the hop's claim says"):
            changed.check(DOMAIN, OPERATOR.address, claim)


def test_only_a_hop_that_ends_the_model_says_the_tokens() -> None:
    assert claim_of((0, 1)).sequence == EMPTY
    answer = answer_of("llama")
    tokens = (*answer.request.prompt, *answer.tokens)
    assert claim_of().sequence == sequence_tree(tokens).root


def test_a_claim_without_a_payer_or_with_a_malformed_field_is_refused() -> None:
    subject = answer_of("llama").subject()
    with pytest.raises(ConfigurationError, match="who paid"):
        settlement_claim(subject.claim, subject.request, subject.tokens, PROGRAM, 50, NO_PAYER)
    for changes in ({"rows_out": "00"}, {"request": "zz"}):
        claim = msgspec.structs.replace(subject.claim, **changes)
        with pytest.raises(ConfigurationError, match="malformed"):
            settlement_claim(claim, subject.request, subject.tokens, PROGRAM, 50, PAYER)
    with pytest.raises(ConfigurationError, match="malformed"):
        settlement_claim(subject.claim, subject.request, subject.tokens, b"", 50, PAYER)


@given(st.integers(0, 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(0, 49))
def test_settings_have_one_hash_each(temperature: int, bias: int, token: int) -> None:
    plain = Sampling(temperature=temperature)
    hashes = {
        sampling_hash(plain, 50),
        sampling_hash(msgspec.structs.replace(plain, seed=1), 50),
        sampling_hash(msgspec.structs.replace(plain, logit_bias=((token, bias),)), 50),
    }
    assert len(hashes) == 3
