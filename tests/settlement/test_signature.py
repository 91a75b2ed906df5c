"""secp256k1 signatures: one form, one signer, no secret shown."""

from __future__ import annotations

import contextlib
import pickle

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import BadSignature, ConfigurationError
from unisono.settlement.eip712 import address_bytes
from unisono.settlement.signature import SettlementKey, recover

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
DIGESTS = st.binary(min_size=32, max_size=32)
KEY = SettlementKey(bytes(31) + b"\x07")


@given(st.integers(1, ORDER - 1), DIGESTS)
def test_keys_and_signatures_are_those_of_wallets(secret: int, digest: bytes) -> None:
    raw = secret.to_bytes(32, "big")
    key, theirs = SettlementKey(raw), Account.from_key(raw)
    assert key.address == theirs.address
    signature = key.sign(digest)
    assert signature == bytes(theirs.unsafe_sign_hash(digest).signature)
    assert recover(digest, signature) == address_bytes(key.address)


@given(DIGESTS)
def test_the_other_signature_of_the_pair_is_refused(digest: bytes) -> None:
    good = KEY.sign(digest)
    s = ORDER - int.from_bytes(good[32:64], "big")
    turned = good[:32] + s.to_bytes(32, "big") + bytes((55 - good[64],))
    with pytest.raises(BadSignature, match="upper half"):
        recover(digest, turned)


@given(DIGESTS, st.binary(max_size=70))
def test_random_bytes_never_recover_to_a_known_key(digest: bytes, data: bytes) -> None:
    with contextlib.suppress(BadSignature):
        assert recover(digest, data) != address_bytes(KEY.address)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:64],
        lambda s: s + b"\0",
        lambda s: s[:64] + b"\x1d",
        lambda s: s[:64] + bytes((s[64] - 27,)),
        lambda s: bytes(32) + s[32:],
        lambda s: s[:32] + bytes(32) + s[64:],
        lambda s: b"\xff" * 32 + s[32:],
    ],
)
def test_a_malformed_signature_is_refused(change) -> None:
    with pytest.raises(BadSignature):
        recover(bytes(32), change(KEY.sign(bytes(32))))


@pytest.mark.parametrize(
    "secret", [b"", bytes(32), ORDER.to_bytes(32, "big"), bytes(33), b"\xff" * 32]
)
def test_what_is_no_key_is_refused(secret: bytes) -> None:
    with pytest.raises(ConfigurationError):
        SettlementKey(secret)


def test_a_key_shows_no_secret_and_does_not_travel() -> None:
    key = SettlementKey(b"\x5a" * 32)
    shown = f"{key!r} {key} {key!s}"
    assert "5a5a" not in shown
    assert str(int.from_bytes(key.secret(), "big")) not in shown
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(KEY)
    assert SettlementKey.generate().address != SettlementKey.generate().address
