from __future__ import annotations

import contextlib
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.routing.records import KEYS, record

from unisono.errors import PeerCheating, PeerRefused
from unisono.types import canonical
from unisono.wire.gossip_messages import (
    DIGEST_BYTES,
    MAX_DIGEST,
    MAX_PACKED_BYTES,
    MAX_RECORD_BYTES,
    Exchange,
    Region,
    decode_record,
    digest_line,
    pack,
    read_digest,
    read_keys,
    split_body,
    unpack,
)


@given(st.lists(st.binary(max_size=600), max_size=40))
def test_packed_records_come_back_as_they_were(records: list[bytes]) -> None:
    assert unpack(pack(records)) == records


@given(st.binary(max_size=200))
def test_whatever_arrives_is_unpacked_or_refused_as_cheating(body: bytes) -> None:
    with contextlib.suppress(PeerCheating):
        unpack(body)


@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=9), st.data())
def test_a_body_that_is_cut_or_continued_is_refused(
    records: list[bytes], data: st.DataObject
) -> None:
    body = pack(records)
    with pytest.raises(PeerCheating):
        unpack(body[: data.draw(st.integers(1, len(body) - 1))])
    with pytest.raises(PeerCheating):
        unpack(body + b"x")


def test_a_body_that_unpacks_to_more_than_was_agreed_is_refused() -> None:
    bomb = pack([bytes(60_000)] * 100)
    assert len(bomb) < MAX_PACKED_BYTES / 5
    with pytest.raises(PeerCheating, match="at most"):
        unpack(bomb)
    with pytest.raises(PeerCheating, match="more than 3"):
        unpack(pack([b"x"] * 4), 3)


def test_a_length_beyond_the_end_is_refused() -> None:
    whole = zlib.decompressobj(zdict=_dictionary()).decompress(pack([b"abc"]))
    assert whole == b"\x00\x03abc"
    for bad in (b"\x00", b"\x00\x04abc"):
        deflater = zlib.compressobj(1, zdict=_dictionary())
        with pytest.raises(PeerCheating):
            unpack(deflater.compress(bad) + deflater.flush())


def _dictionary() -> bytes:
    from unisono.wire import gossip_messages

    return gossip_messages._DICTIONARY


def test_a_record_alone_takes_under_three_hundred_bytes() -> None:
    made = record(0, 0, 12, sign=True, sequence=1_700_000_012_345, expires=1_700_000_027_345)
    assert len(pack([canonical(made)])) < 300


def test_a_record_is_read_only_from_its_canonical_form() -> None:
    made = record(0, 0, 2, sign=True)
    assert decode_record(canonical(made)) == made
    fields = msgspec.to_builtins(made, builtin_types=(bytes,))
    for bad in (
        msgspec.msgpack.encode(dict(reversed(fields.items()))),
        msgspec.msgpack.encode({**fields, "more": 1}),
        canonical(made)[:-1],
        msgspec.msgpack.encode({**fields, "uncertainty": 2_000_000}),
    ):
        with pytest.raises(PeerRefused) as refused:
            decode_record(bad)
        assert refused.value.code == "malformed"
    with pytest.raises(PeerRefused) as refused:
        decode_record(bytes(MAX_RECORD_BYTES + 1))
    assert refused.value.code == "oversized"


@given(st.dictionaries(st.binary(min_size=8, max_size=8), st.integers(0, (1 << 63) - 1)))
def test_a_digest_is_read_as_it_was_written(lines: dict[bytes, int]) -> None:
    written = b"".join(digest_line(k, n) for k, n in lines.items())
    assert len(written) == DIGEST_BYTES * len(lines)
    assert read_digest(written) == lines
    assert list(read_keys(b"".join(lines))) == list(lines)


def test_a_body_shorter_than_announced_is_refused() -> None:
    head, rest = split_body(b"abcdef", 4)
    assert (bytes(head), bytes(rest)) == (b"abcd", b"ef")
    with pytest.raises(PeerCheating):
        split_body(b"abc", 4)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Region(2, 1),
        lambda: Region(1, 0),
        lambda: Exchange(0, 0, None, 3, b""),
        lambda: Exchange(0, 0, None, 0, b"short"),
    ],
)
def test_messages_that_contradict_themselves_cannot_be_built(build: object) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        build()  # type: ignore[operator]


def test_bounds_leave_room_for_a_whole_view() -> None:
    assert MAX_DIGEST * DIGEST_BYTES < MAX_PACKED_BYTES
    made = canonical(record(0, 0, 2, sign=True))
    assert len(made) < MAX_RECORD_BYTES / 3
    assert KEYS[0].node_id in made.decode("latin-1")
