"""The building blocks of the contracts are those of the specification."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.settlement.conftest import Compiled
from tests.settlement.evm import Contract, Evm, Reverted, account
from tests.settlement.referees import said
from unisono.numerics.scalar import fixed
from unisono.verification.fraud.steps import overflow_shift, reduced
from unisono.verification.fraud.tree import decode_block, encode_block

FEW = settings(max_examples=150, deadline=None)

edges = st.builds(
    lambda power, near, sign: sign * ((1 << power) + near),
    st.integers(0, 130),
    st.integers(-2, 2),
    st.sampled_from((1, -1)),
)
wide = edges | st.integers(-(1 << 254), (1 << 254))
numbers = st.integers(-(1 << 63), 1 << 63) | wide
shifts = st.integers(-3, 66) | st.integers(-(1 << 70), 1 << 70)


@pytest.fixture(scope="module")
def contract(compiled: Compiled) -> Contract:
    return Evm().deploy(compiled("fixed_harness"), account(1))


@FEW
@given(numbers, st.sampled_from((15, 20, 24, 29, 33, 40, 43, 53, 61, 62, 63)))
@example((1 << 62) - 1, 62)
@example(1 << 62, 62)
@example(-(1 << 62), 62)
def test_in_range_refuses_what_has_more_bits(contract: Contract, x: int, bits: int) -> None:
    assert said(contract.view, "in_range", x, bits) == said(fixed.in_range, x, bits)


@FEW
@given(numbers, shifts)
@example(-3, 1)
@example(-1, 62)
@example(5, 63)
@example(5, -1)
def test_round_shift_rounds_halves_upward(contract: Contract, x: int, shift: int) -> None:
    assert said(contract.view, "round_shift", x, shift) == said(fixed.round_shift, x, shift)


@FEW
@given(numbers, shifts, st.sampled_from((25, 40, 43, 50, 60)))
@example(1, -(1 << 69), 43)
@example(-(1 << 61), 1 << 69, 43)
@example(1, -62, 43)
@example(1, -63, 43)
def test_align_saturates_as_specified(contract: Contract, x: int, right: int, bits: int) -> None:
    assert said(contract.view, "align", x, right, bits) == said(fixed.align, x, right, bits)


@FEW
@given(numbers, shifts, st.sampled_from((15, 24, 30, 31)))
def test_elements_are_reduced_as_rows_are(
    contract: Contract, x: int, shift: int, bits: int
) -> None:
    assert said(contract.view, "reduced", x, shift, bits) == said(reduced, x, shift, bits)


@FEW
@given(wide, st.integers(0, 62))
def test_lengths_and_shifts_of_rows_are_those_said(contract: Contract, x: int, bits: int) -> None:
    assert said(contract.view, "bit_length", x) == x.bit_length()
    assert said(contract.view, "overflow_shift", x, bits) == overflow_shift(x, bits)


@FEW
@given(wide, wide | st.integers(-5, 5))
@example(-7, 2)
@example(7, -2)
@example(-6, 3)
@example(1, 0)
def test_division_rounds_towards_minus_infinity(contract: Contract, x: int, y: int) -> None:
    assert said(contract.view, "floor_div", x, y) == said(lambda a, b: a // b, x, y)


@FEW
@given(st.integers(0, (1 << 52) + 2) | st.integers(-5, 50) | edges)
def test_square_roots_round_down(contract: Contract, x: int) -> None:
    assert said(contract.view, "square_root", x) == said(fixed.square_root, x)


@FEW
@given(wide, st.integers(0, 1 << 254))
def test_clamp_keeps_the_limits(contract: Contract, x: int, limit: int) -> None:
    assert said(contract.view, "clamp", x, limit) == fixed.clamp(x, limit)


@FEW
@given(st.data(), st.sampled_from(("i1", "i2", "i4", "i8")))
def test_elements_of_leaves_are_read(contract: Contract, data: st.DataObject, format: str) -> None:
    width = int(format[1])
    limit = 1 << (8 * width - 1)
    values = data.draw(st.lists(st.integers(-limit, limit - 1), min_size=1, max_size=32))
    leaf = encode_block(values, format)
    assert decode_block(leaf, format) == values
    index = data.draw(st.integers(0, len(values) - 1))
    assert said(contract.view, "element", leaf, index, width) == values[index]
    with pytest.raises(Reverted, match="no such element"):
        contract.view("element", leaf, len(values), width)
    word = int.from_bytes(leaf[:32].ljust(32, b"\0"), "big")
    lane = data.draw(st.integers(0, min(len(values), 32 // width) - 1))
    assert said(contract.view, "signed", word, lane, width) == values[lane]


@FEW
@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=64))
def test_rows_of_leaves_are_read(contract: Contract, values: list[int]) -> None:
    assert contract.view("row", encode_block(values, "i8")) == tuple(values)
