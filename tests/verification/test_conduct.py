from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from unisono.verification.conduct import (
    FAMILIAR,
    GRAVITY,
    SOUND_HALF_LIFE,
    STRANGER,
    Conduct,
    Finding,
    after,
    fade,
    trust,
)
from unisono.verification.stakes.faults import PROVABLE

DAY = 86_400.0
histories = st.lists(
    st.tuples(st.floats(0, 1000 * DAY), st.sampled_from(sorted(GRAVITY))), max_size=40
).map(sorted)


def after_all(findings: Iterable[tuple[float, Finding]]) -> Conduct:
    conduct = STRANGER
    for at, finding in findings:
        conduct = after(conduct, finding, at)
    return conduct


def test_a_stranger_has_no_trust() -> None:
    assert trust(STRANGER, 5.0) == 0.0


def test_trust_is_earned_by_verified_answers_and_fades() -> None:
    conduct = after_all((0.0, "verified") for _ in range(int(FAMILIAR)))
    assert trust(conduct, 0.0) == 0.5
    assert trust(conduct, SOUND_HALF_LIFE) == 1 / 3


def test_one_conviction_outweighs_any_past() -> None:
    conduct = after_all((0.0, "verified") for _ in range(5000))
    assert trust(conduct, 0.0) > 0.95
    guilty = after(conduct, "convicted", 0.0)
    assert trust(guilty, 0.0) < 0.5


def test_every_fault_that_can_be_proven_is_grave_but_a_vote_against_the_many() -> None:
    grave = PROVABLE - {"dissent"} | {"convicted", "false_challenge"}
    others = GRAVITY.keys() - grave
    assert min(GRAVITY[kind] for kind in grave) >= 10 * max(GRAVITY[kind] for kind in others)


@given(histories, st.floats(0, 2000 * DAY))
def test_trust_is_a_share_and_only_falls_while_nothing_happens(
    history: list[tuple[float, str]], later: float
) -> None:
    conduct = after_all(history)
    assert 0.0 <= trust(conduct, conduct.at) < 1.0
    assert fade(conduct, conduct.at) == conduct
    assert fade(conduct, conduct.at + later).sound <= conduct.sound
    assert fade(conduct, conduct.at - later) == conduct  # a clock that was set back


@given(histories)
def test_no_fault_ever_helps(history: list[tuple[float, str]]) -> None:
    conduct = after_all(history)
    before = trust(conduct, conduct.at)
    for kind, gravity in GRAVITY.items():
        then = trust(after(conduct, kind, conduct.at), conduct.at)
        assert then >= before if gravity == 0 else then <= before
