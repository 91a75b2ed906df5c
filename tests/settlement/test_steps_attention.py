"""The referee of attention says what the step types say, whatever numbers it is shown."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.settlement.conftest import Compiled
from tests.settlement.evm import Contract, Evm, Reverted, account
from tests.settlement.referees import (
    GREEDY,
    WRONG,
    Judged,
    Place,
    agrees_on,
    deploy_table,
    edges,
    int64,
)
from tests.tiny_weights import FAMILIES
from tests.verification.fraud.dispute import answer_of
from unisono.verification.fraud.attention_steps import (
    Attended,
    Divisor,
    Largest,
    LargestValueExponent,
    Mixed,
    Probability,
    Rotation,
    Score,
    Seen,
    Turn,
    Weight,
)
from unisono.verification.fraud.parameters import Names
from unisono.verification.fraud.steps import Cell, Exponent, Rows, Step
from unisono.verification.fraud.tree import decode_block

FEW = settings(max_examples=40, deadline=None)
NAMES = (
    *("queries", "queries.exponent", "keys", "keys.exponent", "values", "values.exponent"),
    *("scores", "top", "probabilities", "highest", "weights", "divisor", "mixed", "common"),
    *("heads", "shift", "rotation", "logits"),
)
TENSORS = {name: 3 * k + 1 for k, name in enumerate(NAMES)}
KINDS = (
    *(Rotation, Turn, Score, Largest, LargestValueExponent),
    *(Probability, Weight, Divisor, Mixed, Attended),
)

small = st.integers(-80, 80)
numbers = small | int64
int16 = edges(15).map(lambda x: max(x, 1 - (1 << 15)))
totals = edges(70)
heads = st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from((32, 64, 96, 512)))


@st.composite
def places(draw: st.DrawFn) -> tuple[Place, Seen]:
    """A cell of a layer, and what it sees."""
    kv_heads, group, size = draw(heads)
    stage, position = draw(st.integers(1, 40)), draw(st.integers(0, 3000))
    start = max(0, position - draw(st.integers(0, 700)))
    seen = Seen(stage, position, start, group * kv_heads, kv_heads, size)
    return Place(stage, position, seen_start=start), seen


ALONE = Place(1, 0), Seen(1, 0, 0, 1, 1, 2)
"""The first position, one head."""


@pytest.fixture(scope="module")
def referee(compiled: Compiled) -> Contract:
    evm = Evm()
    tables = deploy_table(evm, "exponentials"), deploy_table(evm, "cosines")
    return evm.deploy(compiled("steps_attention"), account(1), *tables)


def judge(referee: Contract, step: Step, place: Place, grow: str = "") -> Judged:
    return Judged(referee, step, Names(TENSORS, 4, frozenset((grow,))), place)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_referee_finds_what_an_honest_layer_computed(referee: Contract, family: str) -> None:
    answer = answer_of(family)
    for cell in (Cell(1, 0), Cell(2, 8)):
        found: set[type[Step]] = set()
        for tensor in answer.hop.program(cell).tensors:
            if isinstance(tensor.step, KINDS):
                found.add(type(tensor.step))
                agrees_on(referee, answer, cell, tensor.name, 2)
        assert found == set(KINDS)


@FEW
@given(
    st.lists(st.integers(0, 1 << 42) | int64, min_size=1, max_size=256),
    st.integers(0, (1 << 20) - 1),
    st.integers(0, (1 << 20) + 1) | small,
    st.data(),
)
def test_rotation(
    referee: Contract, turns: list[int], position: int, factor: int, data: st.DataObject
) -> None:
    step = Rotation(position, tuple(turns), factor)
    of, i = judge(referee, step, Place(1, position)), data.draw(st.integers(0, 2 * len(turns) - 1))
    of.reads_agree(i)
    of.finish_agrees(i, 0, (), ())


@FEW
@given(st.lists(numbers, min_size=5, max_size=5), heads, st.data())
@example([(1 << 62) - 1, 1 - (1 << 62), 62, 1 << 22, -(1 << 22)], (1, 1, 32), None)
@example([1 << 62, 0, 62, 1, 1], (1, 1, 32), None)
@example([1, 0, 63, 1, 1], (1, 1, 32), None)
@example([1, 0, -1, 1, 1], (1, 1, 32), None)
def test_turn(
    referee: Contract, fixed: list[int], shape: tuple[int, int, int], data: st.DataObject | None
) -> None:
    groups, width = shape[0] * shape[1], shape[2]
    step = Turn(Rows("heads", groups, width, Exponent(-7)), "shift", "rotation")
    of = judge(referee, step, Place(1, 3))
    for i in (
        (0, groups * width - 1)
        if data is None
        else (data.draw(st.integers(0, groups * width - 1)),)
    ):
        of.reads_agree(i)
        of.finish_agrees(i, 0, (), [[x] for x in fixed])


@FEW
@given(places(), st.data(), st.tuples(st.integers(0, 1 << 20), small), numbers | small, small)
def test_score(
    referee: Contract,
    at: tuple[Place, Seen],
    data: st.DataObject,
    scale: tuple[int, int],
    query: int,
    key: int,
) -> None:
    place, seen = at
    of = judge(referee, Score(seen, scale), place)
    i = data.draw(st.integers(0, seen.heads * seen.count - 1))
    start = data.draw(st.integers(0, (seen.size - 1) // 128)) * 128
    stop = min(seen.size, start + 128)
    fixed = [[query], [key]]
    of.reads_agree(i)
    of.terms_agree(i, start, stop, fixed)
    of.finish_agrees(i, 0, (data.draw(totals),), fixed)


@FEW
@given(st.sampled_from((32, 64, 96, 128)), st.data())
def test_parts_of_scores(referee: Contract, count: int, data: st.DataObject) -> None:
    size = 2 * count
    rows = [
        decode_block(data.draw(st.binary(min_size=size, max_size=size)), "i2") for _ in range(2)
    ]
    of = judge(referee, Score(Seen(1, 9, 0, 4, 2, 256), (1, 0)), Place(1, 9))
    of.partial_agrees(3, 0, 0, [[0], [0]], rows, (2, 2))
    rows[data.draw(st.integers(0, 1))][data.draw(st.integers(0, count - 1))] = -(1 << 15)
    of.partial_agrees(3, 0, 0, [[0], [0]], rows, (2, 2))


def test_a_dot_product_of_largest_numbers_is_exact(referee: Contract) -> None:
    rows, most = [[(1 << 15) - 1] * 128, [1 - (1 << 15)] * 128], (1 << 15) - 1
    of = judge(referee, Score(Seen(1, 9, 0, 4, 2, 256), (1, 0)), Place(1, 9))
    of.partial_agrees(3, 0, 128, [[0], [0]], rows, (2, 2))
    opened = b"\xff\x7f" * 128 + b"\x01\x80" * 128
    assert of.partial(3, 0, 128, 256, [[0], [0]], opened) == (-128 * most * most,)
    bad = b"\xff\x7f" * 128 + b"\x01\x80" * 127 + b"\x00\x80"
    assert of.partial(3, 0, 128, 256, [[0], [0]], bad) == WRONG


@FEW
@given(st.lists(int64, min_size=1, max_size=32), places(), st.booleans(), st.data())
def test_largest(
    referee: Contract,
    row: list[int],
    at: tuple[Place, Seen],
    grows: bool,
    data: st.DataObject,
) -> None:
    place, seen = at
    tensor, width = ("scores", seen.count) if grows else ("logits", 4000)
    of = judge(referee, Largest(tensor, width), place, "scores")
    i = data.draw(st.integers(0, 15))
    of.reads_agree(i)
    of.terms_agree(i, 0, min(width, 32), ())
    of.partial_agrees(i, 0, 0, (), [row], (8,))
    of.finish_agrees(i, 0, (max(row),), ())


@FEW
@given(places(), st.data(), numbers)
def test_value_exponent(
    referee: Contract, at: tuple[Place, Seen], data: st.DataObject, exponent: int
) -> None:
    place, seen = at
    of = judge(referee, LargestValueExponent(seen), place)
    i, start = data.draw(st.integers(0, seen.heads - 1)), data.draw(st.integers(0, seen.count - 1))
    of.reads_agree(i)
    of.terms_agree(i, start, start + 1, ())
    of.terms_agree(i, seen.count - 1, seen.count, ())
    of.partial_agrees(i, 0, start, (), [[exponent]], (8,))
    of.finish_agrees(i, 0, (exponent,), ())


@FEW
@given(places(), st.data(), numbers, st.integers(0, 1 << 22) | numbers)
@example(ALONE, None, 5, 0)
@example(ALONE, None, (1 << 63) - 1, -(1 << 63))
@example(ALONE, None, -(1 << 63), (1 << 63) - 1)
def test_probability(
    referee: Contract,
    at: tuple[Place, Seen],
    data: st.DataObject | None,
    score: int,
    below: int,
) -> None:
    place, seen = at
    of = judge(referee, Probability(seen), place)
    i = 0 if data is None else data.draw(st.integers(0, seen.heads * seen.count - 1))
    of.reads_agree(i)
    top = below if data is None else max(-(1 << 63), min((1 << 63) - 1, score + below))
    of.finish_agrees(i, 0, (), [[score], [top]])


@FEW
@given(places(), st.data(), numbers, numbers, small | numbers)
def test_weight(
    referee: Contract,
    at: tuple[Place, Seen],
    data: st.DataObject,
    probability: int,
    highest: int,
    exponent: int,
) -> None:
    place, seen = at
    of = judge(referee, Weight(seen), place)
    i = data.draw(st.integers(0, seen.heads * seen.count - 1))
    of.reads_agree(i)
    of.finish_agrees(i, 0, (), [[probability], [highest], [exponent]])


@FEW
@given(places(), st.data(), st.lists(int64, min_size=1, max_size=32), totals)
@example(ALONE, None, [-(1 << 63)] * 32, -1)
def test_divisor(
    referee: Contract,
    at: tuple[Place, Seen],
    data: st.DataObject | None,
    row: list[int],
    total: int,
) -> None:
    place, seen = at
    of = judge(referee, Divisor(seen), place)
    i = 0 if data is None else data.draw(st.integers(0, seen.heads - 1))
    of.reads_agree(i)
    of.terms_agree(i, 0, min(32, seen.count), ())
    of.partial_agrees(i, 0, 0, (), [row], (8,))
    of.finish_agrees(i, 0, (total,), ())


@FEW
@given(
    places(),
    st.data(),
    edges(30) | numbers,
    edges(17).filter(lambda x: -(1 << 15) <= x < 1 << 15),
    totals,
    st.integers(-3, 1 << 30) | numbers,
)
@example(ALONE, None, 1 << 29, 1, 0, 1)
@example(ALONE, None, (1 << 29) - 1, (1 << 15) - 1, -1, 2)
@example(ALONE, None, -(1 << 29), 1, 0, 1)
@example(ALONE, None, 1, -(1 << 15), 7, -2)
def test_mixed(
    referee: Contract,
    at: tuple[Place, Seen],
    data: st.DataObject | None,
    weight: int,
    element: int,
    total: int,
    divisor: int,
) -> None:
    place, seen = at
    of = judge(referee, Mixed(seen), place)
    i, start = 0, 0
    if data is not None:
        i = data.draw(st.integers(0, seen.heads * seen.size - 1))
        start = data.draw(st.integers(0, seen.count - 1))
    fixed = [[divisor]]
    of.reads_agree(i)
    of.terms_agree(i, start, start + 1, fixed)
    of.partial_agrees(i, 0, start, fixed, [[weight], [element]], (8, 2))
    of.finish_agrees(i, 0, (total,), fixed)
    of.finish_agrees(i, 0, (total,), [[0]])


@FEW
@given(st.integers(0, 1 << 15), numbers, numbers, numbers | small, st.sampled_from((2, 64, 80)))
@example(0, -(1 << 37), 0, 3, 2)
@example(0, 1 << 38, 0, 3, 2)
@example(5, 1, 63, 0, 2)
@example(5, 1, 0, 1, 2)
def test_attended(referee: Contract, i: int, x: int, common: int, highest: int, size: int) -> None:
    of = judge(referee, Attended(size), Place(1, 5))
    of.reads_agree(i)
    of.finish_agrees(i, 0, (), [[x], [common], [highest]])


@pytest.mark.parametrize(
    ("step", "opened"),
    [
        (Score(Seen(1, 9, 0, 4, 2, 256), (1, 0)), bytes(511)),
        (Largest("logits", 100), bytes(255)),
        (Divisor(Seen(1, 200, 0, 4, 2, 256)), bytes(504)),
        (Mixed(Seen(1, 9, 0, 4, 2, 256)), bytes(11)),
        (Attended(4), b""),
    ],
    ids=lambda x: x.kind if isinstance(x, Step) else "",
)
def test_bytes_that_are_no_chunk_convict_nobody(
    referee: Contract, step: Step, opened: bytes
) -> None:
    of = judge(referee, step, Place(1, 9, sampling=GREEDY))
    with pytest.raises(Reverted) as refused:
        of.partial(0, 0, 0, 128, [[0], [0]], opened)
    assert str(refused.value) != WRONG


def test_a_step_of_another_referee_is_refused(referee: Contract) -> None:
    context = Place(1, 9).context()
    for kind in (0, 1, 23 + 13, 1 << 200):
        with pytest.raises(Reverted, match="another referee"):
            referee.view("finish", kind, [], context, 0, 0, [], [])
