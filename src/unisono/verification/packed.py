"""A receipt in few bytes: nothing is stored twice, and nothing that follows from the rest.

About 230 bytes, 3 for each token, 140 for each hop, and 3 for each hop and position (the tags that
locate a difference). JSON (`verification.receipt`) takes up to three times as much: it is for
reading.
"""

from __future__ import annotations

import msgspec

from unisono.errors import ReceiptError
from unisono.types import (
    GenerationRequest,
    LayerRange,
    ModelId,
    NodeId,
    Sampling,
    SessionId,
    canonical,
    request_hash,
)
from unisono.verification.receipt import MAX_BYTES, VERSION, Receipt
from unisono.wire.claims import HopClaim, rows_root, token_hash, tokens_root

MAGIC = b"UNR"
_START = MAGIC + bytes([VERSION])
"""First bytes of a packed receipt: no JSON begins so."""


class _Hop(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: bytes
    stop: int
    """The layer behind its last one; it begins where the hop before ends."""
    rows_in: bytes
    """Empty if they are the rows out of the hop before, or the tokens."""
    rows_out: bytes
    tags: bytes
    epochs: int
    """How many epochs after the first hop."""
    signature: bytes


class _Packed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    id: bytes
    model: bytes
    prompt: bytes
    max_tokens: int
    sampling: bytes
    """Empty of default settings."""
    stop_tokens: tuple[int, ...]
    stop: tuple[str, ...]
    tokens: bytes
    finish_reason: str
    gateway: bytes
    session: bytes
    epoch: int
    hops: tuple[_Hop, ...]
    created: int
    elapsed_us: int
    first_token_us: int
    attempts: int
    signature: bytes


def pack(receipt: Receipt) -> bytes:
    """The packed form, from which exactly this receipt comes back.

    Raises:
        ReceiptError: its claims do not fit together (then JSON is the only form), or it has
            votes of a quorum.
    """
    try:
        data = _START + canonical(_packed(receipt))
        if unpack(data) == receipt:
            return data
    except (ValueError, OverflowError, IndexError, ReceiptError):
        pass
    raise ReceiptError(
        f"receipt {receipt.id} cannot be packed: its claims do not fit its request, or it holds a "
        "quorum's votes; use the JSON form"
    )


def unpack(data: bytes) -> Receipt:
    """Read a packed receipt strictly. What it says is for `verify` to judge.

    Raises:
        ReceiptError: it is too large, or none.
    """
    start = data[: len(_START)]
    if start != _START and start[:-1] == MAGIC:
        raise ReceiptError(
            f"the packed receipt has version {start[-1]}; this program reads version {VERSION}"
        )
    if len(data) > MAX_BYTES or start != _START:
        raise ReceiptError(f"not a packed receipt of at most {MAX_BYTES >> 20} MiB")
    try:
        packed = msgspec.msgpack.decode(data[len(_START) :], type=_Packed)
        receipt = _unpacked(packed)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise ReceiptError(f"not a packed receipt: {error}") from error
    if _START + canonical(packed) != data:
        raise ReceiptError("the packed receipt is not in its canonical encoding")
    return receipt


def _packed(receipt: Receipt) -> _Packed:
    request, first = receipt.request, receipt.hops[0]
    hops: list[_Hop] = []
    due = _tokens_in(request, receipt.tokens)
    for claim in receipt.hops:
        hops.append(
            _Hop(
                bytes.fromhex(claim.node),
                claim.layers.stop,
                b"" if claim.rows_in == due else bytes.fromhex(claim.rows_in),
                bytes.fromhex(claim.rows_out),
                claim.out_tags,
                claim.epoch - first.epoch,
                claim.signature,
            )
        )
        due = claim.rows_out
    return _Packed(
        bytes.fromhex(receipt.id),
        bytes.fromhex(request.model),
        _joined(request.prompt),
        request.max_tokens,
        b"" if request.sampling == Sampling() else canonical(request.sampling),
        request.stop_tokens,
        request.stop,
        _joined(receipt.tokens),
        receipt.finish_reason,
        bytes.fromhex(receipt.gateway),
        bytes.fromhex(first.session),
        first.epoch,
        tuple(hops),
        receipt.created,
        receipt.elapsed_us,
        receipt.first_token_us,
        receipt.attempts,
        receipt.signature,
    )


def _unpacked(packed: _Packed) -> Receipt:
    sampling = Sampling()
    if packed.sampling:
        sampling = msgspec.msgpack.decode(packed.sampling, type=Sampling)
    request = GenerationRequest(
        ModelId(packed.model.hex()),
        _split(packed.prompt),
        packed.max_tokens,
        sampling,
        packed.stop_tokens,
        packed.stop,
    )
    tokens = _split(packed.tokens)
    gateway, asked = NodeId(packed.gateway.hex()), request_hash(request)
    claims: list[HopClaim] = []
    due, layer = _tokens_in(request, tokens), 0
    for index, hop in enumerate(packed.hops):
        last = index == len(packed.hops) - 1
        claims.append(
            HopClaim(
                session=SessionId(packed.session.hex()),
                request=asked,
                gateway=gateway,
                model=request.model,
                node=NodeId(hop.node.hex()),
                hop=index,
                layers=LayerRange(layer, hop.stop),
                positions=len(request.prompt) + len(tokens) - 1,
                rows_in=hop.rows_in.hex() or due,
                rows_out=hop.rows_out.hex(),
                out_tags=hop.tags,
                tokens=tokens_root(tokens) if last else "",
                epoch=packed.epoch + hop.epochs,
                signature=hop.signature,
            )
        )
        due, layer = hop.rows_out.hex(), hop.stop
    return Receipt(
        version=VERSION,
        id=packed.id.hex(),
        request=request,
        tokens=tokens,
        finish_reason=packed.finish_reason,
        hops=tuple(claims),
        gateway=gateway,
        created=packed.created,
        elapsed_us=packed.elapsed_us,
        first_token_us=packed.first_token_us,
        attempts=packed.attempts,
        signature=packed.signature,
    )


def _tokens_in(request: GenerationRequest, tokens: tuple[int, ...]) -> str:
    return rows_root([token_hash(t) for t in (*request.prompt, *tokens[:-1])])


def _joined(tokens: tuple[int, ...]) -> bytes:
    """The bytes of one token, then each token in as many."""
    width = max(1, (max(tokens, default=0).bit_length() + 7) // 8)
    return bytes([width]) + b"".join(t.to_bytes(width, "little") for t in tokens)


def _split(data: bytes) -> tuple[int, ...]:
    width = data[0] if data else 0
    if not 1 <= width <= 4 or (len(data) - 1) % width:
        raise ValueError(f"{len(data)} bytes of tokens")
    tokens = tuple(
        int.from_bytes(data[i : i + width], "little") for i in range(1, len(data), width)
    )
    if _joined(tokens) != data:
        raise ValueError("tokens in more bytes than they need")
    return tokens
