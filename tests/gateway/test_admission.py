from __future__ import annotations

import asyncio

import pytest

from unisono.clock import VirtualClock
from unisono.gateway.admission import Admission, KeyRing
from unisono.gateway.errors import Busy, KeyRefused
from unisono.gateway.settings import GatewaySettings


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def admission(running: int, queued: int, clock: VirtualClock | None = None) -> Admission:
    settings = GatewaySettings(
        max_running_answers=running, max_queued_requests=queued, queue_seconds=30
    )
    return Admission(settings, clock or VirtualClock())


async def test_places_are_given_until_none_is_left_and_then_in_order() -> None:
    gate = admission(2, 5)
    first, second = await gate.enter(1), await gate.enter(1)
    order: list[str] = []

    async def come(name: str, answers: int) -> None:
        permit = await gate.enter(answers)
        order.append(name)
        permit.release()

    tasks = [asyncio.create_task(come("both", 2)), asyncio.create_task(come("one", 1))]
    await settle()
    assert gate.queued == 2
    first.release()
    await settle()
    assert order == []  # the small one does not overtake the large one
    second.release()
    await asyncio.gather(*tasks)
    assert order == ["both", "one"]
    assert gate.running == 0


async def test_a_permit_is_released_once() -> None:
    gate = admission(2, 0)
    permit = await gate.enter(2)
    permit.release()
    permit.release()
    assert gate.running == 0


async def test_a_full_queue_refuses_at_once() -> None:
    gate = admission(1, 1)
    await gate.enter(1)
    waiting = asyncio.create_task(gate.enter(1))
    await settle()
    with pytest.raises(Busy) as busy:
        await gate.enter(1)
    assert busy.value.retry_after == 2
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert gate.queued == 0


async def test_a_wait_that_is_too_long_ends_with_a_refusal() -> None:
    clock = VirtualClock()
    gate = admission(1, 5, clock)
    permit = await gate.enter(1)
    waiting = asyncio.create_task(gate.enter(1))
    await settle()
    await clock.advance(29)
    assert not waiting.done()
    await clock.advance(2)
    with pytest.raises(Busy, match="30 seconds"):
        await waiting
    permit.release()
    assert (gate.running, gate.queued) == (0, 0)


async def test_whoever_gives_up_makes_room_for_the_smaller_one_behind() -> None:
    gate = admission(2, 5)
    await gate.enter(1)
    large = asyncio.create_task(gate.enter(2))
    small = asyncio.create_task(gate.enter(1))
    await settle()
    large.cancel()
    await small
    assert (gate.running, gate.queued) == (2, 0)


async def test_a_turn_that_comes_while_its_owner_gives_up_is_not_lost() -> None:
    gate = admission(1, 5)
    permit = await gate.enter(1)
    waiting = asyncio.create_task(gate.enter(1))
    await settle()
    permit.release()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (gate.running, gate.queued) == (0, 0)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic right", "right"])
def test_only_bearers_of_a_known_key_come_in(header: str | None) -> None:
    ring = KeyRing(["right", "other"])
    ring.check("Bearer right")
    ring.check("bearer other")
    with pytest.raises(KeyRefused):
        ring.check(header)


def test_without_keys_everyone_comes_in() -> None:
    KeyRing([]).check(None)
