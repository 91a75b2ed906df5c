from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Literal

import pytest

from tests.gateway.scripted import MODEL
from unisono.clock import VirtualClock
from unisono.errors import ConfigurationError, ReceiptError
from unisono.gateway.receipts import ReceiptStore
from unisono.types import GenerationRequest
from unisono.verification.audit_note import AuditNote
from unisono.verification.receipt import VERSION, Receipt, from_json
from unisono.wire.identity import Identity

GATEWAY = Identity.generate()


def receipt(token: int) -> Receipt:
    return Receipt(
        version=VERSION,
        id=f"{token:032x}",
        request=GenerationRequest(MODEL, (1, 2, 3), 4),
        tokens=(token,),
        finish_reason="length",
        hops=(),
        gateway=GATEWAY.node_id,
        created=1_700_000_000,
        elapsed_us=0,
        first_token_us=5,
        attempts=1,
    ).signed_by(GATEWAY)


async def test_a_receipt_survives_a_restart(tmp_path: Path) -> None:
    store = ReceiptStore(tmp_path / "deep" / "receipts.db")
    name = await store.put(receipt(1))
    store.close()
    store = ReceiptStore(tmp_path / "deep" / "receipts.db")
    assert store.count == 1
    data = await store.get(name)
    assert data is not None
    assert from_json(data) == receipt(1)
    assert await store.get("unknown") is None
    store.close()
    store.close()


async def test_the_oldest_receipts_make_room(tmp_path: Path) -> None:
    store = ReceiptStore(tmp_path / "receipts.db", max_count=3)
    names = [await store.put(receipt(i)) for i in range(5)]
    assert store.count == 3
    assert [await store.get(name) is None for name in names] == [True, True, False, False, False]
    assert await store.put(receipt(4)) == names[4]
    assert store.count == 3
    store.close()
    smaller = ReceiptStore(tmp_path / "receipts.db", max_count=1)
    assert smaller.count == 1
    assert await smaller.get(names[4]) is not None
    smaller.close()


async def test_old_receipts_are_forgotten() -> None:
    clock = VirtualClock()
    store = ReceiptStore(None, max_age_seconds=100, clock=clock)
    old = await store.put(receipt(1))
    await clock.advance(99)
    assert await store.get(old) is not None
    await clock.advance(2)
    assert await store.get(old) is None
    await store.put(receipt(2))
    assert store.count == 1
    store.close()


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    store = ReceiptStore(tmp_path / "receipts.db")
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    store.close()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, and long enough to be looked at" * 40)
    with pytest.raises(ConfigurationError, match="cannot keep receipts"):
        ReceiptStore(tmp_path / "text")
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 99")
    newer.commit()
    newer.close()
    with pytest.raises(ConfigurationError, match="another version"):
        ReceiptStore(tmp_path / "newer")


async def test_a_closed_store_says_so() -> None:
    store = ReceiptStore(None)
    store.close()
    with pytest.raises(ReceiptError, match="closed"):
        await store.put(receipt(1))


async def test_receipts_stored_at_the_same_time_are_all_counted() -> None:
    store = ReceiptStore(None)
    await asyncio.gather(*(store.put(receipt(i)) for i in range(20)))
    assert store.count == 20
    store.close()


def note(hop: int, verdict: Literal["VALID", "INVALID", "INCONCLUSIVE"]) -> AuditNote:
    return AuditNote(hop, GATEWAY.node_id, 7, verdict, None, "as found", 3, 3, ())


async def test_what_audits_found_comes_with_the_receipt_and_goes_with_it() -> None:
    store = ReceiptStore(None, max_count=2)
    name = await store.put(receipt(1))
    await store.note("unknown", note(0, "VALID"))
    await store.note(name, note(1, "INCONCLUSIVE"))
    await store.note(name, note(0, "VALID"))
    await store.note(name, note(1, "INVALID"))
    data = await store.get(name)
    assert data is not None
    found = from_json(data)
    assert found.audits == (note(0, "VALID"), note(1, "INVALID"))
    assert found.signature_is_good()
    assert found.signed_bytes() == receipt(1).signed_bytes()
    for number in (2, 3):
        await store.put(receipt(number))
    assert await store.get(name) is None
    count = await store._run(
        lambda: store._database.execute("SELECT count(*) FROM audits").fetchone()[0]
    )
    assert count == 0
    store.close()
