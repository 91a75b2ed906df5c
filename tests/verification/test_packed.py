from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import TinyModels
from tests.scenarios.network import SAMPLINGS, request_for
from tests.verification.answers import make
from unisono.errors import ReceiptError
from unisono.models.rows import hash_of
from unisono.types import GenerationRequest, LayerRange, ModelId, SessionId, request_hash
from unisono.verification.packed import MAGIC, pack, unpack
from unisono.verification.receipt import VERSION, Receipt, from_json, to_json
from unisono.verification.replay import verify
from unisono.wire.claims import HopClaim, rows_root, token_hash, tokens_root
from unisono.wire.identity import Identity

GATEWAY = Identity.from_seed(b"\x09" * 32)
NODES = [Identity.from_seed(bytes([n]) * 32) for n in range(1, 9)]


def receipt(hops: int, positions: int, token: int = 200_000) -> Receipt:
    """Of an answer that fills the second half of its positions; tokens take three bytes."""
    prompt = tuple(range(token, token + positions // 2))
    tokens = tuple(range(token, token + positions - len(prompt) + 1))
    request = GenerationRequest(ModelId("ab" * 32), prompt, len(tokens))
    rows_in = rows_root([token_hash(t) for t in (*prompt, *tokens[:-1])])
    claims: list[HopClaim] = []
    for hop, node in enumerate(NODES[:hops]):
        out = [hash_of(b"%d %d" % (hop, p)) for p in range(positions)]
        claim = HopClaim(
            session=SessionId("5e" * 16),
            request=request_hash(request),
            gateway=GATEWAY.node_id,
            model=request.model,
            node=node.node_id,
            hop=hop,
            layers=LayerRange(9 * hop, 9 * hop + 9),
            positions=positions,
            rows_in=rows_in,
            rows_out=rows_root(out),
            out_tags=b"".join(h[:3] for h in out),
            tokens=tokens_root(tokens) if hop == hops - 1 else "",
            epoch=29_000_000 + hop % 2,
        )
        claims.append(claim.signed_by(node))
        rows_in = claim.rows_out
    return Receipt(
        version=VERSION,
        id="1d" * 16,
        request=request,
        tokens=tokens,
        finish_reason="length",
        hops=tuple(claims),
        gateway=GATEWAY.node_id,
        created=1_750_000_000,
        elapsed_us=3_000_000,
        first_token_us=500_000,
        attempts=1,
    ).signed_by(GATEWAY)


@pytest.mark.parametrize("hops", [1, 2, 4, 6])
@pytest.mark.parametrize("positions", [64, 256, 1024, 4096])
def test_a_receipt_beside_its_tokens_takes_1_kb_and_200_bytes_per_hop_and_64_positions(
    hops: int, positions: int
) -> None:
    made = receipt(hops, positions)
    size = len(pack(made))
    beside = size - 3 * (len(made.request.prompt) + len(made.tokens))
    assert beside <= 1024 + 200 * hops * (positions // 64)
    assert beside <= 256 + hops * (150 + 3 * positions)
    if positions == 64 and hops <= 4:
        assert size <= 1024 + 200 * hops
    assert len(to_json(made)) > 1.4 * size


@given(st.integers(1, 4), st.integers(2, 40), st.sampled_from([0, 200, 60_000, 1 << 31]))
def test_what_is_packed_comes_back(hops: int, positions: int, token: int) -> None:
    made = receipt(hops, positions, token)
    assert unpack(pack(made)) == made


def test_a_real_receipt_is_valid_after_packing(tiny_models: TinyModels) -> None:
    request = request_for(
        tiny_models.llama, sampling=SAMPLINGS["penalised"], stop_tokens=(1, 319), stop=("never",)
    )
    made = make(tiny_models.llama, 2, request).receipt
    again = unpack(pack(made))
    assert again == made
    assert verify(again, tiny_models.store).verdict == "VALID"


def test_neighbours_that_disagree_are_packed_as_they_are() -> None:
    made = receipt(2, 8)
    liar = msgspec.structs.replace(made.hops[1], rows_in="0f" * 32).signed_by(NODES[1])
    made = msgspec.structs.replace(made, hops=(made.hops[0], liar)).signed_by(GATEWAY)
    assert unpack(pack(made)) == made


def test_claims_that_do_not_fit_are_left_to_json() -> None:
    made = receipt(2, 8)
    for change in ({"hop": 7}, {"request": "00" * 32}, {"positions": 3}, {"node": "x"}):
        odd = msgspec.structs.replace(made.hops[1], **change)
        with pytest.raises(ReceiptError, match="cannot be packed"):
            pack(msgspec.structs.replace(made, hops=(made.hops[0], odd)))
    with pytest.raises(ReceiptError, match="cannot be packed"):
        pack(msgspec.structs.replace(made, hops=()))


@given(st.data())
def test_altered_bytes_are_refused_or_another_receipt(data: st.DataObject) -> None:
    packed = pack(receipt(2, 8))
    at = data.draw(st.integers(0, len(packed) - 1))
    other = packed[:at] + bytes([packed[at] ^ data.draw(st.integers(1, 255))]) + packed[at + 1 :]
    try:
        found = unpack(other)
    except ReceiptError:
        return
    signed = all(claim.signature_is_good() for claim in found.hops) and found.signature_is_good()
    assert not signed


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for start in (b"", MAGIC, MAGIC + bytes([VERSION])):
        with pytest.raises(ReceiptError):
            unpack(start + data)


@pytest.mark.parametrize("version", [0, 1, VERSION + 1])
def test_another_version_is_named(version: int) -> None:
    data = bytearray(pack(receipt(1, 8)))
    data[len(MAGIC)] = version
    with pytest.raises(ReceiptError, match=f"version {version}; this program reads"):
        unpack(bytes(data))


def test_both_forms_say_the_same() -> None:
    made = receipt(1, 8)
    assert from_json(to_json(unpack(pack(made)))) == made
    assert json.loads(to_json(made))["id"] == "1d" * 16
