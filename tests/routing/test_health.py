"""Availability and coverage, from what is known of nodes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.records import record
from unisono.clock import VirtualClock
from unisono.routing import health
from unisono.routing.health import WINDOW_SECONDS, Attendance, Health, health_of, status_of
from unisono.routing.network import NodeStatus
from unisono.types import LayerRange, ModelId, NodeId
from unisono.wire.records import NodeRecord

MODEL, OTHER = ModelId("7b" * 32), ModelId("8c" * 32)
LAYERS = 12


def node(number: int, start: int = 0, stop: int = LAYERS, **changes: Any) -> NodeStatus:
    fields: dict[str, Any] = {
        "node": NodeId(f"{number:064x}"),
        "address": "memory://here",
        "model": MODEL,
        "layers": LayerRange(start, stop),
        "free_positions": 100,
        "sessions": 0,
        "alive": True,
    }
    return NodeStatus(**(fields | changes))


def test_availability_is_the_share_of_the_placement_that_answers() -> None:
    nodes = [node(i, alive=i != 3) for i in range(10)]
    found = health_of(MODEL, LAYERS, nodes)
    assert (found.alive, found.known, found.availability) == (9, 10, 900)
    assert health_of(MODEL, LAYERS, nodes, [node(99)]).availability == 818


def test_without_any_node_nothing_is_available_and_every_layer_is_missing() -> None:
    found = health_of(MODEL, LAYERS, [])
    assert found.availability == 0
    assert found.missing == (LayerRange(0, LAYERS),)


def test_nodes_of_other_models_without_layers_or_about_to_leave_count_nowhere() -> None:
    others = [
        node(1, model=OTHER),
        node(2, 0, 0),
        node(3, leaving=True),
        node(4, leaving=True, alive=False),
    ]
    found = health_of(MODEL, LAYERS, [node(5, 0, 6), *others], others)
    assert (found.alive, found.known) == (1, 1)
    assert found.missing == (LayerRange(6, 12),)


def test_each_layer_has_its_holders_and_the_most_room_of_one() -> None:
    nodes = [
        node(1, 0, 6, free_positions=5),
        node(2, 0, 6, free_positions=50),
        node(3, 4, 9, free_positions=7),
        node(4, 10, 99, free_positions=0),
        node(5, 9, 12, alive=False),
    ]
    found = health_of(MODEL, LAYERS, nodes)
    assert found.holders == (2, 2, 2, 2, 3, 3, 1, 1, 1, 0, 1, 1)
    assert found.room == (50, 50, 50, 50, 50, 50, 7, 7, 7, 0, 0, 0)
    assert found.missing == (LayerRange(9, 10),)
    assert found.full(10) == (LayerRange(6, 9), LayerRange(10, 12))
    assert found.full(0) == ()


def test_a_status_says_what_the_record_says() -> None:
    said = record(3, 2, 5, leaving=True, queue=4, step_us=9, coordinate=(1, 2, 3, 4), price_out=8)
    status = status_of(said, alive=False, rtt_us=70)
    shared = {*NodeRecord.__struct_fields__} & {*NodeStatus.__struct_fields__} - {"address"}
    assert len(shared) == 12
    assert all(getattr(status, name) == getattr(said, name) for name in shared)
    assert (status.alive, status.rtt_us, status.address) == (False, 70, str(said.address))


async def test_a_node_that_dies_is_missed_until_the_window_has_passed() -> None:
    clock = VirtualClock()
    attendance = Attendance(clock)
    attendance.observe([node(1), node(2)])
    attendance.observe([node(1)])
    assert attendance.health(MODEL, LAYERS).availability == 500
    await clock.advance(WINDOW_SECONDS - 1)
    assert attendance.health(MODEL, LAYERS).availability == 500
    assert [each.node for each in attendance.departed] == [node(2).node]
    await clock.advance(1)
    assert attendance.health(MODEL, LAYERS).availability == 1000
    assert attendance.departed == ()


async def test_a_silent_node_that_then_expires_is_missed_from_its_departure_on() -> None:
    clock = VirtualClock()
    attendance = Attendance(clock, 60)
    attendance.observe([node(1), node(2, alive=False)])
    await clock.advance(50)
    attendance.observe([node(1)])
    await clock.advance(50)
    attendance.observe([node(1)])
    assert attendance.health(MODEL, LAYERS).known == 2


def test_a_node_that_announced_its_leave_is_not_missed() -> None:
    attendance = Attendance(VirtualClock())
    attendance.observe([node(1), node(2)])
    attendance.observe([node(1), node(2, leaving=True)])
    assert attendance.health(MODEL, LAYERS).availability == 1000
    attendance.observe([node(1)])
    assert attendance.health(MODEL, LAYERS).availability == 1000


def test_a_node_that_comes_back_or_changes_its_model_is_counted_once() -> None:
    attendance = Attendance(VirtualClock())
    attendance.observe([node(1), node(2), node(3)])
    attendance.observe([node(1)])
    attendance.observe([node(1), node(2), node(3, model=OTHER)])
    found = attendance.health(MODEL, LAYERS)
    assert (found.alive, found.known) == (2, 2)
    assert attendance.health(OTHER, LAYERS).availability == 1000


def test_the_memory_of_departures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_DEPARTED", 10)
    attendance = Attendance(VirtualClock())
    for i in range(50):
        attendance.observe([node(i)])
    assert [each.node for each in attendance.departed] == [node(i).node for i in range(39, 49)]


blocks = st.tuples(st.integers(0, LAYERS + 3), st.integers(0, LAYERS + 3)).map(sorted)
nodes = st.lists(
    st.tuples(blocks, st.booleans(), st.booleans(), st.sampled_from([MODEL, OTHER])), max_size=12
)


@given(nodes, nodes)
def test_health_is_what_counting_layer_by_layer_gives(here: Any, gone: Any) -> None:
    def made(drawn: Any, first: int) -> list[NodeStatus]:
        return [
            node(first + i, *block, alive=alive, leaving=leaving, model=model, free_positions=i)
            for i, (block, alive, leaving, model) in enumerate(drawn)
        ]

    present, departed = made(here, 0), made(gone, 6)
    found = health_of(MODEL, LAYERS, present, departed)
    placed = [n for n in present if n.model == MODEL and n.layers.count and not n.leaving]
    names = {n.node for n in present}
    lost = [
        n
        for n in departed
        if n.model == MODEL and n.layers.count and not n.leaving and n.node not in names
    ]
    assert found.known == len(placed) + len(lost)
    assert found.alive == sum(n.alive for n in placed)
    for layer in range(LAYERS):
        holding = [n for n in placed if n.alive and n.layers.start <= layer < n.layers.stop]
        assert found.holders[layer] == len(holding)
        assert found.room[layer] == max((n.free_positions for n in holding), default=0)
    uncovered = [layer for run in found.missing for layer in range(run.start, run.stop)]
    assert uncovered == [layer for layer in range(LAYERS) if not found.holders[layer]]


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 1000))
def test_a_threshold_is_crossed_exactly_where_the_share_is(
    alive: int, silent: int, threshold: int
) -> None:
    found = Health(alive, alive + silent, (), ())
    assert 0 <= found.availability <= 1000
    if alive + silent:
        below = 1000 * alive < threshold * (alive + silent)
        assert (found.availability < threshold) == below
