"""No field of a receipt can be altered without `verify` noticing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TinyModels
from tests.scenarios.network import SAMPLINGS, request_for
from tests.verification.answers import Made, make
from unisono.errors import ReceiptError
from unisono.models.store import ModelStore
from unisono.types import Q16, LayerRange, ModelId, Sampling, SessionId
from unisono.verification.receipt import Receipt, from_json, to_json
from unisono.verification.replay import verify
from unisono.verification.verdict import Verdict
from unisono.wire.claims import tokens_root
from unisono.wire.identity import Identity

Path = tuple[str | int, ...]


@pytest.fixture(scope="module")
def good(tiny_models: TinyModels) -> Made:
    request = request_for(
        tiny_models.llama,
        sampling=SAMPLINGS["penalised"],
        stop_tokens=(1, 319),
        stop=("never said", "\0"),
    )
    made = make(tiny_models.llama, 2, request)
    assert made.receipt.finish_reason == "length"
    return made


def kind(verdict: Verdict) -> str:
    assert verdict.verdict == "INVALID"
    assert verdict.fault is not None
    assert verdict.message == verdict.fault.message
    return verdict.fault.kind


def test_the_receipt_itself_is_valid(good: Made, tiny_models: TinyModels) -> None:
    verdict = verify(good.receipt, tiny_models.store)
    assert verdict.verdict == "VALID", verdict
    assert verdict.fault is None
    assert verdict.positions == 31


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every number and string of a document; of long lists, the ends."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for i in sorted({0, len(value) // 2, len(value) - 1} & {*range(len(value))}):
            yield from leaves(value[i], (*path, i))
    else:
        yield path


def at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def changed(document: dict[str, Any], path: Path, value: Any) -> bytes:
    copy = json.loads(json.dumps(document))
    at(copy, path[:-1])[path[-1]] = value
    return json.dumps(copy).encode()


def others(value: Any) -> list[Any]:
    """Values near a value and far from it."""
    if isinstance(value, int):
        near = [value + 1, value - 1, -value - 1, value + 2**32]
        return [*near, 2**63, 2**64, -(2**63) - 1, 10**30]
    flipped = ("1" if value[:1] != "1" else "2") + value[1:]
    made = [flipped, "", value + "AAAA", value[::-1], "\0", "ü" * 9]
    return [other for other in made if other != value]


def not_valid(data: bytes, store: ModelStore) -> bool:
    """Whether a document is refused as unreadable or found INVALID."""
    try:
        receipt = from_json(data)
    except ReceiptError:
        return True
    return verify(receipt, store).verdict != "VALID"


def test_every_field_is_covered_by_the_alterations_below(good: Made) -> None:
    """If a field is added, the receipt above must give it a value to alter."""
    names = {key for path in leaves(json.loads(to_json(good.receipt))) for key in path}
    for struct in (Receipt, type(good.receipt.request), Sampling, type(good.receipt.hops[0])):
        # see test_quorum and test_ensemble; what audits found is no part of the answer
        apart = {"quorum", "ensemble", "distributions", "audits"}
        assert {*struct.__struct_fields__} - names <= apart


def test_any_value_replaced_by_another_is_noticed(good: Made, tiny_models: TinyModels) -> None:
    document = json.loads(to_json(good.receipt))
    tried = 0
    for path in leaves(document):
        for value in others(at(document, path)):
            data = changed(document, path, value)
            assert not_valid(data, tiny_models.store), f"{path} may be {value!r}"
            tried += 1
    assert tried > 300


def test_list_items_that_are_added_removed_or_swapped_are_noticed(
    good: Made, tiny_models: TinyModels
) -> None:
    document = json.loads(to_json(good.receipt))
    lists: list[Path] = [
        ("tokens",),
        ("hops",),
        ("request", "prompt"),
        ("request", "stop_tokens"),
        ("request", "stop"),
        ("request", "sampling", "logit_bias"),
    ]
    for path in lists:
        items = at(document, path)
        for value in ([*items, items[0]], items[:-1], items[1:], [], items[::-1]):
            assert not_valid(changed(document, path, value), tiny_models.store), (path, value)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_arbitrary_alterations_are_noticed(
    good: Made, tiny_models: TinyModels, data: st.DataObject
) -> None:
    document = json.loads(to_json(good.receipt))
    path = data.draw(st.sampled_from([*leaves(document)]))
    value = at(document, path)
    other = data.draw(st.integers() if isinstance(value, int) else st.text())
    if other != value:
        assert not_valid(changed(document, path, other), tiny_models.store)


# The same, by a gateway that signs what it altered.

GATEWAYS_OWN = {"id", "created", "elapsed_us", "first_token_us", "attempts", "signature", "version"}
"""What only the gateway vouches for, or what its signing replaces."""


def test_a_gateway_can_sign_only_its_own_fields_anew(good: Made, tiny_models: TinyModels) -> None:
    document = json.loads(to_json(good.receipt))
    tried = 0
    for path in leaves(document):
        if path[0] in GATEWAYS_OWN:
            continue
        for value in others(at(document, path)):
            try:
                receipt = from_json(changed(document, path, value))
                receipt = receipt.signed_by(good.gateway)
            except (ReceiptError, OverflowError):
                continue
            verdict = verify(receipt, tiny_models.store)
            assert verdict.verdict != "VALID", f"{path} may be {value!r}"
            tried += 1
    assert tried > 200


@pytest.mark.parametrize("field", ["created", "elapsed_us", "first_token_us", "attempts"])
def test_what_the_gateway_says_of_itself_cannot_be_altered_by_others(
    good: Made, tiny_models: TinyModels, field: str
) -> None:
    value = getattr(good.receipt, field) + 1
    verdict = verify(msgspec.structs.replace(good.receipt, **{field: value}), tiny_models.store)
    assert kind(verdict) == "gateway_signature"
    assert "broken signature: the gateway" in verdict.message


def test_another_gateway_cannot_take_the_receipt_for_its_own(
    good: Made, tiny_models: TinyModels
) -> None:
    thief = Identity.generate()
    stolen = msgspec.structs.replace(good.receipt, gateway=thief.node_id).signed_by(thief)
    verdict = verify(stolen, tiny_models.store)
    assert kind(verdict) == "claims_inconsistent"
    assert "signed for another gateway" in verdict.message
    signed_only = good.receipt.signed_by(thief)
    assert kind(verify(signed_only, tiny_models.store)) == "gateway_signature"


def test_an_altered_prompt_has_its_own_message(good: Made, tiny_models: TinyModels) -> None:
    request = good.receipt.request
    altered = msgspec.structs.replace(request, prompt=(*request.prompt[:-1], 7))
    for receipt in (
        msgspec.structs.replace(good.receipt, request=altered),
        good.altered(request=altered),
    ):
        verdict = verify(receipt, tiny_models.store)
        assert kind(verdict) == "request_altered"
        assert verdict.message.startswith("altered request: the prompt")


@pytest.mark.parametrize(
    "sampling", [{"seed": 1}, {"temperature": 1}, {"top_p": 9}, {"logit_bias": ()}], ids=str
)
def test_altered_settings_are_an_altered_request(
    good: Made, tiny_models: TinyModels, sampling: dict[str, Any]
) -> None:
    request = good.receipt.request
    other = msgspec.structs.replace(request.sampling, **sampling)
    altered = msgspec.structs.replace(request, sampling=other)
    assert kind(verify(good.altered(request=altered), tiny_models.store)) == "request_altered"


@pytest.mark.parametrize("hop", [0, 1])
@pytest.mark.parametrize(
    "changes",
    [
        {"positions": 30},
        {"rows_in": "00" * 32},
        {"rows_out": "00" * 32},
        {"out_tags": b"\0" * 93},
        {"layers": LayerRange(0, 4)},
        {"node": "ab" * 32},
        {"session": SessionId("00" * 16)},
        {"signature": b"\0" * 64},
        {"signature": b""},
    ],
    ids=lambda c: next(iter(c)),
)
def test_an_altered_claim_is_a_broken_signature_of_that_hop(
    good: Made, tiny_models: TinyModels, hop: int, changes: dict[str, Any]
) -> None:
    claims = list(good.receipt.hops)
    claims[hop] = msgspec.structs.replace(claims[hop], **changes)
    verdict = verify(good.altered(hops=tuple(claims)), tiny_models.store)
    assert kind(verdict) == "claim_signature"
    assert verdict.fault is not None
    assert verdict.fault.hop == hop
    assert f"broken signature: hop {hop}" in verdict.message


def test_an_unknown_model_is_inconclusive_and_says_so(good: Made, tmp_path: Any) -> None:
    verdict = verify(good.receipt, ModelStore(tmp_path))
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.message.startswith("unknown model: ")
    assert good.receipt.request.model[:12] in verdict.message


def test_an_altered_receipt_of_an_unknown_model_is_invalid_all_the_same(
    good: Made, tmp_path: Any
) -> None:
    verdict = verify(good.altered(tokens=good.receipt.tokens[::-1]), ModelStore(tmp_path))
    assert kind(verdict) == "tokens_altered"


def test_another_model_in_the_request_is_an_altered_request(
    good: Made, tiny_models: TinyModels
) -> None:
    other = msgspec.structs.replace(good.receipt.request, model=tiny_models.gemma.id)
    assert kind(verify(good.altered(request=other), tiny_models.store)) == "request_altered"


# Hops and gateway together: what they sign must fit, and be what the weights give.


def test_claims_must_make_one_chain_through_the_whole_model(
    good: Made, tiny_models: TinyModels
) -> None:
    first, last = good.receipt.hops
    replace = msgspec.structs.replace

    def fault(claims: list[Any]) -> str:
        verdict = verify(good.with_claims(claims), tiny_models.store)
        assert kind(verdict) == "claims_inconsistent"
        return verdict.message

    assert "do not continue at layer 0" in fault([replace(first, layers=LayerRange(1, 2)), last])
    assert "do not continue at layer 2" in fault([first, replace(last, layers=LayerRange(1, 4))])
    assert "ends at layer 3 of 4" in fault([first, replace(last, layers=LayerRange(2, 3))])
    assert "ends at layer 5 of 4" in fault([first, replace(last, layers=LayerRange(2, 5))])
    assert "do not continue" in fault([replace(first, layers=LayerRange(0, 0)), last])
    assert "do not continue" in fault([first, replace(last, hop=0)])
    assert "covers 30 positions; the answer has 31" in fault([first, replace(last, positions=30)])
    assert "another session" in fault([first, replace(last, session=SessionId("00" * 16))])
    assert "another gateway" in fault([first, replace(last, gateway="ab" * 32)])


def test_a_receipt_without_hops_tokens_or_prompt_is_inconsistent(
    good: Made, tiny_models: TinyModels
) -> None:
    for changes in ({"hops": ()}, {"tokens": ()}):
        verdict = verify(good.altered(**changes), tiny_models.store)
        assert kind(verdict) == "claims_inconsistent"


def test_a_hop_and_its_gateway_cannot_agree_on_another_answer(
    good: Made, tiny_models: TinyModels
) -> None:
    tokens = (*good.receipt.tokens[:5], 3, *good.receipt.tokens[6:])
    first, last = good.receipt.hops
    claims = [first, msgspec.structs.replace(last, tokens=tokens_root(tokens))]
    forged = msgspec.structs.replace(good.with_claims(claims), tokens=tokens)
    verdict = verify(forged.signed_by(good.gateway), tiny_models.store)
    # Token 5 went on into the first hop as the row of position 25, which it signed.
    assert kind(verdict) == "rows_in"
    tokens = (*good.receipt.tokens[:-1], 3)
    claims = [first, msgspec.structs.replace(last, tokens=tokens_root(tokens))]
    forged = msgspec.structs.replace(good.with_claims(claims), tokens=tokens)
    verdict = verify(forged.signed_by(good.gateway), tiny_models.store)
    assert kind(verdict) == "sampling"
    assert verdict.fault is not None
    assert (verdict.fault.node, verdict.fault.position) == (last.node, 31)


def test_tags_that_do_not_fit_their_root_are_wrong_rows(
    good: Made, tiny_models: TinyModels
) -> None:
    first, last = good.receipt.hops
    tags = bytearray(first.out_tags)
    tags[3 * 12] ^= 1
    claims = [msgspec.structs.replace(first, out_tags=bytes(tags)), last]
    verdict = verify(good.with_claims(claims), tiny_models.store)
    assert kind(verdict) == "rows_out"
    assert verdict.fault is not None
    assert verdict.fault.position == 12
    claims = [msgspec.structs.replace(first, out_tags=first.out_tags[:-3]), last]
    verdict = verify(good.with_claims(claims), tiny_models.store)
    assert kind(verdict) == "claims_inconsistent"
    assert verdict.message == "hop 0's claim: 90 bytes of tags for 31 positions"
    claims = [msgspec.structs.replace(first, rows_out="00" * 32), last]
    verdict = verify(good.with_claims(claims), tiny_models.store)
    assert kind(verdict) == "rows_out"
    assert "a position its tags do not show" in verdict.message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt": (2**32,)}, "a token of the prompt is out of range"),
        ({"prompt": (-1,)}, "a token of the prompt is out of range"),
        ({"stop_tokens": (-1,)}, "a stop token is out of range"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"sampling": Sampling(temperature=-1)}, "sampling.temperature"),
        ({"sampling": Sampling(top_p=Q16 + 1)}, "sampling.top_p"),
        ({"sampling": Sampling(repetition_penalty=0)}, "sampling.repetition_penalty"),
        ({"sampling": Sampling(seed=-1)}, "sampling.seed"),
        ({"sampling": Sampling(logit_bias=((2, 1), (1, 1)))}, "sampling.logit_bias"),
    ],
    ids=str,
)
def test_numbers_without_meaning_are_malformed_even_if_everybody_signs_them(
    good: Made, tiny_models: TinyModels, changes: dict[str, Any], problem: str
) -> None:
    from unisono.types import request_hash

    request = msgspec.structs.replace(good.receipt.request, **changes)
    # ids out of range have no hash that could be signed
    asked = request_hash(good.receipt.request if "prompt" in changes else request)
    claims = [msgspec.structs.replace(c, request=asked) for c in good.receipt.hops]
    forged = msgspec.structs.replace(good.with_claims(claims), request=request)
    verdict = verify(forged.signed_by(good.gateway), tiny_models.store)
    assert kind(verdict) == "malformed"
    assert problem in verdict.message


def test_a_bias_beyond_the_vocabulary_is_malformed(good: Made, tiny_models: TinyModels) -> None:
    from unisono.types import request_hash

    request = msgspec.structs.replace(
        good.receipt.request, sampling=Sampling(logit_bias=((320, 1),))
    )
    claims = [msgspec.structs.replace(c, request=request_hash(request)) for c in good.receipt.hops]
    forged = msgspec.structs.replace(good.with_claims(claims), request=request)
    verdict = verify(forged.signed_by(good.gateway), tiny_models.store)
    assert kind(verdict) == "malformed"


def test_a_model_id_that_is_none_is_unknown(good: Made, tiny_models: TinyModels) -> None:
    for name in ("", "../..", "g" * 64):
        other = msgspec.structs.replace(good.receipt.request, model=ModelId(name))
        assert kind(verify(good.altered(request=other), tiny_models.store)) == "request_altered"
