from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import TinyModels
from tests.verification.answers import Made, make
from unisono.errors import ReceiptError
from unisono.verification.receipt import MAX_BYTES, VERSION, from_json, to_json


@pytest.fixture(scope="module")
def good(tiny_models: TinyModels) -> Made:
    return make(tiny_models.llama, 2)


def test_a_receipt_survives_its_json(good: Made) -> None:
    again = from_json(to_json(good.receipt))
    assert again == good.receipt
    assert again.signature_is_good()


def test_speed_leaves_the_first_token_out(good: Made) -> None:
    assert good.receipt.tokens_per_second == pytest.approx(11 / 0.12)
    assert good.altered(elapsed_us=0).tokens_per_second == 0
    assert good.altered(tokens=(1,)).tokens_per_second == 0


def document(made: Made) -> dict[str, Any]:
    return json.loads(to_json(made.receipt))


@pytest.mark.parametrize(
    "path", [(), ("request",), ("request", "sampling"), ("hops", 0), ("hops", 1, "layers")], ids=str
)
def test_fields_that_no_receipt_has_are_refused(good: Made, path: tuple[Any, ...]) -> None:
    whole = document(good)
    part = whole
    for key in path:
        part = part[key]
    part["note"] = 1
    with pytest.raises(ReceiptError, match="unknown field `note`"):
        from_json(json.dumps(whole).encode())


@pytest.mark.parametrize("field", ["request", "tokens", "hops", "gateway", "created", "attempts"])
def test_a_missing_field_is_refused(good: Made, field: str) -> None:
    whole = document(good)
    del whole[field]
    with pytest.raises(ReceiptError, match=f"missing required field `{field}`"):
        from_json(json.dumps(whole).encode())


@pytest.mark.parametrize("version", [0, 1, VERSION + 1, -1])
def test_another_version_is_named(good: Made, version: int) -> None:
    data = json.dumps(document(good) | {"version": version}).encode()
    with pytest.raises(
        ReceiptError, match=f"version {version}; this program reads version {VERSION}"
    ):
        from_json(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"not json",
        b"\xff\xfe",
        b'{"version": 1',
        b"[" * 100_000,
        b'{"version": "1"}',
        b'{"version": 1, "tokens": [1.5]}',
        b'{"version": 1, "tokens": ["\\ud800"]}',
    ],
    ids=range(10),
)
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    with pytest.raises(ReceiptError, match="not a receipt"):
        from_json(data)


def test_a_signature_that_is_not_base64_is_refused(good: Made) -> None:
    data = json.dumps(document(good) | {"signature": "!!!"}).encode()
    with pytest.raises(ReceiptError, match="not a receipt"):
        from_json(data)


def test_a_file_too_large_is_refused_unread() -> None:
    with pytest.raises(ReceiptError, match="larger than 16 MiB"):
        from_json(b" " * (MAX_BYTES + 1))
