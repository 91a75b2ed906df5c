"""Tasks of cases on a chain: bounded, and one signature for one task and body."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from unisono.errors import PeerCheating
from unisono.types import LayerRange, ModelId, Sampling
from unisono.wire.bounds import MAX_ROWS
from unisono.wire.frames import MAX_BODY, decode_frame, encode_frame
from unisono.wire.jury_messages import JuryTaken, JuryTask

GOOD: dict[str, Any] = {
    "case": "ab" * 32,
    "model": ModelId("cd" * 32),
    "layers": LayerRange(2, 4),
    "prompt": 3,
    "positions": 5,
    "sampling": Sampling(),
    "widths": b"\4" * 5,
    "signature": bytes(65),
}


def test_a_task_crosses_the_wire() -> None:
    task = JuryTask(**GOOD)
    for message in (task, JuryTaken(task.case)):
        found, body = decode_frame(encode_frame(message, b"body"))
        assert (found, bytes(body)) == (message, b"body")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 6},
        {"widths": b"\4" * 4},
        {"layers": LayerRange(0, 4)},
        {"layers": LayerRange(4, 4)},
        {"sampling": Sampling(seed=-1)},
    ],
)
def test_fields_that_do_not_fit_together_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        JuryTask(**{**GOOD, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"case": "ab" * 31},
        {"case": "AB" * 32},
        {"signature": bytes(66)},
        {"positions": MAX_ROWS + 1, "widths": b"\4" * (MAX_ROWS + 1)},
    ],
)
def test_fields_out_of_bounds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"frame holds|out of bounds"):
        encode_frame(JuryTask(**{**GOOD, **change}))


def test_a_body_over_the_limit_is_no_frame() -> None:
    frame = encode_frame(JuryTask(**GOOD), b"")
    size = (MAX_BODY + 1).to_bytes(4, "little")
    with pytest.raises(PeerCheating, match="body"):
        decode_frame(frame[:8] + size + frame[12:])


def test_what_is_signed_is_all_of_the_task_and_its_body() -> None:
    task = JuryTask(**GOOD)
    contents = task.contents(b"body")
    assert task.contents(b"other") != contents
    assert msgspec.structs.replace(task, signature=b"").contents(b"body") == contents
    for name, value in {
        "case": "ac" * 32,
        "model": "ce" * 32,
        "layers": LayerRange(1, 4),
        "prompt": 2,
        "sampling": None,
        "widths": b"\4" * 4 + b"\10",
    }.items():
        assert msgspec.structs.replace(task, **{name: value}).contents(b"body") != contents


def test_tokens_come_where_they_are_needed() -> None:
    assert JuryTask(**GOOD).token_bytes == 20
    assert JuryTask(**{**GOOD, "sampling": None}).token_bytes == 0
    first = {"layers": LayerRange(0, 2), "widths": b"", "sampling": None}
    assert JuryTask(**{**GOOD, **first}).token_bytes == 20
