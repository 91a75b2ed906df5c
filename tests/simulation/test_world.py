"""Machines are what their seed says, and their records are ones that the wire accepts."""

from __future__ import annotations

import statistics

import msgspec
import pytest

from unisono.routing.coordinates import estimated_rtt
from unisono.simulation.geography import CITIES, ROUND_TRIP_MS, local_hour, one_way_us
from unisono.simulation.hardware import KINDS, MODEL, positions, step_us
from unisono.simulation.world import (
    OVERSTATED,
    Machine,
    build,
    find_places,
    gateway,
    latency_us,
)
from unisono.types import LayerRange
from unisono.wire.records import NodeRecord

BLOCK = LayerRange(10, 18)


def test_there_are_ten_cities_on_five_continents_and_their_shares_are_whole() -> None:
    assert len({city.continent for city in CITIES}) == 5
    assert sum(city.share for city in CITIES) == pytest.approx(1)
    assert sum(kind.share for kind in KINDS) == pytest.approx(1)
    assert [len(row) for row in ROUND_TRIP_MS] == [len(CITIES)] * len(CITIES)


def test_one_way_is_the_same_in_both_directions() -> None:
    for a in range(len(CITIES)):
        for b in range(len(CITIES)):
            assert one_way_us(a, b) == one_way_us(b, a) > 0


def test_local_hours_follow_the_offset() -> None:
    hours = {city.name: local_hour(city, 23 * 3_600_000_000) for city in CITIES}
    assert (hours["London"], hours["Tokyo"], hours["Dallas"]) == (23, 8, 17)


def test_a_seed_fixes_the_machines() -> None:
    def seen(seed: int) -> list[tuple[object, ...]]:
        return [(m.node, m.city, m.kind.name, m.access_us, m.up) for m in build(seed, 50)]

    assert seen(1) == seen(1) != seen(2)


def test_the_time_between_two_machines_is_symmetric_and_nothing_to_oneself() -> None:
    a, b = build(1, 2)
    assert latency_us(a, b) == latency_us(b, a) > 0
    assert latency_us(a, a) == 0


def test_coordinates_estimate_round_trips() -> None:
    machines = build(1, 150)
    find_places(machines, 1)
    errors: list[float] = []
    for a, b in zip(machines, machines[75:], strict=False):
        true = 2 * latency_us(a, b)
        errors.append(abs(estimated_rtt(a.coordinate, b.coordinate) - true) / true)
    assert statistics.median(errors) < 0.4


def machine_with_block() -> Machine:
    machine = next(m for m in build(1, 50) if m.kind.name == "desktop, 24 GB GPU")
    machine.hold(BLOCK, MODEL)
    return machine


def test_a_record_is_one_that_the_wire_accepts_and_tells_the_truth() -> None:
    machine = machine_with_block()
    record = machine.record(MODEL, 0, 1_000)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=NodeRecord) == record
    assert record.step_us == machine.step_us == step_us(machine.kind, MODEL, BLOCK)
    assert record.free_positions == positions(machine.memory, MODEL, BLOCK) > 0
    assert machine.record(MODEL, 0, 1_000).sequence == record.sequence + 1


def test_a_machine_that_became_slow_still_says_what_it_measured() -> None:
    machine = machine_with_block()
    before = machine.record(MODEL, 0, 0)
    machine.slowness = 4
    machine.retime(MODEL)
    assert machine.step_us == 4 * before.step_us
    assert machine.record(MODEL, 0, 0).step_us == before.step_us


def test_a_liar_overstates_its_speed() -> None:
    machine = machine_with_block()
    machine.liar = True
    assert machine.record(MODEL, 0, 0).step_us == machine.step_us // OVERSTATED


def test_the_queue_is_the_rows_that_wait() -> None:
    machine = machine_with_block()
    machine.prefill_until = 100 * machine.row_us
    assert machine.record(MODEL, 0, 0).queue == 100
    assert machine.record(MODEL, machine.prefill_until, 0).queue == 0


def test_weights_on_disk_are_not_downloaded_again() -> None:
    machine = machine_with_block()
    known = machine.loading_us(BLOCK, MODEL)
    half = machine.loading_us(LayerRange(BLOCK.start + 4, BLOCK.stop + 4), MODEL)
    fresh = machine.loading_us(LayerRange(40, 48), MODEL)
    assert known == BLOCK.count * MODEL.layer_bytes // 1000
    assert known < half < fresh
    assert fresh - half == pytest.approx(half - known, abs=2)


def test_a_gateway_holds_nothing() -> None:
    machine = gateway(1, 0, 3)
    assert (machine.city, machine.memory, machine.layers.count) == (3, 0, 0)
