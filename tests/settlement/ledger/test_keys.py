"""Keys are encrypted, private to their owner, and never shown."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest
from eth_account import Account

from unisono.errors import ConfigurationError, KeyRefused
from unisono.settlement.ledger.keys import (
    Keystore,
    account_of,
    decrypted,
    read_passphrase,
    read_secret,
)
from unisono.settlement.signature import SettlementKey

SECRET = bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318")
ADDRESS = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"


@pytest.fixture
def store(tmp_path: Path) -> Keystore:
    return Keystore(tmp_path / "keys", strength=2)


def test_a_key_comes_back_with_its_passphrase_only(store: Keystore) -> None:
    address = store.new("right")
    assert store.list() == (address,)
    assert store.unlock(address, "right").address == address
    with pytest.raises(KeyRefused, match="passphrase does not open"):
        store.unlock(address, "wrong")
    with pytest.raises(KeyRefused, match="empty passphrase"):
        store.new("")


def test_files_are_for_their_owner_only_and_hold_no_secret(store: Keystore) -> None:
    store.add(SettlementKey(SECRET), "right")
    path = store.directory / f"{ADDRESS}.json"
    assert store.directory.stat().st_mode & 0o077 == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert SECRET.hex() not in path.read_text()
    assert [p.name for p in store.directory.iterdir()] == [path.name]
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        store.unlock(read_secret(SECRET.hex()).address, "right")


def test_a_key_is_never_replaced(store: Keystore) -> None:
    key = SettlementKey(SECRET)
    store.add(key, "first")
    with pytest.raises(KeyRefused, match="already"):
        store.add(key, "second")
    assert store.unlock(key.address, "first").secret() == SECRET


def test_a_file_under_another_name_is_noticed(store: Keystore) -> None:
    first, second = store.new("x"), store.new("x")
    path = store.directory / f"{first}.json"
    path.write_bytes((store.directory / f"{second}.json").read_bytes())
    with pytest.raises(ConfigurationError, match=f"holds the key of {second}"):
        store.unlock(first, "x")


def test_the_only_key_needs_no_name(store: Keystore) -> None:
    with pytest.raises(KeyRefused, match="keys new"):
        store.choose()
    address = store.new("x")
    assert store.choose() == address
    store.new("x")
    with pytest.raises(KeyRefused, match="2 keys"):
        store.choose()
    assert store.choose(address.lower()) == address


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
def test_files_of_other_wallets_are_read(kdf: str) -> None:
    content = Account.encrypt(SECRET, "theirs", kdf=kdf, iterations=2)  # type: ignore[arg-type]
    data = json.dumps(content).encode()
    assert decrypted(data, "theirs", "wallet.json").address == ADDRESS
    assert decrypted(data.replace(b"crypto", b"Crypto"), "theirs", "w").address == ADDRESS
    assert account_of(data) == ADDRESS


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"crypto": None},
        {"crypto": {"kdf": "none"}},
        {"n": 1 << 22, "r": 64},
        {"n": 1 << 20, "p": 64},
        {"c": 10**9},
    ],
)
def test_a_file_that_is_no_keystore_or_costs_too_much_is_refused(
    change: dict[str, object],
) -> None:
    content: dict[str, object] = dict(Account.encrypt(SECRET, "x", kdf="scrypt", iterations=2))
    crypto = content["crypto"]
    assert isinstance(crypto, dict)
    for name, value in change.items():
        (content if name in content else crypto["kdfparams"])[name] = value
    with pytest.raises(ConfigurationError, match="not a keystore file"):
        decrypted(json.dumps(content).encode(), "x", "wallet.json")
    with pytest.raises(ConfigurationError, match="not a keystore file"):
        decrypted(b"{" * 100_000, "x", "wallet.json")


def test_secrets_and_passphrases_are_in_no_text(
    store: Keystore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        key = read_secret("0x" + SECRET.hex())
        store.add(key, "my passphrase")
        with pytest.raises(KeyRefused) as refused:
            store.unlock(key.address, "my other passphrase")
        with pytest.raises(ConfigurationError) as wrong:
            read_secret(SECRET.hex()[:-1] + "x")
    texts = [caplog.text, repr(key), str(key), str(refused.value), str(wrong.value), repr(store)]
    for text in texts:
        assert SECRET.hex()[:16] not in text
        assert "passphrase of" not in text
        assert "my " not in text
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_passphrase_file_is_private_and_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_text("first line\nsecond\n")
    path.chmod(0o600)
    assert read_passphrase(path) == "first line"
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_passphrase(path)
    path.write_text("\n")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="is empty"):
        read_passphrase(path)
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_passphrase(tmp_path / "nothing")
