"""Translated contracts do what py-evm says: the same results, logs and gas of every call."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.settlement import (
    evm,
    test_committee_conservation,
    test_conservation,
    test_court_money,
)
from tests.settlement.conftest import Compiled
from tests.settlement.engines import Both

EDGES = [0, 1, 2, 31, 32, 255, 256, 2**128, 2**255 - 1, 2**255, 2**256 - 2, 2**256 - 1]
WORDS = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**256 - 1))
OPERATORS = {1: [0x15, 0x19], 3: [0x08, 0x09]}
OPERATORS[2] = [x for x in (*range(0x01, 0x0C), *range(0x10, 0x1E)) if x not in (8, 9, 0x15, 0x19)]
SENDER, PLACE = b"\1" * 20, b"\2" * 20
STOP, MLOAD, MSTORE, RETURN = 0x00, 0x51, 0x52, 0xF3


def push(value: int, size: int = 32) -> bytes:
    return bytes((0x5F + size,)) + value.to_bytes(size, "big")


def both() -> Any:
    return Both(31_337, 1_700_000_000)


@pytest.mark.parametrize("count", OPERATORS)
@given(st.data())
@settings(max_examples=200, deadline=None)
def test_numbers(count: int, data: st.DataObject) -> None:
    """Of constants, which are computed when code is translated, and of variables."""
    what = bytes((data.draw(st.sampled_from(OPERATORS[count])),))
    words = [data.draw(WORDS) for _ in range(count)]
    kept = b"".join(push(w) + push(32 * k, 1) + bytes((MSTORE,)) for k, w in enumerate(words))
    loaded = b"".join(push(32 * k, 1) + bytes((MLOAD,)) for k in range(count))
    answer = push(0, 1) + bytes((MSTORE,)) + push(32, 1) + push(0, 1) + bytes((RETURN,))
    for operands in (b"".join(map(push, words)), kept + loaded):
        both().create(SENDER, PLACE, operands + what + answer, 10**6)


SMALL = st.integers(0, 130).map(lambda x: push(x, 1))
COMMON = [
    *(0x20, 0x30, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3B, 0x3C, 0x3D, 0x3E, 0x3F),
    *(0x40, 0x42, 0x43, 0x46, 0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x59, 0x5A, 0x5B),
    *(0x5C, 0x5D, 0x5E, 0x5F, 0x80, 0x81, 0x8F, 0x90, 0x91, 0x9F, 0xA0, 0xA1, 0xA4, 0xF3, 0xFD),
    0xFE,
]
"""Instructions beside those on numbers; not those of calls, which need accounts."""
PIECES = st.one_of(SMALL, SMALL, SMALL, st.sampled_from(COMMON).map(lambda x: bytes((x,))))


@given(st.lists(PIECES, max_size=60), st.sampled_from([100, 5_000, 10**6]))
@settings(max_examples=300, deadline=None)
def test_random_code(pieces: list[bytes], gas: int) -> None:
    both().create(SENDER, PLACE, push(7, 1) * 20 + b"".join(pieces), gas)


@pytest.mark.parametrize("name", ["Channels", "Registry"])
def test_random_actions(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    play(monkeypatch, test_conservation, getattr(test_conservation, name), 5)


def test_random_cases(monkeypatch: pytest.MonkeyPatch, compiled: Compiled) -> None:
    stubs = {name: compiled(name) for name in ("committee", "court_stub")}
    monkeypatch.setattr(test_committee_conservation, "_STUB", stubs)
    play(monkeypatch, test_committee_conservation, test_committee_conservation.Cases, 2)


def test_random_games(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, test_court_money, test_court_money.Court, 5)


def play(
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    machine: type[RuleBasedStateMachine],
    sequences: int,
) -> None:
    """Sequences of a machine, every call of which runs in both engines."""
    monkeypatch.setattr(evm, "ENGINE", Both)
    monkeypatch.setattr(module, "world", cache(module.world.__wrapped__))
    few = settings(
        max_examples=sequences,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=few)
