from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.numerics.drawn import (
    EXPONENTS,
    integers,
    lists,
    matrices,
    rows,
    scaled,
    some,
    stored_matrix,
    tensor,
    torch_matrix,
    torch_vector,
)
from unisono.numerics import scalar, tensors
from unisono.numerics.linear import Matrix, Vector, linear, product


@some
@given(st.data(), st.integers(1, 3), st.integers(1, 9), st.integers(1, 3))
def test_products_equal_the_specification(
    data: st.DataObject, count: int, outputs: int, groups: int
) -> None:
    matrix = data.draw(matrices(outputs, 32 * groups))
    x = [data.draw(rows(15, 32 * groups, 32 * groups)) for _ in range(count)]
    expected = [scalar.product(row, matrix) for row in x]
    assert product(tensor(x), torch_matrix(matrix)).tolist() == expected


@some
@given(st.data(), EXPONENTS, st.booleans())
def test_a_linear_layer_equals_the_specification(
    data: st.DataObject, exponent: int, biased: bool
) -> None:
    matrix = data.draw(matrices(5, 32))
    x = [data.draw(rows(62, 32, 32)) for _ in range(2)]
    bias = None
    if biased:
        bias = scalar.Vector(data.draw(rows(24, 5, 5)), data.draw(st.integers(-100, 60)))
    expected = [scalar.linear(row, exponent, matrix, bias) for row in x]
    got = linear(
        tensor(x),
        torch.full((2, 1), exponent),
        torch_matrix(matrix),
        torch_vector(bias) if bias else None,
    )
    assert lists(got) == scaled(expected)


@some
@given(st.data())
def test_effective_weights_in_float64_give_the_products_of_the_specification(
    data: st.DataObject,
) -> None:
    matrix = data.draw(matrices(7, 64))
    x = data.draw(rows(15, 64, 64))
    wide = tensor([x]).to(torch.float64) @ torch_matrix(matrix).effective(0, 7).t()
    assert wide.tolist() == [scalar.product(x, matrix)]


def test_a_matrix_that_is_multiplied_in_several_parts_gives_exact_products() -> None:
    generator = np.random.default_rng(1)
    outputs, inputs = 300, 32768  # 128 rows of it at a time
    values = generator.integers(-128, 128, (outputs, inputs), dtype=np.int8)
    multipliers = generator.integers(0, 65536, (outputs, inputs // 32), dtype=np.uint16)
    x = generator.integers(-32767, 32768, (2, inputs))
    got = product(tensor(x.tolist()), Matrix.on("cpu", tensors.Matrix(values, multipliers, 0)))
    weights = values.astype(np.int64) * multipliers.astype(np.int64).repeat(32, axis=1)
    assert np.array_equal(got.numpy(), x @ weights.T)


def test_stored_weights_are_shared_with_the_cpu_and_not_copied() -> None:
    stored = stored_matrix(scalar.Matrix([[1] * 32, [-128] * 32], [[65535], [1]], -3))
    matrix = Matrix.on("cpu", stored)
    assert (matrix.outputs, matrix.inputs, matrix.exponent) == (2, 32, -3)
    assert (stored.outputs, stored.inputs) == (2, 32)
    assert matrix.effective(0, 2)[:, 0].tolist() == [65535, -128]
    stored.values[0, 0], stored.multipliers[1, 0] = 2, 3
    assert matrix.effective(0, 2)[:, 0].tolist() == [2 * 65535, -128 * 3]
    vector = tensors.Vector(np.array([5, -7]), 2)
    moved = Vector.on("cpu", vector)
    vector.values[1] = 9
    assert (moved.values.tolist(), moved.exponent) == ([5, 9], 2)


def test_the_largest_sums_of_the_widest_matrix_are_exact_in_float64() -> None:
    inputs = 32768
    x = torch.full((1, inputs), 32767)
    for value in (127, -128):
        matrix = torch_matrix(scalar.Matrix([[value] * inputs], [[65535] * (inputs // 32)], 0))
        exact = 32767 * value * 65535 * inputs
        assert abs(exact) < 1 << 53
        assert product(x, matrix).tolist() == [[exact]]
        assert int(x.to(torch.float64) @ matrix.effective(0, 1)[0]) == exact


def test_the_specification_refuses_a_matrix_wider_than_the_proof() -> None:
    matrix = scalar.Matrix([[1] * 32800], [[1] * 1025], 0)
    with pytest.raises(OverflowError, match="32,768"):
        scalar.product([1] * 32800, matrix)


@some
@given(integers(24), st.integers(-40, -20), st.integers(-10, 36))
def test_a_bias_is_added_at_the_exponent_of_the_sum(
    bias: int, matrix_exponent: int, left: int
) -> None:
    row, exponent = linear(
        tensor([[32767] + [0] * 31]),
        tensor([[0]]),
        torch_matrix(scalar.Matrix([[1] + [0] * 31], [[1]], matrix_exponent)),
        torch_vector(scalar.Vector([bias], matrix_exponent + left)),
    )
    assert exponent.item() == matrix_exponent
    assert abs(row.item() - 32767 - bias * Fraction(2) ** left) <= Fraction(1, 2)
