from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import PeerCheating, PeerRefused
from unisono.execution.session import ArrivedRows, HopSession, Inbox
from unisono.models.cache import REACH_BACK
from unisono.models.rows import hash_of
from unisono.types import LayerRange, SampledToken, Sampling, SessionId
from unisono.wire.claims import rows_root, tokens_root
from unisono.wire.identity import Identity
from unisono.wire.messages import Rewired, Tokens
from unisono.wire.rows import encode_rows

NODE = Identity.from_seed(b"\x01" * 32)
PROMPT = [5, 6, 7]
SESSION = SessionId("5e" * 16)
PENALISED = Sampling(frequency_penalty=9)


def session(
    hop: int,
    hops: int = 3,
    computed: int = 0,
    answer: tuple[int, ...] = (),
    sampling: Sampling = Sampling(seed=3),
    max_tokens: int = 4,
) -> HopSession:
    """A session whose prompt has 3 tokens and whose answer may have 4."""
    opened: Any = SimpleNamespace(
        weigh=False,
        session="5e" * 16,
        request_hash="4e" * 32,
        gateway="6a" * 32,
        model="7b" * 32,
        layers=LayerRange(hop, hop + 1),
        hop=hop,
        hops=hops,
        previous="8c" * 32,
        next=None,
        resume=3,
        prompt=3,
        positions=3 + max_tokens,
        max_tokens=max_tokens,
        stop_tokens=(99,),
        sampling=sampling,
        top_logprobs=-1,
    )
    tokens = [*PROMPT, *answer] if hop in (0, hops - 1) else []
    made = HopSession(opened, tokens, cache=None, control=None)  # type: ignore[arg-type]
    incoming = [hash_of(bytes([1, i % 256])) for i in range(computed)]
    made.record(0, incoming, [hash_of(bytes([2, i % 256])) for i in range(computed)])
    return made


def rows(position: int, count: int, tokens: Sequence[int] = ()) -> ArrivedRows:
    """Rows of two values that say their position."""
    values = np.repeat(np.arange(position, position + count, dtype=np.int64)[:, None], 2, axis=1)
    return ArrivedRows(position, tuple(tokens), values, encode_rows(values)[1])


def positions(arrived: ArrivedRows | None) -> list[int]:
    """Which rows are left, checked against their bytes."""
    if arrived is None:
        return []
    found = list(range(arrived.position, arrived.position + arrived.count))
    assert arrived.values.tolist() == [[p, p] for p in found]
    assert [bytes(row) for row in arrived.encoded] == [
        np.array([p, p], dtype="<i4").tobytes() for p in found
    ]
    assert len(arrived.tokens) in (0, len(found))
    return found


def sampled(position: int, *tokens: int) -> list[SampledToken]:
    return [SampledToken(position + i, t) for i, t in enumerate(tokens)]


def test_a_claim_covers_what_gave_the_accepted_tokens_and_no_more() -> None:
    hop = session(2, computed=6, answer=(10, 11, 12, 13))
    claim = hop.claim(2, NODE, 7)
    assert claim.positions == 4  # three of the prompt, and the first token, which gave the second
    assert claim.rows_in == rows_root(hop.in_hashes[:4])
    assert claim.rows_out == rows_root(hop.out_hashes[:4])
    assert claim.out_tags == b"".join(h[:3] for h in hop.out_hashes[:4])
    assert claim.tokens == tokens_root((10, 11))
    assert claim.node == NODE.node_id
    assert claim.epoch == 7
    assert claim.signature_is_good()


@pytest.mark.parametrize("hop", [0, 1])
def test_only_the_last_hop_signs_tokens(hop: int) -> None:
    assert session(hop, computed=6, answer=(10, 11, 12, 13)).claim(2, NODE, 7).tokens == ""


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("tokens", [0, -1, 3])
def test_nothing_is_signed_that_was_not_computed(hop: int, tokens: int) -> None:
    with pytest.raises(PeerRefused) as refusal:
        session(hop, computed=4, answer=(10, 11)).claim(tokens, NODE, 7)
    assert refusal.value.code == "not_computed"


def test_a_row_whose_token_was_not_sampled_is_not_signed_as_an_answer() -> None:
    with pytest.raises(PeerRefused, match="only 1 tokens were sampled"):
        session(2, computed=4, answer=(10,)).claim(2, NODE, 7)


def test_an_answer_ends_with_a_stop_token_or_at_its_length() -> None:
    assert not session(0).ended
    assert not session(0, answer=(1, 2, 3)).ended
    assert session(0, answer=(1, 2, 3, 4)).ended
    assert session(0, answer=(1, 99)).ended
    assert not session(0, answer=(99, 1)).ended


def test_a_hop_says_how_far_back_it_may_be_given_rows_again() -> None:
    made = session(1, computed=200, max_tokens=300)
    made.record(150, [b""], [b""])
    assert made.rewired() == Rewired(SESSION, 151, 200 - REACH_BACK)
    assert positions(made.usable(rows(made.rewired().earliest, 1, [1]))) == [136]
    assert session(1, computed=20).rewired() == Rewired(SESSION, 20, 0)
    assert session(0, answer=(10,)).rewired() == Rewired(SESSION, 4, 0)


def test_a_first_hop_wants_the_next_token_and_any_other_the_next_row() -> None:
    assert session(0, computed=2, answer=(10,)).wanted == 4
    assert session(1, computed=2).wanted == 2
    assert session(2, computed=2, answer=(10,)).wanted == 2


# --- what is drawn ------------------------------------------------------------------------------


def test_only_the_last_hop_draws_and_only_after_the_last_known_token() -> None:
    last = session(2, answer=(10,))
    (draw,) = last.draws(3, (10,))
    assert len(draw.tokens) == 0  # nothing looks at them without a penalty
    (penalised,) = session(2, answer=(10,), sampling=PENALISED).draws(3, (10,))
    assert (penalised.prompt, penalised.tokens.tolist()) == (3, [5, 6, 7, 10])
    assert last.draws(0, (5, 6, 7)) == ()
    assert session(0, answer=(10,)).draws(3, (10,)) == ()
    assert session(1).draws(3, (10,)) == ()
    assert len(session(0, hops=1, answer=(10,)).draws(3, (10,))) == 1


def test_after_the_last_known_token_every_guess_is_drawn_after_too() -> None:
    hop = session(2, answer=(10,), sampling=PENALISED, max_tokens=20)
    assert [d.tokens.tolist() for d in hop.draws(1, (6, 7, 10, 20, 21))] == [
        [5, 6, 7, 10],
        [5, 6, 7, 10, 20],
        [5, 6, 7, 10, 20, 21],
    ]
    assert [d.tokens.tolist() for d in hop.draws(3, (10, 20))] == [[5, 6, 7, 10], [5, 6, 7, 10, 20]]
    assert hop.draws(4, (20, 21)) == ()  # what would be drawn before them has not come
    plain = session(2, answer=(10,), max_tokens=20)
    assert len(plain.draws(1, (6, 7, 10, 20, 21))) == 3


def test_nothing_is_drawn_beyond_the_end_of_the_answer() -> None:
    hop = session(2, answer=(10, 11))  # two more at most
    assert len(hop.draws(4, (11, 20, 21, 22))) == 2
    assert session(2, answer=(10, 11, 12, 13)).draws(6, (13,)) == ()
    assert session(2, answer=(10, 99)).draws(4, (99,)) == ()


# --- what is accepted ---------------------------------------------------------------------------


def test_what_was_drawn_is_accepted_up_to_the_first_token_that_was_not_guessed() -> None:
    hop = session(2, computed=7, answer=(10,), max_tokens=20)
    drawn = sampled(4, 20, 31, 32)  # guessed were 20, 21 and 22
    assert hop.accept(3, (10, 20, 21, 22), drawn) == drawn[:2]
    assert hop.generated == (10, 20, 31)
    assert len(hop.in_hashes) == len(hop.out_hashes) == 5  # the rows of 21 and 22 are void


def test_when_all_guesses_are_right_there_is_one_token_more() -> None:
    hop = session(2, computed=6, answer=(10,), max_tokens=20)
    drawn = sampled(4, 20, 21, 22)
    assert hop.accept(3, (10, 20, 21), drawn) == drawn
    assert hop.generated == (10, 20, 21, 22)
    assert len(hop.in_hashes) == 6


def test_nothing_is_accepted_after_a_stop_token() -> None:
    hop = session(2, computed=7, answer=(10,), max_tokens=20)
    assert hop.accept(3, (10, 99, 99), sampled(4, 99, 99, 99)) == sampled(4, 99)
    assert hop.generated == (10, 99)
    assert hop.ended


def test_without_a_draw_no_row_is_void() -> None:
    hop = session(2, computed=2)
    assert hop.accept(0, (5, 6), []) == []
    assert len(hop.in_hashes) == 2


@given(st.data())
def test_whatever_is_guessed_the_last_hop_accepts_what_would_have_come_one_by_one(
    data: st.DataObject,
) -> None:
    truth = data.draw(st.lists(st.sampled_from([10, 11, 99]), min_size=12, max_size=12))
    end = next((i + 1 for i, t in enumerate(truth) if t == 99), 10)
    truth = truth[: min(end, 10)]
    hop = session(2, computed=3, max_tokens=10)
    accepted = list[SampledToken]()
    hop.record(0, [b"in"] * 3, [b"out"] * 3)
    for token in hop.accept(0, PROMPT, sampled(3, truth[0])):
        accepted.append(token)
    while not hop.ended:
        known = len(hop.tokens)
        guesses = data.draw(st.lists(st.sampled_from([10, 11]), max_size=6))
        ids = (hop.tokens[-1], *guesses)
        draws = hop.draws(known - 1, ids)
        # the sampler says the truth as long as what it was given is the truth, then anything
        told, right = list[int](), True
        for i in range(len(draws)):
            at = known - 3 + i
            right = right and (i == 0 or ids[i] == truth[at - 1])
            told.append(truth[at] if right else 13)
        hop.record(known - 1, [b"in"] * len(ids), [b"out"] * len(ids))
        accepted += hop.accept(known - 1, ids, sampled(known, *told))
        assert hop.generated == tuple(truth[: len(hop.generated)])
        assert len(hop.in_hashes) == len(hop.out_hashes) == len(hop.tokens) - 1
    assert [t.token for t in accepted] == truth
    assert [t.position for t in accepted] == [*range(3, 3 + len(truth))]


# --- what is worth computing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hop", "computed", "arrived", "problem"),
    [
        (1, 2, rows(3, 1), "rows from position 3 came when position 2 was next"),
        (2, 2, rows(3, 1, [10]), "rows from position 3 came when position 2 was next"),
        (2, 2, rows(2, 2), "a row came for position 3 without its token"),
        (2, 3, rows(3, 1), "a row came for position 3 without its token"),
    ],
)
def test_rows_out_of_order_out_of_bounds_or_without_their_tokens_are_cheating(
    hop: int, computed: int, arrived: ArrivedRows, problem: str
) -> None:
    with pytest.raises(PeerCheating, match=problem):
        session(hop, computed=computed, answer=(10,)).usable(arrived)


@pytest.mark.parametrize("hop", [1, 2])
def test_rows_may_replace_as_many_as_a_session_may_go_back(hop: int) -> None:
    tokens = tuple(range(100, 300))
    for back in (0, 1, REACH_BACK):
        made = session(hop, computed=200, answer=tokens, max_tokens=300)
        at = 200 - back
        assert positions(made.usable(rows(at, 1, [tokens[at - 3]]))) == [at]
    made = session(hop, computed=200, answer=tokens, max_tokens=300)
    at = 200 - REACH_BACK - 1
    with pytest.raises(PeerCheating, match=f"replace more than {REACH_BACK} of 200"):
        made.usable(rows(at, 1, [tokens[at - 3]]))


def test_a_session_that_went_back_may_not_go_back_from_there_as_far_again() -> None:
    # its windows keep what it sees from REACH_BACK before the furthest that it has been
    made = session(1, computed=200, max_tokens=300)
    made.record(140, [b""], [b""])
    assert positions(made.usable(rows(200 - REACH_BACK, 1, [1]))) == [136]
    with pytest.raises(PeerCheating, match="replace more than"):
        made.usable(rows(200 - REACH_BACK - 1, 1, [1]))


def test_rows_in_order_are_all_computed() -> None:
    assert positions(session(1, computed=2).usable(rows(2, 5))) == [2, 3, 4, 5, 6]
    assert positions(session(1, computed=2).usable(rows(1, 5))) == [1, 2, 3, 4, 5]
    assert positions(session(2, computed=2).usable(rows(2, 1))) == [2]
    last = session(2, computed=2, answer=(10,))
    assert positions(last.usable(rows(2, 2, [7, 10]))) == [2, 3]


def test_the_last_hop_computes_no_row_behind_a_wrong_guess() -> None:
    def last() -> HopSession:
        return session(2, computed=4, answer=(10, 11, 12), max_tokens=20)

    assert positions(last().usable(rows(4, 3, [11, 12, 50]))) == [4, 5, 6]
    assert positions(last().usable(rows(4, 3, [11, 50, 51]))) == [4]
    assert positions(last().usable(rows(4, 3, [50, 12, 51]))) == []
    assert positions(last().usable(rows(6, 2, [50, 51]))) == []  # behind one that was wrong


def test_the_last_hop_computes_nothing_for_an_answer_that_is_complete() -> None:
    ended = session(2, computed=3, answer=(10, 99))
    # the row of the stop token is not needed, that before it is, for the claim
    assert positions(ended.usable(rows(3, 3, [10, 99, 1]))) == [3]
    assert positions(ended.usable(rows(4, 1, [99]))) == []


# --- what waits ---------------------------------------------------------------------------------


def test_rows_that_wait_and_are_replaced_are_not_kept() -> None:
    inbox = Inbox()
    for arrived in (rows(0, 4), rows(4, 4, [1, 2, 3, 4]), rows(8, 4, [5, 6, 7, 8])):
        inbox.put(arrived)
    inbox.put(rows(6, 1, [9]))
    kept = list[tuple[int, ...]]()
    while (item := inbox.take()) is not None:
        assert isinstance(item, ArrivedRows)
        kept.append((*positions(item), *item.tokens))
    assert kept == [(0, 1, 2, 3), (4, 5, 1, 2), (6, 9)]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=12), st.data())
def test_what_waits_gives_the_same_rows_in_the_end_as_all_that_came(
    batches: list[tuple[int, int]], data: st.DataObject
) -> None:
    inbox, came, taken = Inbox(), list[ArrivedRows](), list[ArrivedRows]()

    def final(arrivals: list[ArrivedRows]) -> list[tuple[int, int]]:
        """(position, token) of rows, when later ones replace earlier ones and those behind."""
        held = dict[int, int]()
        for a in arrivals:
            held = {p: t for p, t in held.items() if p < a.position}
            held |= {a.position + i: t for i, t in enumerate(a.tokens)}
        return sorted(held.items())

    for n, (position, count) in enumerate(batches):
        arrived = rows(position, count, [1000 * n + i for i in range(count)])
        came.append(arrived)
        inbox.put(arrived)
        if data.draw(st.booleans()) and (item := inbox.take()) is not None:
            assert isinstance(item, ArrivedRows)
            taken.append(item)
    while (item := inbox.take()) is not None:
        assert isinstance(item, ArrivedRows)
        positions(item)
        taken.append(item)
    assert final(taken) == final(came)
    assert len(taken) <= len(came)


async def test_who_waits_for_an_arrival_gets_the_first_that_comes() -> None:
    inbox = Inbox()
    waiting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    first, second = (Tokens("5e" * 16, tuple(sampled(p, 1))) for p in (3, 4))  # type: ignore[arg-type]
    inbox.put(first)
    inbox.put(second)
    assert await waiting == first
    assert await inbox.get() == second
    assert inbox.take() is None
