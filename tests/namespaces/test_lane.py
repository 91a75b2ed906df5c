import random

import pytest
from bench.netlab.lane import Lane, Path
from hypothesis import given
from hypothesis import strategies as st


def lane(seed: int = 1, **path: float) -> Lane:
    return Lane(Path(**path), random.Random(seed))


@given(
    seed=st.integers(0, 1000),
    jitter=st.floats(0, 50),
    mbit=st.sampled_from([0.0, 1.0, 100.0]),
    gaps=st.lists(st.floats(0, 0.05), max_size=60),
)
def test_what_goes_in_first_comes_out_first(seed, jitter, mbit, gaps):
    subject = lane(seed, delay_ms=50, jitter_ms=jitter, mbit=mbit)
    now, arrivals = 1000.0, []
    for gap in gaps:
        now += gap
        due = subject.arrival(now, 1500)
        if due is not None:
            arrivals.append((now, due))
    assert [due for _, due in arrivals] == sorted(due for _, due in arrivals)
    for sent, due in arrivals:
        assert due >= sent + 0.05
        if not mbit:
            assert due <= sent + 0.05 + jitter / 1e3 + 1e-9


def test_jitter_alone_moves_no_packet_to_a_later_ones_time():
    subject = lane(delay_ms=50, jitter_ms=40)
    dues = [subject.arrival(i * 1e-3, 100) for i in range(5000)]
    assert len(set(dues)) == 5000


def test_jitter_wanders_over_its_whole_range():
    subject = lane(delay_ms=50, jitter_ms=5)
    extra = [subject.arrival(i * 0.005, 100) - i * 0.005 - 0.05 for i in range(4000)]
    assert min(extra) < 0.0005
    assert max(extra) > 0.0045


def test_losses_come_as_often_as_asked_however_they_are_counted():
    one_by_one = lane(loss=0.01)
    alone = [i for i in range(100_000) if one_by_one.losses(1)]
    in_bursts, at, bursts = lane(loss=0.01), 0, []
    sizes = random.Random(3)
    while at < 100_000:
        count = sizes.randint(1, 45)
        bursts += [at + i for i in in_bursts.losses(count)]
        at += count
    assert [i for i in bursts if i < 100_000] == alone
    assert 900 < len(alone) < 1100


def test_without_loss_nothing_is_lost():
    assert lane().losses(1 << 40) == []


def test_a_slow_path_paces_packets_and_drops_what_would_wait_too_long():
    subject = lane(mbit=8, queue_ms=9.5)  # a kilobyte takes a millisecond
    dues = [subject.arrival(100.0, 1000) for _ in range(20)]
    passed = [due for due in dues if due is not None]
    assert len(passed) == 10
    assert passed == pytest.approx([100.0 + 0.001 * (i + 1) for i in range(10)])
    assert dues[10:] == [None] * 10
    assert subject.arrival(101.0, 1000) == pytest.approx(101.001)


@pytest.mark.parametrize("wrong", [{"loss": 1.0}, {"loss": -0.1}, {"delay_ms": -1.0}])
def test_impossible_paths_are_refused(wrong):
    with pytest.raises(ValueError, match=r"negative|chance"):
        Path(**wrong)
