"""Identities: who signs, and where the key lies."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import ConfigurationError
from unisono.wire.identity import Identity, verify_signature


def test_a_signature_is_good_for_its_signer_and_data_only() -> None:
    identity, other = Identity.generate(), Identity.generate()
    signature = identity.sign(b"data")
    assert verify_signature(identity.node_id, b"data", signature)
    assert not verify_signature(identity.node_id, b"Data", signature)
    assert not verify_signature(other.node_id, b"data", signature)


def test_the_id_of_a_seed_is_the_public_key_of_rfc_8032() -> None:
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert (
        Identity.from_seed(seed).node_id
        == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )


@given(st.text(max_size=70) | st.binary(max_size=40).map(bytes.hex), st.binary(max_size=70))
def test_malformed_ids_and_signatures_are_just_not_good(node: str, signature: bytes) -> None:
    assert not verify_signature(node, b"data", signature)
    assert not verify_signature(node, b"data", bytes(64))


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(ConfigurationError, match="31"):
        Identity.from_seed(bytes(31))


def test_the_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "node.key"
    first = Identity.load_or_create(path)
    assert Identity.load_or_create(str(path)).node_id == first.node_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["node.key"]


def test_a_key_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.key"
    link = os.link
    winner = Identity.generate()

    def slow_link(source: Path, target: Path) -> None:
        target.write_text(winner.secret_seed().hex())
        target.chmod(0o600)
        link(source, target)

    monkeypatch.setattr(os, "link", slow_link)
    assert Identity.load_or_create(path).node_id == winner.node_id
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    Identity.load_or_create(path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Identity.load_or_create(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"0" * 63, b"0" * 65, b"\xff" * 64])
def test_a_damaged_key_file_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="not a key file"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot use"):
        Identity.load_or_create(tmp_path / "file" / "node.key")


def test_no_text_or_pickle_of_an_identity_shows_the_key() -> None:
    identity = Identity.generate()
    secret = identity.secret_seed()
    for text in (repr(identity), str(identity), f"{identity}"):
        assert secret.hex() not in text
        assert repr(secret) not in text
        assert identity.node_id[:8] in text
    with pytest.raises(TypeError):
        pickle.dumps(identity)
