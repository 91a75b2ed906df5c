"""What every message shares: its base, the types of its fields, and their bounds."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.types import LayerRange, ModelId, NodeId, PeerAddress, Sampling, SessionId, is_hex

MAX_POSITIONS = 1 << 20
MAX_HOPS = 256
MAX_LAYERS = 4096
MAX_ROWS = 8192
"""Rows in one frame; their widths must fit in a header."""
MAX_DRAFT_ROWS = 64
"""Rows or tokens of an answer in one message."""
MAX_BUNDLE = 4096
"""Messages in a bundle."""
MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIAS = 1024
MAX_ADDRESSES = 8
MAX_ADDRESS_CHARACTERS = 262
"""A DNS name, a colon, a port."""
MAX_MESSAGE_CHARACTERS = 1024

# `\Z`, not `$`: the latter also matches before a final newline.
Session = Annotated[SessionId, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Node = Annotated[NodeId, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Model = Annotated[ModelId, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Code = Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,64}\Z")]
Text = Annotated[str, Meta(max_length=MAX_MESSAGE_CHARACTERS)]
Position = Annotated[int, Meta(ge=0, lt=MAX_POSITIONS)]
Positions = Annotated[int, Meta(ge=1, le=MAX_POSITIONS)]
Count = Annotated[int, Meta(ge=0, le=MAX_POSITIONS)]
Hop = Annotated[int, Meta(ge=0, lt=MAX_HOPS)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 32)]
Natural = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
StopTokens = Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_TOKENS)]


class MessageBase(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag=str.lower
):
    """A tagged struct: the tag is the class's name in lower case."""


def check(good: bool, problem: str) -> None:
    # msgspec turns a ValueError raised while decoding into a ValidationError.
    if not good:
        raise ValueError(f"out of bounds: {problem}")


def small(value: int) -> bool:
    return -(1 << 31) <= value < 1 << 31


def check_layers(layers: LayerRange, *, empty: bool) -> None:
    least = 0 if empty else 1
    check(
        0 <= layers.start <= layers.stop <= MAX_LAYERS and layers.count >= least,
        f"layers {layers}",
    )


def check_address(address: PeerAddress | None) -> None:
    if address is None:
        return
    check(is_hex(address.node, 32), "an address with a malformed node id")
    check(0 < len(address.transport) <= 16, "an address with a malformed transport")
    check(0 < len(address.addresses) <= MAX_ADDRESSES, f"{len(address.addresses)} addresses")
    for text in address.addresses:
        check(0 < len(text) <= MAX_ADDRESS_CHARACTERS, f"an address of {len(text)} characters")


def check_sampling(sampling: Sampling) -> None:
    # Only what keeps arithmetic in range; what the numbers mean is for the sampler to judge.
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ):
        check(small(getattr(sampling, name)), f"sampling {name}")
    check(0 <= sampling.seed < 1 << 63, "sampling seed")
    check(len(sampling.logit_bias) <= MAX_LOGIT_BIAS, f"{len(sampling.logit_bias)} biases")
    previous = -1
    for token, bias in sampling.logit_bias:
        check(previous < token < 1 << 32 and small(bias), f"bias of token {token}")
        previous = token
