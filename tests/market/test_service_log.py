"""Windows of figures: what is counted, what is kept, and that two observers agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.errors import ConfigurationError
from unisono.market.service_log import MAX_NODES, WINDOWS_KEPT, ServiceLog
from unisono.types import NodeId

LEASE = 15.0
WINDOW = 600
A, B, C = (NodeId(x * 64) for x in "abc")
START = 1_700_000_000 // WINDOW * WINDOW


def log_at(path: Path | None = None, *, now: float = START, of_itself: bool = False) -> ServiceLog:
    return ServiceLog(path, WINDOW, LEASE, now, of_itself=of_itself)


def beat(log: ServiceLog, node: NodeId, at: float, *, leaving: bool = False, tier: int = 2) -> None:
    log.heard(node, int((at + LEASE) * 1000), leaving=leaving, tier=tier)


def watch(log: ServiceLog, seconds: range, up: dict[NodeId, set[int]], begin: int = START) -> None:
    """A second after the other, nodes that are up sign a record every five."""
    for second in seconds:
        log.look(begin + second)
        for node, when in up.items():
            if second in when and second % 5 == 0:
                beat(log, node, begin + second)


def test_a_node_that_is_down_five_percent_of_the_time_owes_what_its_tier_says() -> None:
    log = log_at()
    day = range(WINDOW + 61)
    # down from 300 on; the lease of its last record runs to 310, the next is signed at 340
    up = {A: set(day) - set(range(300, 340)), B: set(day), C: set(day)}
    watch(log, day, up)
    figures = log.figures(log.last_closed)
    assert figures[A].down == 30_000
    assert figures[A].uptime(log.window_ms) == 950
    assert figures[A].share(log.window_ms) == 400
    assert figures[B].down == figures[C].down == 0
    assert figures[B].share(log.window_ms) == 0


def test_a_gap_that_goes_on_over_windows_is_divided_among_them() -> None:
    log = log_at()
    span = range(2 * WINDOW + 61)
    down = set(range(500, WINDOW + 100))
    watch(log, span, {A: set(span) - down, B: set(span)})
    first = START // WINDOW
    assert log.figures_of(first, A).down == (WINDOW - 510) * 1000
    assert log.figures_of(first + 1, A).down == 100_000


def test_a_node_that_never_comes_back_is_down_to_the_end_of_the_window_and_then_forgotten() -> None:
    log = log_at()
    span = range(4 * WINDOW + 61)
    watch(log, span, {A: set(range(300)), B: set(span)})
    first = START // WINDOW
    assert log.figures_of(first, A).down == (WINDOW - 310) * 1000
    assert log.figures_of(first + 1, A).down == WINDOW * 1000
    assert not log.known(A)
    assert log.known(B)


def test_what_is_announced_is_no_time_down() -> None:
    log = log_at()
    for second in range(0, 301, 5):
        beat(log, A, START + second, leaving=second == 300)
    watch(log, range(301, WINDOW + 61), {B: set(range(WINDOW + 61))})
    assert log.figures_of(START // WINDOW, A).down == 0
    beat(log, A, START + WINDOW + 100)
    assert log.figures_of(START // WINDOW + 1, A).down == 0


def test_a_record_that_somebody_withheld_counts_when_it_comes_before_the_next() -> None:
    log = log_at()
    beat(log, A, START)
    beat(log, A, START + 14)  # passed on late, and signed in time
    beat(log, A, START + 28)
    assert log.figures_of(START // WINDOW, A).down == 0


def test_old_records_that_are_shown_again_change_nothing() -> None:
    log = log_at()
    beat(log, A, START)
    beat(log, A, START + 100)
    before = log.figures_of(START // WINDOW, A).down
    beat(log, A, START + 50)
    beat(log, A, START)
    assert log.figures_of(START // WINDOW, A).down == before == 85_000


def test_a_gateway_that_was_off_blames_nobody(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    log = log_at(path)
    watch(log, range(100), {A: set(range(100)), B: set(range(100))})
    log.close()
    log = log_at(path, now=START + 400)
    watch(log, range(400, WINDOW + 61), {A: set(range(WINDOW + 61)), B: set(range(WINDOW + 61))})
    assert log.figures_of(START // WINDOW, A).down == 0


def test_a_node_that_was_off_says_so_itself(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    log = log_at(path, of_itself=True)
    watch(log, range(101), {A: set(range(101))})
    log.close()
    log = log_at(path, now=START + 400, of_itself=True)
    watch(log, range(400, WINDOW + 61), {A: set(range(WINDOW + 61))})
    assert log.figures_of(START // WINDOW, A).down == (400 - 115) * 1000


def test_a_killed_process_finds_what_was_there_when_it_looked_last(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    log = log_at(path)
    watch(log, range(101), {A: set(range(0, 50)), B: set(range(101))})
    log.session(A, True, START + 100)
    log.audited(A, "VALID", START + 100)
    log.audited(A, "INCONCLUSIVE", START + 100)
    log.convicted(B, START + 7)
    log.look(START + 101)
    # nothing is closed
    again = log_at(path, now=START + 102)
    assert again.figures(START // WINDOW) == log.figures(START // WINDOW)
    assert again.looked == START + 101
    beat(again, A, START + 110)
    assert again.figures_of(START // WINDOW, A).down == 50_000


def test_an_outcome_survives_at_once(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    log = log_at(path)
    log.settled(7, A, "granted", 12)
    found = log_at(path).figures_of(7, A)
    assert (found.outcome, found.credit) == ("granted", 12)


def test_a_conviction_that_comes_late_opens_the_window_again() -> None:
    log = log_at()
    watch(log, range(WINDOW + 61), {A: set(range(WINDOW + 61))})
    closed = log.last_closed
    log.settled(closed, A, "granted", 3)
    log.convicted(A, START + 30)
    figures = log.figures_of(closed, A)
    assert (figures.outcome, figures.share(log.window_ms)) == ("", 1000)


def test_memory_is_bounded() -> None:
    log = log_at()
    for number in range(MAX_NODES + 50):
        beat(log, NodeId(f"{number:064x}"), START + number / 1000)
    assert sum(log.known(NodeId(f"{n:064x}")) for n in range(MAX_NODES + 50)) == MAX_NODES
    for window in range(3 * WINDOWS_KEPT):
        log.look(START + window * WINDOW + 100)
    assert len(log.windows()) <= WINDOWS_KEPT


def test_the_tier_of_a_window_is_the_highest_that_was_promised_in_it() -> None:
    log = log_at()
    beat(log, A, START, tier=3)
    beat(log, A, START + 10, tier=1)
    assert log.figures_of(START // WINDOW, A).tier == 3
    beat(log, A, START + WINDOW, tier=1)
    assert log.figures_of(START // WINDOW + 1, A).tier == 1


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    path.write_bytes(b"no database" * 200)
    with pytest.raises(ConfigurationError, match="cannot keep service levels"):
        log_at(path)
    with pytest.raises(ConfigurationError, match="shorter than a lease"):
        ServiceLog(None, 10, LEASE, START)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=60))
def test_a_gateway_that_misses_records_never_counts_less_than_the_node_itself(
    beats: list[tuple[int, bool]],
) -> None:
    """So the smaller of both, which decides, is the node's own: records that are withheld from a
    gateway cost the node nothing."""
    own, gateway = log_at(of_itself=True), log_at()
    at = START
    for pause, arrives in ((0, True), *beats, (1, True)):
        at += pause
        beat(own, A, at)
        if arrives:
            beat(gateway, A, at)
    for number in own.windows():
        assert gateway.figures_of(number, A).down >= own.figures_of(number, A).down
