"""The referee of choosing a token says what the step types say, whatever numbers it is shown."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.settlement.conftest import Compiled
from tests.settlement.evm import Contract, Evm, Reverted, account
from tests.settlement.referees import (
    WRONG,
    Judged,
    Place,
    agrees_on,
    deploy_table,
    edges,
    int64,
)
from tests.verification.fraud.dispute import EVERYTHING, PROMPT, answer_of
from unisono.types import Q16, Sampling
from unisono.verification.fraud.parameters import Names
from unisono.verification.fraud.sampling_steps import (
    NEVER,
    Adjust,
    Chosen,
    Count,
    Distance,
    Likelihood,
    Mass,
    Noisy,
    Nucleus,
    RankKey,
    Step,
    TopK,
    Winner,
)
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.tree import decode_block

FEW = settings(max_examples=40, deadline=None)
NAMES = (
    *("logits", "seen", "repeats", "adjusted", "best", "below", "likelihoods", "keys"),
    *("top_k.bound", "nucleus.mass", "nucleus.bound", "noisy", "winner"),
)
TENSORS = {name: 2 * k + 5 for k, name in enumerate(NAMES)}
KINDS = (
    *(Count, Adjust, Distance, Likelihood, RankKey, TopK),
    *(Mass, Nucleus, Noisy, Winner, Chosen),
)
VOCABULARY = 3001

ids = st.integers(0, (1 << 20) - 1)
int32 = st.integers(-(1 << 31), (1 << 31) - 1) | edges(31)
counts = st.integers(0, 3) | edges(31)
penalties = st.integers(-(1 << 31), (1 << 31) - 1)
rows = st.lists(int64, min_size=1, max_size=32)
totals = edges(70)
SAMPLINGS = {
    "everything": EVERYTHING,
    "greedy": Sampling(),
    "plain": Sampling(temperature=40000, seed=3),
    "top-k": Sampling(temperature=Q16, top_k=7, seed=1),
    "top-p": Sampling(temperature=Q16, top_p=30000, seed=2),
}


@pytest.fixture(scope="module")
def referee(compiled: Compiled) -> Contract:
    evm = Evm()
    tables = deploy_table(evm, "exponentials"), deploy_table(evm, "logarithms")
    return evm.deploy(compiled("steps_choice"), account(1), *tables)


def judge(
    referee: Contract,
    step: Step,
    sampling: Sampling = EVERYTHING,
    position: int = 300,
    prompt: int = PROMPT,
) -> Judged:
    place = Place(9, position, prompt, sampling=sampling)
    return Judged(referee, step, Names(TENSORS, 0, frozenset()), place)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_referee_finds_how_an_honest_token_was_chosen(referee: Contract, name: str) -> None:
    answer = answer_of("llama", SAMPLINGS[name])
    found: set[type[Step]] = set()
    for cell in (Cell(3, PROMPT - 1), Cell(3, PROMPT + 3)):
        for tensor in answer.hop.program(cell).tensors:
            if isinstance(tensor.step, KINDS):
                found.add(type(tensor.step))
                agrees_on(referee, answer, cell, tensor.name, 4)
    assert found == set(KINDS) or name != "everything"


@FEW
@given(st.lists(int32, max_size=64), st.booleans(), st.integers(0, 900), st.data())
def test_count(
    referee: Contract, row: list[int], answered: bool, length: int, data: st.DataObject
) -> None:
    prompt = data.draw(st.integers(1, 50))
    position = prompt + length
    step = Count(prompt if answered else 0, position)
    of = judge(referee, step, position=position - 1, prompt=prompt)
    i = data.draw(st.sampled_from(row) if row and data.draw(st.booleans()) else ids)
    of.reads_agree(max(i, 0))
    of.terms_agree(max(i, 0), 3, 67, ())
    of.partial_agrees(max(i, 0), 0, 128, (), [row], (4,))
    of.finish_agrees(max(i, 0), 0, (len(row),), ())
    of.finish_agrees(max(i, 0), 0, (), ())


@st.composite
def penalised(draw: st.DrawFn) -> Sampling:
    """A request with penalties, which no other rule bounds."""
    return Sampling(
        repetition_penalty=draw(st.integers(1, 64 * Q16 - 1) | st.just(Q16)),
        presence_penalty=draw(penalties),
        frequency_penalty=draw(penalties),
        logit_bias=draw(st.just(()) | penalties.map(lambda bias: ((7, bias),))),
    )


@FEW
@given(penalised(), st.booleans(), edges(41) | int64, counts, counts)
@example(Sampling(repetition_penalty=Q16 + 1), True, -1, 1, 0)
@example(Sampling(repetition_penalty=Q16 + 1), True, 0, 1, 0)
@example(Sampling(repetition_penalty=Q16 + 1), True, 1, 1, 0)
@example(Sampling(repetition_penalty=64 * Q16 - 1), True, 1 - (1 << 40), 1, 0)
@example(Sampling(repetition_penalty=1), True, (1 << 40) - 1, 1, 0)
@example(Sampling(frequency_penalty=(1 << 31) - 1), True, 0, 0, (1 << 31) - 1)
@example(Sampling(frequency_penalty=-(1 << 31)), True, 0, 0, -(1 << 31))
@example(Sampling(presence_penalty=5), True, 0, 0, 0)
@example(Sampling(logit_bias=((7, -(1 << 31)),)), False, 1 - (1 << 40), 0, 0)
def test_adjust(
    referee: Contract, sampling: Sampling, counted: bool, logit: int, seen: int, repeats: int
) -> None:
    of = judge(referee, Adjust(sampling, counted), sampling)
    fixed = [[logit], [seen], [repeats]][: 3 if counted else 1]
    for i in (7, 8):
        of.reads_agree(i)
        of.finish_agrees(i, 0, (), fixed)


@FEW
@given(st.integers(1, (1 << 31) - 1), int64, int64, ids)
@example(3, 5, 0, 1)
@example(1, 0, (1 << 47) - 1, 1)
@example(1, 0, 1 << 47, 1)
def test_distance(referee: Contract, temperature: int, score: int, best: int, i: int) -> None:
    of = judge(referee, Distance(temperature), Sampling(temperature=temperature))
    of.reads_agree(i)
    of.finish_agrees(i, 0, (), [[score], [best]])


@FEW
@given(edges(25) | int64, ids)
@example(40 << 16, 1)
@example(-(1 << 20), 1)
def test_likelihood_and_rank(referee: Contract, below: int, i: int) -> None:
    for step in (Likelihood(), RankKey()):
        of = judge(referee, step)
        of.reads_agree(i)
        of.finish_agrees(i, 0, (), [[below]])


@FEW
@given(rows, int64, st.integers(1, 100), st.data())
def test_top_k(referee: Contract, row: list[int], bound: int, k: int, data: st.DataObject) -> None:
    value = data.draw(st.sampled_from(row)) if data.draw(st.booleans()) else bound
    of = judge(referee, TopK(VOCABULARY, k), Sampling(temperature=1, top_k=k))
    of.reads_agree(0)
    of.terms_agree(0, VOCABULARY // 32 * 32, VOCABULARY, ())
    of.partial_agrees(0, value, 64, (), [row], (8,))
    fewer, equal = data.draw(st.integers(k - 2, k)), data.draw(st.integers(0, 2))
    of.finish_agrees(0, value, (fewer, equal), ())
    assert of.finish(0, value, (k - 1, 1), ()) == value


pairs = st.lists(st.tuples(edges(38) | int64, edges(62)), min_size=1, max_size=32)


@FEW
@given(pairs, st.booleans(), st.integers(0, Q16), edges(62), totals, st.data())
@example([(-(1 << 63), -(1 << 63))] * 32, False, Q16, 0, -(1 << 48), None)
@example([(1, 2)], True, Q16, 2, (1 << 48) - 1, None)
@example([(1, 2)], True, Q16, 1, 1 << 48, None)
def test_mass(
    referee: Contract,
    tokens: list[tuple[int, int]],
    bounded: bool,
    top_p: int,
    bound: int,
    total: int,
    data: st.DataObject | None,
) -> None:
    of = judge(referee, Mass(VOCABULARY, bounded, top_p), Sampling(temperature=1, top_p=top_p))
    likelihoods, keys = ([pair[k] for pair in tokens] for k in (0, 1))
    if data is not None and data.draw(st.booleans()):
        bound = data.draw(st.sampled_from(keys))
    fixed = [[bound]] if bounded else []
    of.reads_agree(0)
    of.terms_agree(0, 32, 64, fixed)
    of.partial_agrees(0, 0, 32, fixed, [likelihoods, keys], (8, 8))
    of.finish_agrees(0, 0, (total,), fixed)


@FEW
@given(
    pairs, st.booleans(), st.lists(st.integers(0, 3) | edges(40), min_size=6, max_size=6), st.data()
)
def test_nucleus(
    referee: Contract,
    tokens: list[tuple[int, int]],
    bounded: bool,
    sums: list[int],
    data: st.DataObject,
) -> None:
    of = judge(referee, Nucleus(VOCABULARY, bounded), Sampling(temperature=1, top_p=9))
    likelihoods, keys = ([pair[k] for pair in tokens] for k in (0, 1))
    value, bound = (
        data.draw(st.sampled_from(keys)) if data.draw(st.booleans()) else data.draw(edges(62))
        for _ in range(2)
    )
    mass, before, at, fewer, equal, more = sums
    fixed = [[mass], [bound]][: 1 + bounded]
    of.reads_agree(0)
    of.terms_agree(0, 32, 64, fixed)
    of.partial_agrees(0, value, 32, fixed, [likelihoods, keys], (8, 8))
    of.finish_agrees(0, value, (before, at, fewer, equal, more), fixed)
    of.finish_agrees(0, value, (before, at, fewer, 1, more), fixed)


@pytest.mark.parametrize(
    ("mass", "total", "right"),
    [
        (100, (99, 1, 3, 1, 5), True),
        (100, (100, 1, 3, 1, 5), False),
        (100, (99, 0, 3, 1, 5), False),
        (100, (99, 0, 3, 1, 0), True),
        (0, (0, 7, 0, 1, 5), True),
        (100, (99, 1, 3, 2, 5), False),
        (100, (99, 1, 3, 0, 5), False),
    ],
)
def test_a_nucleus_ends_where_its_mass_is_reached(
    referee: Contract, mass: int, total: tuple[int, ...], right: bool
) -> None:
    of = judge(referee, Nucleus(VOCABULARY, False))
    of.finish_agrees(0, 42, total, [[mass]])
    assert of.finish(0, 42, total, [[mass]]) == (42 if right else WRONG)


@FEW
@given(
    st.integers(0, (1 << 32) - 2),
    st.integers(0, (1 << 63) - 1),
    st.integers(0, Q16),
    ids,
    edges(25) | int64,
    st.integers(1, 1 << 28) | int64,
    st.lists(edges(62), min_size=1, max_size=3),
)
@example(5, 1, 0, 3, 0, 1 << 28, [5, 5, 5])
@example(5, 1, 0, 3, 0, 1 << 28, [5, 5, 4])
@example(5, 1, 0, 3, 0, 1 << 28, [5, 4, 5])
@example(5, 1, 1, 3, 0, (1 << 12) - 1, [5])
@example(5, 1, 1, 3, 0, 1 << 12, [5])
@example(5, 1, 0, 3, 0, 0, [5])
def test_noisy(
    referee: Contract,
    position: int,
    seed: int,
    min_p: int,
    i: int,
    below: int,
    likelihood: int,
    keys: list[int],
) -> None:
    sampling = Sampling(temperature=1, seed=seed, min_p=min_p)
    bounds = ("top_k.bound", "nucleus.bound")[: len(keys) - 1]
    step = Noisy(position + 1, seed, min_p, bounds)
    of = judge(referee, step, sampling, position)
    of.reads_agree(i)
    of.finish_agrees(i, 0, (), [[x] for x in (below, likelihood, *keys)])


@FEW
@given(st.integers(0, 1 << 40), st.integers(0, (1 << 63) - 1), ids, st.integers(0, 1 << 22))
def test_noise_of_tokens_that_are_kept(
    referee: Contract, position: int, seed: int, i: int, below: int
) -> None:
    position %= 1 << 32
    step = Noisy(position, seed, 0, ())
    of = judge(referee, step, Sampling(temperature=1, seed=seed), position - 1 if position else 0)
    if not position:
        return
    fixed = [[below], [1 << 28], [0]]
    found = of.finish(i, 0, (), fixed)
    assert found == step.finish(i, 0, (), fixed) != NEVER


@FEW
@given(st.lists(edges(44) | edges(43), min_size=1, max_size=32), ids, st.booleans())
@example([5, 5, 4], 0, False)
@example([-5, -5, -6], 0, False)
@example([(1 << 43) - 1, 1 - (1 << 43)], (1 << 20) - 2, True)
@example([0, 1 << 43], 0, False)
@example([0, -(1 << 43)], 0, False)
def test_winner(referee: Contract, row: list[int], start: int, noisy: bool) -> None:
    of = judge(referee, Winner("noisy" if noisy else "adjusted", VOCABULARY))
    start = min(start, (1 << 20) - len(row))
    of.reads_agree(0)
    of.terms_agree(0, 32, 64, ())
    of.partial_agrees(0, 0, start, (), [row], (8,))
    of.finish_agrees(0, 0, (max(row) << 20,), ())


@FEW
@given(int64, ids | int32, st.booleans(), st.integers(0, (1 << 32) - 2))
def test_chosen(referee: Contract, winner: int, token: int, same: bool, position: int) -> None:
    of = judge(referee, Chosen(position + 1), position=position)
    if same:
        token = (1 << 20) - 1 - (winner & ((1 << 20) - 1))
    of.reads_agree(0)
    of.finish_agrees(0, 1, (), [[winner], [token]])


@pytest.mark.parametrize(
    ("step", "opened"),
    [
        (Count(0, 301), bytes(253)),
        (TopK(VOCABULARY, 3), bytes(504)),
        (Mass(VOCABULARY, False, 3), bytes(256)),
        (Nucleus(VOCABULARY, False), bytes(256)),
        (Winner("noisy", VOCABULARY), b""),
        (Chosen(4), b""),
    ],
    ids=lambda x: x.kind if isinstance(x, Step) else "",
)
def test_bytes_that_are_no_chunk_convict_nobody(
    referee: Contract, step: Step, opened: bytes
) -> None:
    with pytest.raises(Reverted) as refused:
        judge(referee, step).partial(0, 0, 0, 32, [[0], [0]], opened)
    assert str(refused.value) != WRONG


def test_a_step_of_another_referee_is_refused(referee: Contract) -> None:
    context = Place(1, 9).context()
    for kind in (0, 1, 28, 36, 1 << 200):
        with pytest.raises(Reverted, match="another referee"):
            referee.view("finish", kind, [], context, 0, 0, [], [])


def test_every_token_of_a_leaf_is_counted(referee: Contract) -> None:
    leaf = b"\x05\x00\x00\x00" * 64
    assert decode_block(leaf, "i4") == [5] * 64
    of = judge(referee, Count(0, 301))
    assert of.partial(5, 0, 64, 128, (), leaf) == (64,)
    assert of.partial(4, 0, 64, 128, (), leaf) == (0,)
