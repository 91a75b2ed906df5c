"""What chains of an ensemble say of the next token, as it travels."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.numerics.scalar.ensemble import LISTED
from unisono.types import Distribution
from unisono.wire.ensemble import (
    MAX_LISTED,
    Given,
    Weighed,
    distribution_hash,
    distributions_root,
)
from unisono.wire.frames import decode_frame, encode_frame

SESSION: Any = "5e" * 16
ONE = 1 << 28
SAID = Distribution((7, 3, 9), (ONE, ONE // 2, 5), 11)


@st.composite
def distributions(draw: st.DrawFn) -> Distribution:
    size = draw(st.sampled_from([8, 8, 32]))
    most = draw(st.sampled_from([5, MAX_LISTED]))
    ids = draw(st.lists(st.integers(0, (1 << size) - 1), min_size=1, max_size=most, unique=True))
    some = draw(st.lists(st.integers(1, ONE), min_size=len(ids) - 1, max_size=len(ids) - 1))
    likelihoods = (ONE, *sorted(some, reverse=True))
    return Distribution(tuple(ids), likelihoods, draw(st.integers(0, likelihoods[-1])))


@given(distributions(), st.integers(0, (1 << 20) - 1))
def test_a_distribution_travels_as_it_is(said: Distribution, position: int) -> None:
    message = Weighed(SESSION, position, said)
    assert decode_frame(encode_frame(message))[0] == message
    back = Given(SESSION, position, said.ids[0])
    assert decode_frame(encode_frame(back))[0] == back


def test_as_many_tokens_travel_as_the_operator_lists() -> None:
    assert MAX_LISTED == LISTED


class Loose(Weighed, frozen=True, tag="weighed"):
    """The same message without its bounds."""

    def __post_init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("ids", "likelihoods", "rest"),
    [
        ((), (), 0),
        (tuple(range(MAX_LISTED + 1)), (ONE,) * (MAX_LISTED + 1), 0),
        ((1, 2), (ONE,), 0),
        ((1, 1), (ONE, 5), 0),
        ((1, 1 << 32), (ONE, 5), 0),
        ((-1, 2), (ONE, 5), 0),
        ((1, 2), (ONE - 1, 5), 0),
        ((1, 2, 3), (ONE, 5, 6), 0),
        ((1, 2), (ONE, 0), 0),
        ((1, 2), (ONE, -5), 0),
        ((1, 2), (ONE, 5), -1),
        ((1, 2), (ONE, 5), (5 << 20) + 1),
    ],
)
def test_what_is_no_distribution_is_refused(
    ids: tuple[int, ...], likelihoods: tuple[int, ...], rest: int
) -> None:
    said: Any = Distribution(ids, likelihoods, rest)
    with pytest.raises(ValueError, match="out of bounds"):
        Weighed(SESSION, 4, said)
    with pytest.raises(msgspec.ValidationError, match="out of bounds"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(Loose(SESSION, 4, said)), type=Weighed)


def test_the_root_stands_for_every_distribution_and_their_order() -> None:
    other = Distribution((7, 3, 9), (ONE, ONE // 2, 5), 12)
    hashes = [distribution_hash(SAID), distribution_hash(other)]
    roots = {distributions_root(h) for h in (hashes, hashes[::-1], hashes[:1], [])}
    assert len(roots) == 4
