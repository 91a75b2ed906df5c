"""What overtakes the opening of its session waits for it, within bounds of each peer's own."""

from __future__ import annotations

import pytest

from unisono.clock import VirtualClock
from unisono.execution.early import EarlyMessages
from unisono.types import NodeId, SessionId
from unisono.wire.messages import Rows

HONEST, FLOOD = NodeId("aa" * 32), NodeId("bb" * 32)


def session(number: int) -> SessionId:
    return SessionId(f"{number:032x}")


def early(
    messages: EarlyMessages, peer: NodeId, number: int, position: int, size: int = 10
) -> None:
    rows = Rows(session(number), position, b"\x04", (), 3, 0)
    messages.put(session(number), (peer, rows, bytes(size)))


async def test_messages_come_out_once_and_in_order() -> None:
    messages = EarlyMessages(VirtualClock())
    for position in range(5):
        early(messages, HONEST, 1, position)
        early(messages, HONEST, 2, position)
    assert [m.position for _, m, _ in messages.take(session(1))] == [0, 1, 2, 3, 4]
    assert messages.take(session(1)) == []
    assert messages.bytes == 50


async def test_what_waits_too_long_is_dropped() -> None:
    clock = VirtualClock()
    messages = EarlyMessages(clock)
    early(messages, HONEST, 1, 0)
    await clock.advance(6)
    early(messages, FLOOD, 2, 0)
    assert messages.take(session(1)) == []
    assert messages.bytes == 10


async def test_a_peer_that_floods_pushes_out_its_own_messages_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unisono.execution.early.EARLY_BYTES", 1000)
    messages = EarlyMessages(VirtualClock())
    early(messages, HONEST, 1, 0, 100)
    for position in range(50):
        early(messages, FLOOD, 2, position, 100)
        assert messages.bytes <= 1000
    assert len(messages.take(session(1))) == 1
    assert [m.position for _, m, _ in messages.take(session(2))] == list(range(41, 50))


async def test_a_peer_has_so_many_messages_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unisono.execution.early.EARLY_MESSAGES", 3)
    messages = EarlyMessages(VirtualClock())
    for position in range(5):
        early(messages, FLOOD, 2, position, 0)
    assert [m.position for _, m, _ in messages.take(session(2))] == [2, 3, 4]
