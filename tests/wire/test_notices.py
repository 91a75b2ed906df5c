"""Notices on the wire: one form, bounds before memory."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import PeerCheating
from unisono.types import canonical
from unisono.wire.notices import (
    KEY_BYTES,
    KINDS,
    MAX_NOTICE_BYTES,
    MAX_TOLD,
    MAX_TOLD_BYTES,
    Notice,
    NoticesAsked,
    pack_notices,
    read_known,
    unpack_notices,
)

NOTICES = st.builds(Notice, st.sampled_from(KINDS), st.binary(min_size=1, max_size=200))


def packed(*parts: bytes) -> bytes:
    return zlib.compress(b"".join(len(p).to_bytes(4, "big") + p for p in parts))


@given(st.lists(NOTICES, max_size=MAX_TOLD))
def test_what_is_packed_comes_out(notices: list[Notice]) -> None:
    assert unpack_notices(pack_notices(notices)) == notices


@given(st.binary(max_size=300))
def test_other_bytes_are_refused(data: bytes) -> None:
    for body in (data, zlib.compress(data)):
        try:
            found = unpack_notices(body)
        except PeerCheating:
            continue
        assert found == [] or pack_notices(found)


def test_one_message_holds_so_many_and_no_more() -> None:
    small = [Notice("link", i.to_bytes(2, "big")) for i in range(2 * MAX_TOLD)]
    assert unpack_notices(pack_notices(small)) == small[:MAX_TOLD]
    large = [Notice("roster", bytes([i]) * MAX_NOTICE_BYTES) for i in range(8)]
    assert unpack_notices(pack_notices(large)) == large[:3]


@pytest.mark.parametrize(
    "body",
    [
        packed(*[canonical(Notice("link", b"x"))] * (MAX_TOLD + 1)),
        packed(canonical(Notice("link", b"x"))) + b"\0",
        packed(canonical(Notice("link", b"x")))[:-1],
        zlib.compress(bytes(MAX_TOLD_BYTES + 1)),
        zlib.compress(b"\0\0\0"),
        zlib.compress(b"\0\0\0\x05abc"),
        packed(canonical({"kind": "link", "body": b"x", "more": 1})),
        packed(canonical({"body": b"x", "kind": "link"})),
        packed(canonical({"kind": "gossip", "body": b"x"})),
        packed(canonical({"kind": "link", "body": b""})),
        packed(b""),
    ],
)
def test_malformed_messages_are_refused(body: bytes) -> None:
    with pytest.raises(PeerCheating):
        unpack_notices(body)


def test_keys_name_kind_and_content() -> None:
    one = Notice("link", b"x")
    assert len(one.key()) == KEY_BYTES
    assert len({one.key(), Notice("anchor", b"x").key(), Notice("link", b"y").key()}) == 3
    keys = [one.key(), bytes(KEY_BYTES)]
    assert read_known(NoticesAsked(2), b"".join(keys)) == set(keys)
    for size in (0, KEY_BYTES, 2 * KEY_BYTES + 1):
        with pytest.raises(PeerCheating):
            read_known(NoticesAsked(2), bytes(size))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"type": "noticesasked", "known": 1 << 20}, NoticesAsked)
