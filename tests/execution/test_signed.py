from __future__ import annotations

from pathlib import Path

import pytest

from tests.execution.test_session import NODE, session
from unisono.clock import VirtualClock
from unisono.errors import ConfigurationError, PeerRefused
from unisono.execution.signed import SignedClaims
from unisono.models.rows import hash_of
from unisono.wire.claims import EPOCH_SECONDS, epoch_at


async def test_a_session_is_signed_for_once_whatever_comes_after() -> None:
    clock = VirtualClock()
    signed = SignedClaims(NODE, clock)
    hop = session(1, computed=6)
    first = signed.sign(hop, 2)
    assert first.epoch == epoch_at(clock.now())
    assert first.signature_is_good()
    assert hop.id in signed
    hop.record(1, [hash_of(b"other")] * 5, [hash_of(b"rows")] * 5)
    assert signed.sign(hop, 2) == first
    with pytest.raises(PeerRefused, match="has signed for 2 tokens") as refusal:
        signed.sign(hop, 3)
    assert refusal.value.code == "signed"
    await clock.advance(EPOCH_SECONDS)
    assert signed.sign(hop, 2) == first
    await clock.advance(2 * EPOCH_SECONDS)
    assert hop.id not in signed
    again = signed.sign(hop, 2)  # of another epoch: the two do not contradict each other
    assert again.epoch == first.epoch + 3


def test_what_is_not_computed_is_not_remembered() -> None:
    signed = SignedClaims(NODE, VirtualClock())
    hop = session(1, computed=3)
    with pytest.raises(PeerRefused) as refusal:
        signed.sign(hop, 3)
    assert refusal.value.code == "not_computed"
    assert hop.id not in signed


async def test_a_node_that_starts_again_signs_nothing_in_an_epoch_in_which_it_signed(
    tmp_path: Path,
) -> None:
    clock, last = VirtualClock(), tmp_path / "node.key.epoch"
    before = SignedClaims(NODE, clock, last=last)
    assert before.wait == 0
    again = SignedClaims(NODE, clock, last=last)  # it had signed nothing
    assert again.wait == 0
    before.sign(session(1, computed=6), 2)
    assert last.read_text() == f"{epoch_at(clock.now())}\n"
    again = SignedClaims(NODE, clock, last=last)
    assert 0 < again.wait <= EPOCH_SECONDS
    with pytest.raises(PeerRefused) as refusal:
        again.sign(session(1, computed=6), 3)
    assert refusal.value.code == "not_ready"
    await clock.advance(again.wait)
    assert again.wait == 0
    assert again.sign(session(1, computed=6), 3).epoch == epoch_at(clock.now())


def test_a_damaged_note_is_said(tmp_path: Path) -> None:
    last = tmp_path / "epoch"
    last.write_text("soon")
    with pytest.raises(ConfigurationError, match="wait for two epochs"):
        SignedClaims(NODE, VirtualClock(), last=last)
