from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.records import KEYS, record
from unisono.clock import VirtualClock
from unisono.routing.reputation import (
    BLAME,
    GUILT_HALF_LIFE,
    GUILT_LIMIT,
    HALF_LIFE,
    PRIOR_BAD,
    PRIOR_GOOD,
    STRANGER,
    Deed,
    Reputation,
    believed,
    guilt,
    judged,
    odds,
)
from unisono.types import NodeId, PeerAddress

NODE = record(0, 0, 5, step_us=10_000)


def pace(reputation: Reputation, said: float) -> float:
    """Seconds per layer and step that are expected of a node which advertises `said`."""
    judged = reputation.judge([NODE])
    return float(believed(judged.decode, judged.decode_samples, np.array([said]))[0])


deeds = st.lists(st.tuples(st.sampled_from(Deed), st.floats(0, 1000)), max_size=60)


@given(deeds)
def test_whatever_a_node_does_its_odds_stay_within_bounds_and_fade_to_a_strangers(
    done: list[tuple[Deed, float]],
) -> None:
    standing, now = STRANGER, 0.0
    for deed, passed in done:
        now += passed
        standing = judged(standing, deed, now)
        assert PRIOR_BAD / (PRIOR_GOOD + 12) <= odds(standing, now) <= (PRIOR_BAD + 64) / PRIOR_GOOD
    assert math.isclose(odds(standing, now + 60 * HALF_LIFE), PRIOR_BAD / PRIOR_GOOD)


@given(deeds, st.sampled_from(Deed), st.floats(0, 100))
def test_a_bad_deed_never_helps_and_a_good_one_never_harms(
    done: list[tuple[Deed, float]], deed: Deed, passed: float
) -> None:
    standing, now = STRANGER, 0.0
    for past, seconds in done:
        now += seconds
        standing = judged(standing, past, now)
    now += passed
    before, after = odds(standing, now), odds(judged(standing, deed, now), now)
    assert after <= before + 1e-12 if deed is Deed.COMPLETED else after >= before - 1e-12


@given(st.floats(0, 10 * HALF_LIFE))
def test_what_was_seen_loses_half_of_its_weight_in_a_half_life(passed: float) -> None:
    standing = judged(STRANGER, Deed.UNREACHABLE, 0.0)
    left = BLAME[Deed.UNREACHABLE] * 0.5 ** (passed / HALF_LIFE)
    assert odds(standing, passed) == pytest.approx((PRIOR_BAD + left) / PRIOR_GOOD)


@pytest.mark.parametrize(
    ("deed", "as_stranger", "as_regular"),
    [
        (Deed.REFUSED, 8, 32),
        (Deed.LATE, 8, 32),
        (Deed.FAILED, 2, 8),
        (Deed.LOST, 2, 6),
        (Deed.UNREACHABLE, 1, 4),
        (Deed.PRICE_BROKEN, 1, 3),
    ],
)
def test_so_many_times_and_a_node_is_banned(deed: Deed, as_stranger: int, as_regular: int) -> None:
    for past, times in ((0, as_stranger), (100, as_regular)):
        reputation = Reputation(VirtualClock())
        for _ in range(past):
            reputation.saw(NODE, Deed.COMPLETED)
        for number in range(1, times + 1):
            reputation.saw(NODE, deed)
            assert reputation.banned(NODE) == (number == times)


async def test_a_claim_that_was_false_bans_the_claim_and_not_the_next() -> None:
    """An honest node may be asked for layers that it is just giving up."""
    clock = VirtualClock()
    reputation = Reputation(clock)
    reputation.saw(NODE, Deed.NOT_HELD)
    assert reputation.banned(NODE)
    other = record(0, 0, 4)
    assert not reputation.banned(other)
    reputation.saw(other, Deed.NOT_HELD)
    assert reputation.banned(NODE)  # who lies twice is not believed a third time
    await clock.advance(HALF_LIFE + 1)
    assert not reputation.banned(other)


async def test_the_longest_ban_ends_within_half_an_hour() -> None:
    clock = VirtualClock()
    reputation = Reputation(clock)
    for _ in range(1000):
        reputation.saw(NODE, Deed.PRICE_BROKEN)
    await clock.advance(3 * HALF_LIFE)
    assert reputation.banned(NODE)
    await clock.advance(3 * HALF_LIFE)
    assert not reputation.banned(NODE)


def test_a_node_that_fails_now_and_then_is_worse_than_one_that_never_does() -> None:
    reputation = Reputation(VirtualClock())
    steady, shaky = record(1, 0, 5), record(2, 0, 5)
    for number in range(40):
        reputation.saw(steady, Deed.COMPLETED)
        reputation.saw(shaky, Deed.FAILED if number % 10 == 9 else Deed.COMPLETED)
    assert reputation.odds(steady.node) < reputation.odds(KEYS[3].node_id)
    assert reputation.odds(steady.node) < reputation.odds(shaky.node) < 1


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=40), st.floats(0.001, 1.0))
def test_a_believed_pace_lies_between_what_was_said_and_what_was_seen(
    seen: list[float], said: float
) -> None:
    reputation = Reputation(VirtualClock())
    for seconds in seen:
        reputation.decoded(NODE.node, seconds)
    least, most = min(*seen, said), max(*seen, said)
    assert least - 1e-9 <= pace(reputation, said) <= most + 1e-9


async def test_measured_speed_replaces_the_advertised_one_and_fades_into_it_again() -> None:
    clock = VirtualClock()
    reputation = Reputation(clock)
    assert pace(reputation, 0.002) == 0.002
    reputation.decoded(NODE.node, 0.008)
    assert pace(reputation, 0.002) == pytest.approx(0.0065)
    for _ in range(4):
        reputation.decoded(NODE.node, 0.008)
    assert pace(reputation, 0.002) == pytest.approx(0.008, rel=0.01)
    assert pace(reputation, 0.0001) == pytest.approx(0.008, rel=0.01)
    assert pace(reputation, 0.0) == pytest.approx(0.008)
    await clock.advance(10 * HALF_LIFE)
    assert pace(reputation, 0.002) == pytest.approx(0.002, rel=0.03)


def test_times_that_no_node_has_are_ignored() -> None:
    reputation = Reputation(VirtualClock())
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        reputation.decoded(NODE.node, seconds)
        reputation.read(NODE.node, seconds)
    assert reputation.standing(NODE.node) == STRANGER


def test_memory_of_standings_is_bounded() -> None:
    reputation = Reputation(VirtualClock(), limit=10)
    for i in range(30):
        node = NodeId(f"{i:064x}")
        hop = record(0, 0, 2, node=node, address=PeerAddress(node, "memory", ("memory:0",)))
        reputation.saw(hop, Deed.PRICE_BROKEN)
        assert reputation.banned(hop)
    assert len(reputation._standings) == 10


async def test_a_conviction_lasts_whatever_else_is_seen_and_fades() -> None:
    clock = VirtualClock()
    reputation = Reputation(clock)
    reputation.convict(NODE.node)  # who was never met here
    for _ in range(100):
        reputation.saw(NODE, Deed.COMPLETED)
    assert reputation.convicted(NODE.node)
    assert reputation.barred(NODE)
    assert reputation.banned(NODE)
    await clock.advance(GUILT_HALF_LIFE - 1)
    assert reputation.barred(NODE)
    await clock.advance(2)
    assert not reputation.barred(NODE)
    for _ in range(2):
        reputation.convict(NODE.node)
    await clock.advance(GUILT_HALF_LIFE + 1)
    assert reputation.barred(NODE)


def test_strangers_do_not_push_a_conviction_out() -> None:
    reputation = Reputation(VirtualClock(), limit=2)
    reputation.convict(NODE.node)
    for number in range(1, 9):
        reputation.saw(record(number, 0, 5), Deed.COMPLETED)
    assert reputation.barred(NODE)


@given(st.lists(st.tuples(st.sampled_from(list(Deed)), st.floats(0, 1e6)), max_size=12))
def test_guilt_is_a_function_of_the_convictions_alone(deeds: list[tuple[Deed, float]]) -> None:
    def all_of(kinds: set[Deed]) -> float:
        standing, now = STRANGER, 0.0
        for deed, passed in deeds:
            now += passed
            if deed in kinds:
                standing = judged(standing, deed, now)
        return guilt(standing, now)

    assert all_of(set(Deed)) == all_of({Deed.CONVICTED})
    assert 0 <= all_of(set(Deed)) <= GUILT_LIMIT
