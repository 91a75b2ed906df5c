import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.numerics.drawn import EXPONENTS, integers, many, rows, some, tensor
from unisono.numerics import fixed, scalar


@many
@given(integers(62), st.integers(0, 62))
def test_a_shift_with_rounding_equals_the_specification(x: int, shift: int) -> None:
    expected = scalar.round_shift(x, shift)
    assert fixed.round_shift(tensor([x]), shift).tolist() == [expected]
    assert fixed.round_shift(tensor([x]), tensor([shift])).tolist() == [expected]


def test_halves_round_upward_on_both_sides_of_zero() -> None:
    assert fixed.round_shift(tensor([-6, -5, -3, -2, 2, 3, 5, 6]), 2).tolist() == [
        -1, -1, -1, 0, 1, 1, 1, 2,
    ]  # fmt: skip


@many
@given(rows(62), st.integers(-70, 70), st.integers(1, 61))
@example([1, -1, 5], -43, 43)
@example([(1 << 62) - 1], 70, 40)
def test_aligning_equals_the_specification(row: list[int], right: int, bits: int) -> None:
    expected = [scalar.align(x, right, bits) for x in row]
    assert fixed.align(tensor(row), right, bits).tolist() == expected
    assert fixed.align(tensor([row]), tensor([[right]]), bits).tolist() == [expected]


@some
@given(rows(62, 2), st.integers(-70, 70), st.integers(1, 61))
def test_aligning_is_monotonic_and_stays_within_its_bits(
    row: list[int], right: int, bits: int
) -> None:
    out = fixed.align(tensor(sorted(row)), right, bits)
    assert bool((out.diff() >= 0).all())
    assert int(out.abs().max()) < 1 << bits


@many
@given(integers(62).map(abs))
def test_the_bit_length_is_exact_over_the_whole_range(x: int) -> None:
    assert fixed.bit_length(tensor([x])).tolist() == [scalar.bit_length(x)]


def test_the_bit_length_is_exact_beside_every_power_of_two() -> None:
    edges = [max(0, (1 << k) + d) for k in range(63) for d in (-1, 0, 1)]
    edges += [(1 << 63) - 1]
    assert fixed.bit_length(tensor(edges)).tolist() == [x.bit_length() for x in edges]


@many
@given(st.lists(rows(62, 5, 5), min_size=1, max_size=4), EXPONENTS, st.integers(1, 40))
def test_reducing_rows_equals_the_specification(
    batch: list[list[int]], exponent: int, bits: int
) -> None:
    got, exponents = fixed.reduce_rows(tensor(batch), torch.full((len(batch), 1), exponent), bits)
    expected = [scalar.reduce_row(row, exponent, bits) for row in batch]
    assert got.tolist() == [row for row, _ in expected]
    assert exponents.tolist() == [[e] for _, e in expected]


def test_a_reduced_row_saturates_where_rounding_would_carry_into_another_bit() -> None:
    row, exponent = fixed.reduce_rows(tensor([[0x1FFFF, -0x1FFFF, 3]]), tensor([[0]]), 15)
    assert row.tolist() == [[32767, -32767, 1]]
    assert exponent.tolist() == [[2]]


def test_reducing_leaves_zero_rows_and_their_exponents_alone() -> None:
    row, exponent = fixed.reduce_rows(tensor([[0, 0]]), tensor([[-7]]), 15)
    assert (row.tolist(), exponent.tolist()) == ([[0, 0]], [[-7]])


@many
@given(integers(52).map(abs))
def test_the_square_root_equals_the_specification(x: int) -> None:
    assert fixed.square_root(tensor([x])).tolist() == [scalar.square_root(x)]


def test_the_square_root_is_exact_beside_every_kind_of_square() -> None:
    roots = torch.cat([torch.arange(1, 2000), (1 << 26) - 1 - torch.arange(2000)])
    squares = roots * roots
    assert torch.equal(fixed.square_root(squares), roots)
    assert torch.equal(fixed.square_root(squares - 1), roots - 1)
    assert torch.equal(fixed.square_root(squares + 2 * roots), roots)


def test_the_specification_refuses_values_outside_the_proven_ranges() -> None:
    with pytest.raises(OverflowError, match="the proof allows 62"):
        scalar.round_shift(1 << 62, 3)
    with pytest.raises(OverflowError, match="53"):
        scalar.exact_sum([1 << 52, -(1 << 52)])
    with pytest.raises(OverflowError, match=r"0\.\.62"):
        scalar.round_shift(1, 63)
