"""Receipts of answers that came from outside the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from unisono.cli.app import app
from unisono.errors import ReceiptError
from unisono.types import ModelId
from unisono.verification.receipt import VERSION, from_json, read_json, to_json
from unisono.verification.unverified import UnverifiedReceipt
from unisono.wire.identity import Identity

GATEWAY = Identity.generate()
RECEIPT = UnverifiedReceipt(
    version=VERSION,
    id="ab" * 16,
    verified=False,
    source="https://api.example.com/v1",
    source_model="far-model",
    model=ModelId("7b" * 32),
    request="01" * 32,
    answer="02" * 32,
    finish_reason="stop",
    gateway=GATEWAY.node_id,
    created=1_700_000_000,
    elapsed_us=5,
    first_token_us=7,
).signed_by(GATEWAY)


def verified(tmp_path: Path, data: bytes, *flags: str) -> Any:
    path = tmp_path / "receipt.json"
    path.write_bytes(data)
    return CliRunner().invoke(app, ["verify", str(path), *flags])


def test_it_survives_its_json_and_is_no_receipt_of_the_network() -> None:
    assert read_json(to_json(RECEIPT)) == RECEIPT
    assert RECEIPT.signature_is_good()
    with pytest.raises(ReceiptError, match=r"not verifiable: it came from https://api\.example"):
        from_json(to_json(RECEIPT))


@pytest.mark.parametrize("field", [f for f in RECEIPT.__struct_fields__ if f != "verified"])
def test_no_field_can_be_altered_unnoticed(field: str) -> None:
    value = getattr(RECEIPT, field)
    other = value + (b"x" if isinstance(value, bytes) else "0" if isinstance(value, str) else 1)
    altered = msgspec.structs.replace(RECEIPT, **{field: other})
    assert not altered.signature_is_good()


@pytest.mark.parametrize("change", [{"verified": True}, {"verified": None}, {"hops": []}])
def test_it_cannot_be_made_to_look_like_another(change: dict[str, Any]) -> None:
    document = json.loads(to_json(RECEIPT)) | change
    with pytest.raises(ReceiptError, match="not a receipt"):
        read_json(json.dumps(document).encode())
    del document["verified"]
    with pytest.raises(ReceiptError, match="not a receipt"):
        read_json(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"version": VERSION + 1}, f"has version {VERSION + 1}"), ({"id": "xy"}, "not 32 hex digits")],
)
def test_another_version_or_id_is_refused(change: dict[str, Any], message: str) -> None:
    document = json.loads(to_json(RECEIPT)) | change
    with pytest.raises(ReceiptError, match=message):
        read_json(json.dumps(document).encode())


def test_verify_says_plainly_that_nobody_vouches_for_it(tmp_path: Path) -> None:
    done = verified(tmp_path, to_json(RECEIPT))
    assert done.exit_code == 1
    assert done.stdout.startswith("NOT VERIFIABLE: this answer came from https://api.example.com")
    assert "no node signed it" in done.stdout
    done = verified(tmp_path, to_json(RECEIPT), "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["verdict"] == "INCONCLUSIVE"
    assert report["verified"] is False
    assert report["source"] == "https://api.example.com/v1"
    assert report["receipt_id"] == RECEIPT.id


def test_verify_notices_that_it_was_altered(tmp_path: Path) -> None:
    altered = msgspec.structs.replace(RECEIPT, source="https://honest.example\x1b[2J")
    done = verified(tmp_path, to_json(altered))
    assert done.exit_code == 1
    assert done.stdout.startswith("INVALID: ")
    assert "\x1b" not in done.stdout
    assert json.loads(verified(tmp_path, to_json(altered), "--json").stdout)["verdict"] == "INVALID"
