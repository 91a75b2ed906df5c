from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.execution.draft import ORDERS, PAST_ORDERS, PRIOR, Drafter, PastAnswers

words = st.lists(st.integers(0, 5), max_size=60)


def drafter(tokens: list[int], past: PastAnswers | None = None) -> Drafter:
    made = Drafter(past or PastAnswers())
    made.learn(tokens)
    return made


def ahead(made: Drafter, count: int) -> list[int]:
    """The tokens that are guessed to come next."""
    found: list[int] = []
    while len(found) < count and (guess := made.guess(found)) is not None:
        found.append(guess.token)
    return found


def test_what_repeats_itself_is_guessed_right_as_far_as_one_looks() -> None:
    period = random.Random(3).sample(range(1000), 23)
    assert ahead(drafter(2 * period), 100) == (6 * period)[:100]


def test_a_passage_that_was_said_before_is_guessed_to_its_end() -> None:
    text = random.Random(4).sample(range(1000), 200)
    made = drafter([*text, *text[50:56]])
    assert ahead(made, 140) == text[56:196]


def test_the_longest_context_decides() -> None:
    # after 3 came 9 most often and most recently; after 1 2 3 came 4
    made = drafter([1, 2, 3, 4, 7, 3, 9, 8, 3, 9, 5, 1, 2, 3])
    guess = made.guess([])
    assert guess is not None
    assert (guess.token, guess.source) == (4, (False, 3))


def test_nothing_is_guessed_without_grounds() -> None:
    assert drafter([]).guess([]) is None
    assert drafter([1, 2, 3]).guess([]) is None
    assert drafter([1, 2, 3]).guess([9, 9]) is None


def test_guesses_before_are_part_of_the_context() -> None:
    made = drafter([1, 2, 3, 4, 5])
    assert made.guess([]) is None
    guess = made.guess([2])
    assert guess is not None
    assert guess.token == 3


def test_past_answers_help_where_a_session_knows_nothing_and_yield_where_it_does() -> None:
    past = PastAnswers()
    past.learn([1, 2, 3, 4, 5, 6], 0)
    made = drafter([50, 2, 3], past)
    guess = made.guess([])
    assert guess is not None
    assert (guess.token, guess.source) == (4, (True, 2))
    assert ahead(made, 10) == [4, 5, 6]
    own = drafter([2, 3, 9, 2, 3], past).guess([])
    assert own is not None
    assert (own.token, own.source) == (9, (False, 2))


def test_of_the_prompt_only_what_led_to_the_answer_is_remembered() -> None:
    past = PastAnswers()
    past.learn([10, 11, 12, 13, 14], 3)
    assert past.next((10,)) is None
    assert past.next((12,)) == 13
    assert past.next((11, 12)) == 13
    assert past.next((13,)) == 14


@settings(max_examples=50, deadline=None)
@given(st.lists(words, max_size=20), st.integers(1, 40))
def test_past_answers_keep_a_bounded_number_of_contexts_and_the_latest_for_sure(
    answers: list[list[int]], entries: int
) -> None:
    past = PastAnswers(entries)
    longest = max((len(PAST_ORDERS) * len(answer) for answer in answers), default=0)
    for answer in answers:
        past.learn(answer, 0)
        assert len(past._young) <= entries
        assert len(past._old) <= entries + longest
        for position in range(1, len(answer)):
            context = tuple(answer[max(0, position - 6) : position])
            if len(context) in PAST_ORDERS:
                assert past.next(context) is not None


def test_what_is_old_is_forgotten() -> None:
    past = PastAnswers(100)
    past.learn([1, 2, 3, 4, 5, 6, 7, 8], 0)
    for round_ in range(20):
        past.learn([100 * round_ + i for i in range(20, 60)], 0)
    assert past.next((1,)) is None
    assert past.next((1955,)) == 1956


@settings(max_examples=100, deadline=None)
@given(words, words, words)
def test_guesses_follow_the_longest_context_that_was_seen_whatever_was_said(
    tokens: list[int], before: list[int], guesses: list[int]
) -> None:
    past = PastAnswers()
    past.learn(before, 0)
    guess = drafter(tokens, past).guess(guesses)
    tail = [*tokens, *guesses]

    def followed(text: list[int], order: int) -> int | None:
        """What came last in `text` after the last tokens of the tail."""
        context = tail[-order:]
        if len(context) < order:
            return None
        for end in range(len(text) - 1, order - 1, -1):
            if text[end - order : end] == context:
                return text[end]
        return None

    expected = None
    for order in sorted({*ORDERS, *PAST_ORDERS}, reverse=True):
        for is_past, text, orders in ((False, tokens, ORDERS), (True, before, PAST_ORDERS)):
            token = followed(text, order) if order in orders else None
            if token is not None and expected is None:
                expected = token, (is_past, order)
    assert (guess and (guess.token, guess.source)) == expected


def test_the_chance_of_a_guess_follows_what_became_of_its_like() -> None:
    made = drafter([1, 2, 1, 2, 1])
    guess = made.guess([])
    assert guess is not None
    assert guess.chance == PRIOR[guess.source[1]]
    chances = [guess.chance]
    for right in [True] * 30 + [False] * 60:
        made.judge(guess, right)
        again = made.guess([])
        assert again is not None
        chances.append(again.chance)
        assert 0 < again.chance < 1
    rising, falling = chances[:31], chances[31:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert rising[-1] > 0.85
    assert falling[-1] < 0.1
