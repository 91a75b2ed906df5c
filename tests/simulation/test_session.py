"""Prompts flow through a chain as through a pipeline, in turn on each machine and line."""

from __future__ import annotations

from unisono.simulation.hardware import MODEL
from unisono.simulation.session import loop_links_us, prefill_us
from unisono.simulation.world import Machine, build, latency_us
from unisono.types import LayerRange


def chain(count: int) -> list[Machine]:
    machines = [m for m in build(4, 200) if m.kind.name == "desktop, 24 GB GPU"][:count]
    for index, machine in enumerate(machines):
        machine.hold(LayerRange(10 * index, 10 * index + 10), MODEL)
    return machines


def test_one_hop_takes_its_rows_and_a_step() -> None:
    (hop,) = chain(1)
    assert prefill_us([hop], 1000, 0, 50, [1.0], {}) == 50 + 1000 * hop.row_us + hop.step_us


def test_the_second_prompt_waits_for_the_first() -> None:
    (hop,) = chain(1)
    first = prefill_us([hop], 1000, 0, 0, [1.0], {})
    assert prefill_us([hop], 1000, 0, 0, [1.0], {}) == first + 1000 * hop.row_us


def test_a_share_of_the_time_takes_longer() -> None:
    one, two = chain(1)[0], chain(1)[0]
    whole = prefill_us([one], 500, 0, 0, [1.0], {}) - one.step_us
    assert prefill_us([two], 500, 0, 0, [0.25], {}) - two.step_us == 4 * whole


def test_a_chain_overlaps_its_hops() -> None:
    hops = chain(3)
    rows = 4096
    alone = sum(rows * hop.row_us for hop in hops)
    links = latency_us(hops[0], hops[1]) + latency_us(hops[1], hops[2])
    done = prefill_us(hops, rows, 0, 0, [1.0] * 3, {})
    slowest = max(rows * hop.row_us for hop in hops)
    assert slowest + links < done < alone + links


def test_a_narrow_line_is_what_a_long_prompt_waits_for_and_the_next_one_too() -> None:
    hops = chain(2)
    rows, size = 1000, MODEL.row_bytes
    line = min(hops[0].up, hops[1].down)
    sending: dict[int, int] = {}
    first = prefill_us(hops, rows, size, 0, [1.0, 1.0], sending)
    assert first > rows * size * 1_000_000 // line
    second = prefill_us(hops, rows, size, 0, [1.0, 1.0], sending)
    assert second - first >= 0.9 * rows * size * 1_000_000 / line


def test_a_replacement_reads_from_the_journal_of_the_hop_before_it() -> None:
    before, hop = chain(2)
    without = prefill_us([hop], 100, 0, 0, [1.0], {})
    hop.prefill_until = 0
    assert prefill_us([hop], 100, 0, 0, [1.0], {}, before) == without + latency_us(before, hop)


def test_the_links_of_a_loop_close_the_ring() -> None:
    hops = chain(3)
    assert loop_links_us(hops[:1], MODEL.row_bytes) == 0
    ring = sum(latency_us(a, b) for a, b in zip(hops, [*hops[1:], hops[0]], strict=True))
    assert loop_links_us(hops, 0) == ring
    assert loop_links_us(hops, MODEL.row_bytes) > ring
