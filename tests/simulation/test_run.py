"""Whole runs of small worlds: repeatable, nothing lost, and the real code does its work."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from unisono.errors import ConfigurationError
from unisono.simulation.report import Report
from unisono.simulation.run import Simulation, simulate
from unisono.simulation.settings import Policy, Regions, Scenario, Settings

SMALL = Settings(nodes=120, hours=0.05, requests_per_second=0.5)


def with_(**changes: object) -> Settings:
    return msgspec.structs.replace(SMALL, **changes)


def test_the_same_settings_give_the_same_bytes_also_in_another_process() -> None:
    code = (
        "import sys;from unisono.simulation.run import simulate;"
        "from unisono.simulation.settings import Settings;"
        "sys.stdout.buffer.write(simulate(Settings(nodes=60,hours=0.03)).encoded())"
    )

    def run(hash_seed: str) -> bytes:
        # sets of ids iterate in another order under another hash seed: nothing may depend on it
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, check=True, capture_output=True).stdout

    here = simulate(Settings(nodes=60, hours=0.03)).encoded()
    assert here == run("1") == run("2")


def test_another_seed_gives_another_result() -> None:
    assert simulate(SMALL).encoded() != simulate(with_(seed=2)).encoded()


def test_a_report_is_json_that_reads_back() -> None:
    report = simulate(with_(hours=0.02))
    assert msgspec.json.decode(report.encoded(), type=Report) == report


@pytest.mark.parametrize("scenario", list(Scenario))
def test_every_request_is_answered_failed_or_in_progress(scenario: Scenario) -> None:
    report = simulate(with_(scenario=scenario))
    ended = report.completed + sum(report.failed.values())
    assert report.requests == ended + report.in_progress
    assert report.completed > 0.7 * report.requests
    assert len(report.series) == 18
    assert sum(point.arrived for point in report.series) == report.requests
    assert 0 <= report.utilisation <= 1
    assert report.first_token_ms.count >= report.completed


def test_when_all_have_ended_every_machine_has_all_its_room() -> None:
    simulation = Simulation(with_(scenario=Scenario.CHURN, seed=4))
    simulation.run()
    simulation.events.run_until(simulation.settings.end + 600_000_000)
    assert simulation.network.running == {}
    assert simulation.fleet.decoding.count == 0
    for machine in simulation.fleet.machines:
        assert (machine.free, machine.sessions) == (machine.capacity, 0)
    for gateway in simulation.gateways:
        assert not any(gateway.experience.load.own(m.node) for m in simulation.fleet.machines)


def test_answers_outlive_crashes_of_their_hops() -> None:
    simulation = Simulation(with_(nodes=200, hours=0.1, seed=5))
    events, fleet = simulation.events, simulation.fleet

    def crash() -> None:
        busy = [m for m in fleet.machines if m.online and m.sessions]
        for machine in busy[:1]:
            machine.online, machine.silent = False, True
            simulation.network.gone(machine)
            fleet.farewell(machine, said=False)

    for second in range(60, 300, 20):
        events.at(simulation.settings.start + second * 1_000_000, crash)
    report = simulation.run()
    assert report.replaced >= 5
    assert sum(report.failed.values()) < report.replaced / 4  # a long answer finds no room
    assert report.pause_ms.p50 >= 3000  # silence of that long tells that a hop is gone


def test_best_paths_are_faster_than_chance_and_than_turns() -> None:
    worlds = {
        policy: simulate(with_(policy=policy, nodes=200))
        for policy in (Policy.BEST_PATH, Policy.RANDOM, Policy.ROUND_ROBIN)
    }
    best = worlds.pop(Policy.BEST_PATH)
    for other in worlds.values():
        assert best.first_token_ms.p50 < 0.7 * other.first_token_ms.p50
        assert best.answer_token_ms.p90 < 0.7 * other.answer_token_ms.p90
        assert best.completed > other.completed


def test_nodes_that_claim_layers_they_lack_are_left_alone_soon() -> None:
    report = simulate(
        Settings(nodes=400, hours=0.1, scenario=Scenario.LIARS, requests_per_second=0.6)
    )
    points = len(report.series)
    early = sum(p.retries for p in report.series[: points // 4])
    late = sum(p.retries for p in report.series[-points // 4 :])
    assert report.refusals_by_liars > 0
    assert late <= early
    assert report.most_retries <= 3
    assert sum(report.failed.values()) == 0


def test_a_partition_shows_and_heals() -> None:
    report = simulate(with_(nodes=300, scenario=Scenario.PARTITION, hours=0.1))
    third = len(report.series) // 3
    availability = [p.answering / max(1, p.placed) for p in report.series]
    assert min(availability[third : third + 3]) < 0.9
    assert min(availability[-third + 2 :]) > 0.97
    assert report.series[-1].covered_cells == 1.0


def test_regions_by_distance_run_too() -> None:
    report = simulate(
        with_(nodes=300, hours=0.02, view=64, gateway_view=64, regions=Regions.DISTANCE)
    )
    assert report.cells >= 4
    assert report.completed > 0


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"nodes": 3}, "--nodes"),
        ({"nodes": 1_000_000}, "--nodes"),
        ({"hours": 0.0}, "--hours"),
        ({"hours": float("nan")}, "--hours"),
        ({"seed": -1}, "--seed"),
        ({"requests_per_second": -1.0}, "--requests-per-second"),
        ({"start_hour": 24}, "--start-hour"),
        ({"view": 3}, "--view"),
        ({"gateway_view": 20}, "--gateway-view"),
    ],
)
def test_settings_without_sense_are_named(change: dict[str, object], flag: str) -> None:
    with pytest.raises(ConfigurationError, match=flag):
        with_(**change).checked()
