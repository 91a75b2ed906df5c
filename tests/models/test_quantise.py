import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unisono.errors import CorruptModel, UnsupportedModel
from unisono.models.quantise import (
    LEVELS,
    fraction_to_fixed,
    inverse_square_root,
    quantise_bias,
    quantise_matrix,
    quantise_norm,
    square_root,
)
from unisono.numerics.linear import Matrix, Vector

Floats = NDArray[np.float32]


def _real(matrix: Matrix) -> NDArray[np.float64]:
    return matrix.effective(0, matrix.outputs).numpy() * 2.0**matrix.exponent


def _vector(vector: Vector) -> NDArray[np.float64]:
    return vector.values.numpy() * 2.0**vector.exponent


def _random(outputs: int, inputs: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(outputs, inputs)).astype(np.float32)


def _groups(weight: NDArray[np.floating]) -> NDArray[np.float64]:
    return weight.astype(np.float64).reshape(-1, 32)


def test_every_weight_comes_back_within_half_a_step_of_its_group() -> None:
    weight = _random(40, 96)
    matrix = quantise_matrix("w", weight)
    error = np.abs(_groups(_real(matrix)) - _groups(weight))
    largest = np.abs(_groups(weight)).max(-1, keepdims=True)
    # a step is at most largest / 112, give or take the rounding of its multiplier
    multiplier = 2.0**matrix.exponent
    assert bool((error <= largest / min(LEVELS) / 2 + 128 * multiplier).all())


def test_the_mean_error_is_not_above_that_of_plain_scaling_to_127() -> None:
    weight = _random(64, 256, seed=1)
    step = np.abs(_groups(weight)).max(-1, keepdims=True) / 127
    plain = np.square(np.rint(_groups(weight) / step) * step - _groups(weight)).sum()
    ours = np.square(_groups(_real(quantise_matrix("w", weight))) - _groups(weight)).sum()
    assert ours < plain


def test_groups_differ_in_scale_without_harm_to_each_other() -> None:
    weight = _random(8, 128)
    weight[:, 32:64] *= 2.0**-9
    got = _real(quantise_matrix("w", weight))
    small = slice(32, 64)
    error = np.linalg.norm(got[:, small] - weight[:, small]) / np.linalg.norm(weight[:, small])
    assert error < 0.01


@pytest.mark.parametrize(
    ("low", "high", "full"),
    [(-7, 7, False), (-8, 7, True), (-16, 15, False), (-16, 15, True), (-127, 127, True)],
    ids=["4 bits", "Q4_0", "5 bits", "Q5_0", "Q8_0"],
)
def test_weights_on_a_grid_of_up_to_5_or_of_8_bits_come_out_almost_exactly(
    low: int, high: int, full: bool
) -> None:
    """`full`: each group uses the end of its grid, as the GGUF types do by construction."""
    random = np.random.default_rng(2)
    q = random.integers(low, high + 1, size=(500, 32))
    if full:
        q[:, 0] = low
    scales = np.float16(random.uniform(0.002, 0.02, size=(500, 1))).astype(np.float64)
    weight = (q * scales).astype(np.float32).reshape(50, 320)
    matrix = quantise_matrix("w", weight)
    # the integers are hit exactly, so only the multiplier's own rounding is left
    error = np.linalg.norm(_real(matrix) - weight) / np.linalg.norm(weight)
    assert error < 1e-4


def test_weights_that_are_the_canonical_form_already_come_out_exactly() -> None:
    random = np.random.default_rng(3)
    q = random.integers(-127, 128, size=(60, 32))
    q[:, 5] = 127
    multipliers = random.integers(30000, 57000, size=(60, 1))
    weight = (q * multipliers * 2.0**-26).astype(np.float32)
    assert np.array_equal(_real(quantise_matrix("w", weight)), weight.astype(np.float64))


def test_conversion_is_the_same_every_time_and_however_rows_are_chunked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = _random(33, 64, seed=4)
    first = quantise_matrix("w", weight)
    monkeypatch.setattr("unisono.models.quantise._CHUNK", 200)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    again = quantise_matrix("w", np.asfortranarray(weight))
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.multipliers.int(), again.multipliers.int())
    assert first.exponent == again.exponent


@settings(max_examples=60, deadline=None)
@given(st.integers(-140, 120), st.integers(0, 1 << 32))
def test_weights_of_any_magnitude_fit_the_format(scale: int, seed: int) -> None:
    weight = np.ldexp(_random(3, 64, seed), scale).astype(np.float32)
    matrix = quantise_matrix("w", weight)
    assert int(matrix.values.int().abs().max()) <= 127
    assert abs(matrix.exponent) <= 128
    if scale > -100:
        error = np.linalg.norm(_real(matrix) - weight) / np.linalg.norm(weight.astype(np.float64))
        assert error < 0.01


def test_a_power_of_two_moves_only_the_exponent() -> None:
    one, two = quantise_matrix("w", _random(5, 64)), quantise_matrix("w", _random(5, 64) * 8)
    assert torch.equal(one.values, two.values)
    assert torch.equal(one.multipliers.int(), two.multipliers.int())
    assert two.exponent == one.exponent + 3


def test_zero_matrices_and_zero_groups_stay_zero() -> None:
    zero = quantise_matrix("w", np.zeros((3, 64), np.float32))
    assert not zero.values.any()
    weight = _random(3, 64)
    weight[:, :32] = 0
    assert not quantise_matrix("w", weight).values[:, :32].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_infinite_weights_and_nan_are_refused(bad: float) -> None:
    weight = _random(3, 64)
    weight[1, 7] = bad
    with pytest.raises(CorruptModel, match=r"'layers\.0\.up' holds infinite weights or NaN"):
        quantise_matrix("layers.0.up", weight)
    for quantise in (quantise_norm, quantise_bias):
        with pytest.raises(CorruptModel, match="'v' holds infinite values or NaN"):
            quantise("v", weight[1])


@pytest.mark.parametrize(("quantise", "bits"), [(quantise_norm, 20), (quantise_bias, 24)])
def test_vectors_come_back_within_one_step_and_fit_their_bits(
    quantise: type[Vector], bits: int
) -> None:
    for seed in range(20):
        values = _random(1, 50, seed)[0] * np.float32(10.0 ** (seed - 10))
        vector = quantise("v", values)
        assert int(vector.values.abs().max()) < 1 << bits
        assert float(np.abs(_vector(vector) - values).max()) <= 2.0**vector.exponent


def test_vectors_on_a_binary_grid_and_zeros_are_exact() -> None:
    values = np.array([1.0, -0.5, 0.25, 3.75, 0.0], np.float32)
    assert np.array_equal(_vector(quantise_norm("v", values)), values)
    assert _vector(quantise_bias("v", np.zeros(4, np.float32))).tolist() == [0.0] * 4


def test_the_largest_value_of_a_vector_saturates_instead_of_growing_a_bit() -> None:
    almost_two = np.nextafter(np.float32(2), np.float32(0))
    vector = quantise_norm("v", np.array([almost_two], np.float32))
    assert vector.values.tolist() == [(1 << 20) - 1]


positive = st.builds(
    Fraction, st.integers(1, 1 << 200), st.integers(1, 1 << 200)
)  # any positive number


@settings(max_examples=200, deadline=None)
@given(positive, st.integers(2, 40))
def test_a_constant_is_the_nearest_mantissa_of_exactly_its_bits(value: Fraction, bits: int) -> None:
    mantissa, exponent = fraction_to_fixed(value, bits)
    assert mantissa.bit_length() == bits
    error = abs(mantissa * Fraction(2) ** exponent - value)
    assert error <= Fraction(2) ** exponent / 2


def test_powers_of_two_are_exact_constants() -> None:
    assert fraction_to_fixed(Fraction(1), 17) == (1 << 16, -16)
    assert fraction_to_fixed(Fraction(1, 1024), 20) == (1 << 19, -29)


def test_a_constant_that_rounds_up_to_the_next_power_keeps_its_bits() -> None:
    assert fraction_to_fixed(Fraction((1 << 40) - 1), 8) == (128, 33)


@pytest.mark.parametrize("value", [0, -1])
def test_constants_that_are_not_positive_are_refused(value: int) -> None:
    with pytest.raises(UnsupportedModel, match="a positive one was expected"):
        fraction_to_fixed(Fraction(value), 24)
    with pytest.raises(UnsupportedModel, match="has no inverse square root"):
        inverse_square_root(value)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1 << 20))
def test_square_roots_are_rounded_down_to_80_bits(value: int) -> None:
    unit = Fraction(1, 1 << 80)
    root, inverse = square_root(value), inverse_square_root(value)
    assert root**2 <= value < (root + unit) ** 2
    assert inverse**2 * value <= 1
    assert abs(inverse**2 * value - 1) < Fraction(1, 1 << 60)
