"""What a node keeps so that it can defend a claim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.settlement.courtroom import OPERATOR, PAYER, program_of
from tests.verification.fraud.dispute import answer_of
from unisono.errors import PeerCheating, PeerRefused
from unisono.settlement import briefs
from unisono.settlement.advocates import State
from unisono.settlement.briefs import Brief, Briefs, decode_brief, decode_state, encode_state
from unisono.settlement.claims import court_domain, settlement_claim
from unisono.types import EvmAddress, canonical

DIGEST = bytes(31) + b"\1"
PERSON = EvmAddress("0x" + "1" * 40)


def brief_of(epoch: int = 7) -> Brief:
    """The brief of a whole small model's claim."""
    subject = answer_of("llama").subject(epoch=epoch)
    size = subject.manifest.config.vocabulary_size
    root = program_of(subject.manifest).root
    claim = settlement_claim(subject.claim, subject.request, subject.tokens, root, size, PAYER)
    domain = court_domain(1, PERSON)
    return Brief(subject, claim=claim.signed_by(OPERATOR, domain))


def test_a_brief_comes_back_as_it_was() -> None:
    brief = brief_of()
    assert decode_brief(canonical(brief)) == brief


def test_bytes_that_are_no_brief_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = canonical(brief_of())
    for wrong in (b"", data[:-1], data + b"\0", b"\xc1", canonical({"subject": 1})):
        with pytest.raises(PeerCheating, match="brief"):
            decode_brief(wrong)
    monkeypatch.setattr(briefs, "MAX_BYTES", len(data) - 1)
    with pytest.raises(PeerCheating, match="at most"):
        decode_brief(data)


@given(
    words=st.binary(min_size=32, max_size=32),
    number=st.integers(0, (1 << 256) - 1),
    asserted=st.integers(-(1 << 255), (1 << 255) - 1),
    total=st.tuples(*[st.integers(-(1 << 127), 1 << 127)] * 5),
    lost=st.booleans(),
)
def test_a_state_comes_back_as_it_was(
    words: bytes, number: int, asserted: int, total: tuple[int, ...], lost: bool
) -> None:
    values: dict[str, Any] = dict.fromkeys(State._fields, number)
    hashes = ("claim", "facts", "node", "grid", "trace", "kept", "tensor", "parts")
    values |= dict.fromkeys(hashes, words)
    values |= {"challenger": PERSON, "defender": PERSON, "challenger_lost": lost}
    values |= {"asserted": asserted, "total": total}
    state = State(**values)
    assert decode_state(encode_state(state)) == state


@pytest.mark.parametrize("kept", ["memory", "folder"])
def test_a_brief_is_found_by_its_claim_until_it_is_too_old(kept: str, tmp_path: Path) -> None:
    store = Briefs(tmp_path / "briefs" if kept == "folder" else None)
    brief = brief_of()
    store.keep(DIGEST, brief)
    assert store.find(DIGEST) == brief
    assert store.find(bytes(32)) is None
    store.forget(7)
    assert store.find(DIGEST) == brief
    store.forget(8)
    assert store.find(DIGEST) is None


def test_briefs_outlive_the_process(tmp_path: Path) -> None:
    Briefs(tmp_path).keep(DIGEST, brief_of())
    (tmp_path / "something.else").write_text("of nobody's business")
    (tmp_path / "x-y.brief").write_text("no brief's name")
    again = Briefs(tmp_path)
    assert again.find(DIGEST) == brief_of()
    again.forget(100)
    assert not list(tmp_path.glob(f"*{DIGEST.hex()}*"))


def test_a_damaged_brief_is_none(tmp_path: Path) -> None:
    store = Briefs(tmp_path)
    store.keep(DIGEST, brief_of())
    (path,) = tmp_path.glob(f"*{briefs.SUFFIX}")
    path.write_bytes(path.read_bytes()[:-1])
    assert store.find(DIGEST) is None


def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Briefs(None)
    monkeypatch.setattr(briefs, "MAX_BRIEFS", 1)
    store.keep(DIGEST, brief_of())
    with pytest.raises(PeerRefused, match="no room"):
        store.keep(bytes(32), brief_of())
    store.forget(8)
    store.keep(bytes(32), brief_of())
    monkeypatch.setattr(briefs, "MAX_BRIEFS", 10)
    monkeypatch.setattr(briefs, "MAX_KEPT_BYTES", 10)
    with pytest.raises(PeerRefused, match="no room"):
        store.keep(DIGEST, msgspec.structs.replace(brief_of(), widths=b"x"))


def test_a_claim_without_its_signature_is_another_brief() -> None:
    brief = brief_of()
    assert brief.claim is not None
    bare = msgspec.structs.replace(brief, claim=replace(brief.claim, signature=b""))
    assert canonical(bare) != canonical(brief)
