"""Frames: the unit that a stream carries.

    offset  size  field
    0       2     magic, "UN"
    2       1     version, 2
    3       1     flags, 0
    4       4     header length, little-endian
    8       4     body length, little-endian
    12            header: one message, as MessagePack
                  body: raw bytes whose meaning the message gives

A message has exactly one encoding: what a peer sent is encoded again and compared.
"""

from __future__ import annotations

import struct

import msgspec

from unisono.errors import PeerCheating
from unisono.wire.messages import Message

MAGIC = b"UN"
VERSION = 3
"""Changes with what nodes sign, too: others would see false claims where there is an old form."""
FRAME_PREFIX = 12
"""Bytes before the header."""
MAX_HEADER = 16 << 10
"""Bytes; most headers have under 300."""
MAX_BODY = 64 << 20
"""Bytes; more rows than this go in several frames."""
MAX_FRAME = FRAME_PREFIX + MAX_HEADER + MAX_BODY

_PREFIX = struct.Struct("<2sBBII")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode_frame(message: Message, body: bytes | bytearray | memoryview = b"") -> bytes:
    """One message and its body as a frame.

    Raises:
        ValueError: the message breaks its own bounds, or header or body are too large. That
            is a bug of the sender: the peer would call it cheating.
    """
    header = _encoder.encode(message)
    if len(header) > MAX_HEADER or len(body) > MAX_BODY:
        raise ValueError(
            f"a frame holds {MAX_HEADER} bytes of header and {MAX_BODY} of body; this "
            f"{type(message).__name__} has {len(header)} and {len(body)}"
        )
    try:
        _decoder.decode(header)
    except msgspec.ValidationError as error:
        raise ValueError(f"this {type(message).__name__} is out of bounds: {error}") from error
    prefix = _PREFIX.pack(MAGIC, VERSION, 0, len(header), len(body))
    return b"".join((prefix, header, body))


def frame_size(prefix: bytes | bytearray | memoryview) -> int:
    """How many bytes the frame has that starts with `prefix`, the prefix included.

    Looks at the first `FRAME_PREFIX` bytes only, so that a reader knows before it allocates.

    Raises:
        PeerCheating: the bytes do not start a frame of this version, or its size is over the
            limits.
    """
    if len(prefix) < FRAME_PREFIX:
        raise PeerCheating(f"a frame starts with {FRAME_PREFIX} bytes; got {len(prefix)}")
    magic, version, flags, header, body = _PREFIX.unpack_from(prefix)
    if magic != MAGIC:
        raise PeerCheating(f"a frame starts with {MAGIC!r}; got {magic!r}")
    if version != VERSION or flags:
        raise PeerCheating(
            f"expected a frame of version {VERSION} with flags 0; got version {version} with "
            f"flags {flags}; the peer may run another release"
        )
    if header > MAX_HEADER:
        raise PeerCheating(f"a header has at most {MAX_HEADER} bytes; this one claims {header}")
    if body > MAX_BODY:
        raise PeerCheating(f"a body has at most {MAX_BODY} bytes; this one claims {body}")
    return FRAME_PREFIX + header + body


def decode_frame(frame: bytes) -> tuple[Message, memoryview]:
    """The message of a frame and a view of its body.

    Raises:
        PeerCheating: anything but the one encoding of a message that keeps its bounds.
    """
    size = frame_size(frame)
    if len(frame) != size:
        raise PeerCheating(f"the frame claims {size} bytes and has {len(frame)}")
    _, _, _, header_size, _ = _PREFIX.unpack_from(frame)
    view = memoryview(frame)
    header = frame[FRAME_PREFIX : FRAME_PREFIX + header_size]
    try:
        message = _decoder.decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerCheating(f"the header is not a message: {error}") from error
    # Refuses repeated fields, reordered fields and integers longer than they need to be.
    if _encoder.encode(message) != header:
        raise PeerCheating(f"the header is not the canonical form of a {type(message).__name__}")
    return message, view[FRAME_PREFIX + header_size :]
