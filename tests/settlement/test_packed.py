"""Dot products of packed integers are dot products."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.settlement.conftest import Compiled
from tests.settlement.evm import Contract, Evm, account
from tests.settlement.referees import little_endian, said

MANY = settings(max_examples=60, deadline=None)


def rows(count: int, bits: int) -> st.SearchStrategy[list[int]]:
    """Rows of many equal, extreme or arbitrary integers."""
    limit = 1 << (bits - 1)
    one = st.integers(-limit, limit - 1) | st.sampled_from((-limit, 1 - limit, limit - 1, 0, -1))
    return st.lists(one, min_size=count, max_size=count) | one.map(lambda x: [x] * count)


@pytest.fixture(scope="module")
def contract(compiled: Compiled) -> Contract:
    return Evm().deploy(compiled("packed_harness"), account(1))


def right(row: list[int], others: list[int]) -> int | str:
    if -(1 << 15) in row:
        return "wrong"
    return sum(x * y for x, y in zip(row, others, strict=True))


@MANY
@given(st.data(), st.integers(1, 8))
def test_rows_are_multiplied(contract: Contract, data: st.DataObject, words: int) -> None:
    x, y = data.draw(rows(16 * words, 16)), data.draw(rows(16 * words, 16))
    expected = "wrong" if -(1 << 15) in y else right(x, y)
    opened = little_endian(x, 2) + little_endian(y, 2)
    assert said(contract.view, "product", opened, 16 * words) == expected


@MANY
@given(st.data(), st.integers(1, 4))
@example(None, 4)
def test_rows_are_weighted(contract: Contract, data: st.DataObject | None, groups: int) -> None:
    if data is None:  # the largest sum
        x, w, m = [-32767] * 128, [-128] * 128, [65535] * 4
    else:
        x, w = data.draw(rows(32 * groups, 16)), data.draw(rows(32 * groups, 8))
        m = data.draw(st.lists(st.integers(0, 65535), min_size=groups, max_size=groups))
    opened = little_endian(x, 2) + little_endian(w, 1)
    opened += b"".join(k.to_bytes(2, "little") for k in m)
    expected = right(x, [weight * m[k // 32] for k, weight in enumerate(w)])
    assert said(contract.view, "weighted", opened, groups) == expected
