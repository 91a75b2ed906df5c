from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.gateway.stop import StopMatcher

# Two letters, so that matches, overlaps and false beginnings are common.
words = st.text("ab", min_size=1, max_size=5)


def first_match(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """The definition, spelled out: end, start and string of the match that ends first."""
    matches = [
        (start + len(stop), start, stop)
        for stop in stops
        for start in range(len(text))
        if text.startswith(stop, start)
    ]
    return min(matches, default=None)


@given(pieces=st.lists(st.text("abc", max_size=4)), stops=st.lists(words, max_size=4))
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    match = first_match("".join(pieces), stops)
    matcher = StopMatcher(stops)
    emitted, seen = "", ""
    for piece in pieces:
        seen += piece
        emitted += matcher.push(piece)
        # Found by the piece that completes it, neither before nor after.
        assert (matcher.matched is not None) == (match is not None and match[0] <= len(seen))
    emitted += matcher.flush()
    assert matcher.matched == (match[2] if match else None)
    assert emitted == (seen[: match[1]] if match else seen)


@given(pieces=st.lists(st.text("abc", max_size=4)), stops=st.lists(words, max_size=4))
def test_only_text_that_may_become_a_match_is_held_back(
    pieces: list[str], stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    emitted, seen = "", ""
    for piece in pieces:
        seen += piece
        emitted += matcher.push(piece)
        if matcher.matched is not None:
            return
        held = seen[len(emitted) :]
        assert seen.startswith(emitted)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "matched"),
    [
        (["END"], ["some E", "N", "D more"], "some ", "END"),
        (["END"], ["some E", "N", "C", "END"], "some ENC", "END"),
        (["abcd", "bc"], ["abcd"], "a", "bc"),
        (["b", "ab"], ["xab"], "x", "ab"),
        (["aab"], ["aaab"], "a", "aab"),
        ([], ["free", "dom"], "freedom", None),
    ],
)
def test_examples(stops: list[str], pieces: list[str], text: str, matched: str | None) -> None:
    matcher = StopMatcher(stops)
    assert "".join(map(matcher.push, pieces)) + matcher.flush() == text
    assert matcher.matched == matched


def test_after_a_match_nothing_is_emitted() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == "a"
    assert matcher.push("c") == ""
    assert matcher.flush() == ""
