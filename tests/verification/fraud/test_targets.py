"""Where a challenger that has only the claim finds what cannot be true of it."""

from __future__ import annotations

import pytest

from tests.verification.fraud.dispute import PROMPT, answer_of
from unisono.verification.fraud.parties import first_other_row, first_other_token
from unisono.verification.fraud.steps import Cell
from unisono.wire.claims import TAG_BYTES


def tags(hashes: list[bytes]) -> bytes:
    return b"".join(h[:TAG_BYTES] for h in hashes)


@pytest.mark.parametrize("position", [0, 4, 8])
def test_the_first_other_row_is_where_its_tag_is_another(position: int) -> None:
    answer = answer_of("llama")
    honest = answer.honest.signed.rows_out
    claim = answer.subject(out_tags=tags(honest)).claim
    assert first_other_row(claim, answer.honest) is None
    lied = [b"\0" * 32 if at >= position else h for at, h in enumerate(honest)]
    claim = answer.subject(out_tags=tags(lied)).claim
    last = answer.hop.stages - 1
    assert first_other_row(claim, answer.honest) == (Cell(last, position), "sent")


def test_tags_that_are_missing_are_other_tags() -> None:
    answer = answer_of("llama")
    claim = answer.subject(out_tags=tags(answer.honest.signed.rows_out)[:-1]).claim
    found = first_other_row(claim, answer.honest)
    assert found is not None
    assert found[0].position == answer.hop.positions - 1


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_first_other_token_is_that_of_the_row_before_it(place: int) -> None:
    answer = answer_of("llama")
    subject = answer.subject()
    assert first_other_token(subject, answer.hop, subject.tokens) is None
    drawn = [t ^ (at >= place) for at, t in enumerate(subject.tokens)]
    expected = Cell(answer.hop.stages - 1, PROMPT - 1 + place), "chosen"
    assert first_other_token(subject, answer.hop, drawn) == expected
