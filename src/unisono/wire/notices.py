"""Notices: signed statements for everybody, which members pass on until they are out of date.

    asker → member      NoticesAsked    keys of the notices that I have, in the body
    member → asker      NoticesTold     those that you lack, packed in the body

A member that has something new sends a `NoticesTold` uncalled, and is answered by an empty one.
What a notice says, and whether it is true, is not for this layer: each has a kind and bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from unisono.errors import PeerCheating
from unisono.types import canonical, digest
from unisono.wire.bounds import MessageBase

NoticeKind = Literal["anchor", "link", "binding", "roster", "conviction"]
KINDS: tuple[NoticeKind, ...] = ("anchor", "link", "binding", "roster", "conviction")
"""In the order in which they make sense: each is judged by those before it."""
MAX_NOTICE_BYTES = 256 << 10
MAX_NOTICES = 2048
"""Keys in one message."""
MAX_TOLD = 64
"""Notices in one message."""
MAX_TOLD_BYTES = 1 << 20
"""Of the notices of one message together, before they are compressed."""
KEY_BYTES = 16

_LENGTH = struct.Struct(">I")
_LEVEL = 1


class Notice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One statement in its canonical form."""

    kind: NoticeKind
    body: Annotated[bytes, Meta(min_length=1, max_length=MAX_NOTICE_BYTES)]

    def key(self) -> bytes:
        """What names it in messages: `KEY_BYTES`."""
        return digest("notice/1", self.kind.encode(), self.body)[:KEY_BYTES]


_decoder = msgspec.msgpack.Decoder(Notice)


class NoticesAsked(MessageBase, frozen=True):
    """First message of a stream: tell me what I do not know."""

    known: Annotated[int, Meta(ge=0, le=MAX_NOTICES)]
    """Keys in the body."""


class NoticesTold(MessageBase, frozen=True):
    """Notices, packed in the body; none: the body is empty."""


NoticeMessage = NoticesAsked | NoticesTold


def pack_notices(notices: Iterable[Notice]) -> bytes:
    """As many of the notices as one message holds, in order, as they travel."""
    plain: list[bytes] = []
    room = MAX_TOLD_BYTES
    for notice in notices:
        encoded = canonical(notice)
        room -= _LENGTH.size + len(encoded)
        if room < 0 or len(plain) >= 2 * MAX_TOLD:
            break
        plain += (_LENGTH.pack(len(encoded)), encoded)
    return zlib.compress(b"".join(plain), _LEVEL) if plain else b""


def unpack_notices(body: bytes | memoryview) -> list[Notice]:
    """The notices of a `NoticesTold`.

    Raises:
        PeerCheating: the bytes are not what `pack_notices` makes, or too many.
    """
    if not len(body):
        return []
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(body, MAX_TOLD_BYTES + 1)
    except zlib.error as error:
        raise PeerCheating(f"the packed notices do not open: {error}") from error
    if len(plain) > MAX_TOLD_BYTES or not inflater.eof or inflater.unused_data:
        raise PeerCheating(
            f"packed notices have at most {MAX_TOLD_BYTES} bytes, and nothing follows them"
        )
    notices: list[Notice] = []
    at = 0
    while at < len(plain):
        start = at + _LENGTH.size
        if start > len(plain) or len(notices) >= MAX_TOLD:
            raise PeerCheating(f"the packed notices are cut, or more than {MAX_TOLD}")
        at = start + _LENGTH.unpack_from(plain, at)[0]
        if at > len(plain):
            raise PeerCheating("the packed notices end within a notice")
        notices.append(_decode(plain[start:at]))
    return notices


def read_known(message: NoticesAsked, body: bytes | memoryview) -> frozenset[bytes]:
    """The keys of a `NoticesAsked`.

    Raises:
        PeerCheating: the body has another size than the message says.
    """
    if len(body) != message.known * KEY_BYTES:
        raise PeerCheating(f"{len(body)} bytes of body for {message.known} keys of notices")
    plain = bytes(body)
    return frozenset(plain[i : i + KEY_BYTES] for i in range(0, len(plain), KEY_BYTES))


def _decode(data: bytes) -> Notice:
    try:
        notice = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerCheating(f"the bytes are not a notice: {error}") from error
    if canonical(notice) != data:
        raise PeerCheating("a notice is not in its canonical form")
    return notice
