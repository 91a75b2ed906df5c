import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.numerics.drawn import integers, lists, rows, scaled, some, tensor
from unisono.numerics import scalar
from unisono.numerics.norm import rms_norm

EPSILON = (8796093, -43)
"""1e-6 with a mantissa of 24 bits."""


@some
@given(
    st.integers(1, 20).flatmap(
        lambda n: st.tuples(st.lists(rows(62, n, n), min_size=1, max_size=3), rows(20, n, n))
    ),
    st.integers(-120, 60),
    st.integers(-60, 20),
    st.tuples(integers(24).map(abs), st.integers(-60, 0)),
)
@example(([[(1 << 62) - 1] + [0] * 9], [(1 << 20) - 1] * 10), -40, 0, EPSILON)
@example(([[1] + [0] * 9], [(1 << 20) - 1] * 10), -40, 0, EPSILON)
def test_the_norm_equals_the_specification(
    drawn: tuple[list[list[int]], list[int]],
    exponent: int,
    weight_exponent: int,
    epsilon: tuple[int, int],
) -> None:
    batch, weight = drawn
    got = rms_norm(
        tensor(batch),
        torch.full((len(batch), 1), exponent),
        tensor(weight),
        weight_exponent,
        epsilon,
    )
    vector = scalar.Vector(weight, weight_exponent)
    assert lists(got) == scaled([scalar.rms_norm(row, exponent, vector, epsilon) for row in batch])


def test_a_single_outlier_in_the_widest_row_stays_in_range() -> None:
    for size in (1, 2, 3, 32767, 32768, 65535, (1 << 30) - 1, (1 << 62) - 1):
        row = [size] + [0] * 32767
        weight = scalar.Vector([(1 << 20) - 1] * 32768, 0)
        expected = scalar.rms_norm(row, -20, weight, EPSILON)
        got = rms_norm(tensor([row]), tensor([[-20]]), tensor(weight.values), 0, EPSILON)
        assert lists(got) == scaled([expected])


def test_the_norm_of_a_zero_row_is_zero() -> None:
    row, _ = rms_norm(tensor([[0] * 32]), tensor([[-20]]), tensor([1 << 19] * 32), -19, EPSILON)
    assert not row.any()


@pytest.mark.parametrize("size", [2.0**-12, 1.0, 300.0])
@pytest.mark.parametrize("outlier", [1.0, 20000.0])
def test_the_norm_is_close_to_real_arithmetic(size: float, outlier: float) -> None:
    n = 640
    generator = torch.Generator().manual_seed(7)
    real = torch.randn(16, n, generator=generator, dtype=torch.float64) * size
    real[:, 3] *= outlier
    row = (real * 2.0**20).round()
    weight = torch.randint(-(1 << 20) + 1, 1 << 20, (n,), generator=generator)
    got, exponent = rms_norm(row.long(), torch.full((16, 1), -20), weight, -18, EPSILON)
    real = row * 2.0**-20
    epsilon = EPSILON[0] * 2.0 ** EPSILON[1]
    normal = real / (real.square().mean(-1, keepdim=True) + epsilon).sqrt()
    # the copy that is summed has 15 bits, the root 8 more and the inverse 46 in all; elements
    # are rounded to 24 fraction bits, and to 30 bits of the row before
    relative = math.sqrt(n) * (2.0**-15 + 2.0**-22) + 2.0**-20
    absolute = 2.0**-25 + math.sqrt(n) * 2.0**-30
    error = (got * 2.0 ** exponent.double() - normal * weight * 2.0**-18).abs()
    assert bool((error <= (normal.abs() * relative + absolute) * weight.abs() * 2.0**-18).all())


@some
@given(rows(30, 8, 8), st.integers(0, 30))
def test_an_exponent_and_shifted_mantissas_mean_the_same_row(row: list[int], left: int) -> None:
    weight = tensor([1 << 19] * 8)
    one = rms_norm(tensor([[x << left for x in row]]), tensor([[-left]]), weight, -19, EPSILON)
    two = rms_norm(tensor([row]), tensor([[0]]), weight, -19, EPSILON)
    if max(map(abs, row)).bit_length() >= 15:  # both copies then keep the same 15 bits
        assert lists(one) == lists(two)
