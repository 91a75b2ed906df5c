"""How a gateway looks at its network, on virtual time."""

from __future__ import annotations

import asyncio

import pytest

from tests.gateway.scripted import ScriptedNetwork, scripted_model
from unisono.clock import VirtualClock
from unisono.gateway.watch import WATCH_SECONDS, Trouble, Watch
from unisono.routing.health import WINDOW_SECONDS
from unisono.wire.identity import Identity

MODEL = scripted_model()


@pytest.fixture
def network() -> ScriptedNetwork:
    made = ScriptedNetwork(gateway=Identity.generate())
    made.standbys = made.standbys_alive = 2
    return made


async def test_a_request_is_routed_by_a_picture_that_is_fresh_enough(
    network: ScriptedNetwork,
) -> None:
    clock = VirtualClock()
    watch = Watch(network, clock, threshold=900, fresh_seconds=0.5)
    assert watch.condition(MODEL).trouble is None
    network.alive[0] = False
    await clock.advance(0.4)
    assert watch.condition(MODEL).trouble is None
    await clock.advance(0.1)
    assert watch.condition(MODEL).trouble is Trouble.AVAILABILITY
    assert watch.condition(MODEL).availability == "0.75"


async def test_departures_between_requests_are_seen(network: ScriptedNetwork) -> None:
    clock = VirtualClock()
    watch = Watch(network, clock)
    looking = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    await clock.advance(10 * WINDOW_SECONDS)
    network.standbys = 0
    await clock.advance(2 * WATCH_SECONDS)
    assert watch.condition(MODEL).availability == "0.5"
    assert len(watch.departed()) == 2
    await clock.advance(WINDOW_SECONDS + WATCH_SECONDS)
    assert watch.condition(MODEL).availability == "1"
    looking.cancel()


async def test_what_is_wrong_has_an_order(network: ScriptedNetwork) -> None:
    watch = Watch(network, VirtualClock(), threshold=1000, fresh_seconds=0)
    network.standbys_alive = 0
    assert watch.condition(MODEL).trouble is Trouble.AVAILABILITY
    network.alive[1] = False
    assert watch.condition(MODEL).trouble is Trouble.COVERAGE
    network.alive[0] = False
    assert watch.condition(MODEL).trouble is Trouble.UNREACHABLE
    assert not watch.reachable()
