import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unisono.errors import CorruptModel, UnsupportedModel
from unisono.models.constants import fraction_to_fixed, inverse_square_root, square_root
from unisono.models.quantise import (
    Search,
    largest_magnitude,
    matrix_exponent,
    quantise_bias,
    quantise_matrix,
    quantise_norm,
    quantise_rows,
    search_of,
)
from unisono.numerics.tensors import GROUP, Matrix, Vector

Floats = NDArray[np.float32]
WIDE_NAME, NARROW_NAME = NAMES = ["embedding", "layers.0.up"]
"""Of matrices whose multipliers are searched in either way."""
by_name = pytest.mark.parametrize("name", NAMES)


def _real(matrix: Matrix) -> NDArray[np.float64]:
    scale = matrix.multipliers.astype(np.float64).repeat(GROUP, axis=1)
    return matrix.values * scale * 2.0**matrix.exponent


def _vector(vector: Vector) -> NDArray[np.float64]:
    return vector.values * 2.0**vector.exponent


def _random(outputs: int, inputs: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(outputs, inputs)).astype(np.float32)


def _groups(weight: NDArray[np.floating]) -> NDArray[np.float64]:
    return weight.astype(np.float64).reshape(-1, 32)


@by_name
def test_every_weight_comes_back_within_half_a_step_of_its_group(name: str) -> None:
    weight = _random(40, 96)
    matrix = quantise_matrix(name, weight)
    error = np.abs(_groups(_real(matrix)) - _groups(weight))
    largest = np.abs(_groups(weight)).max(-1, keepdims=True)
    # a step is at most largest / 112, give or take the rounding of its multiplier
    multiplier = 2.0 ** (matrix.exponent + (5 if name == NARROW_NAME else 0))
    assert bool((error <= largest / 112 / 2 + 64 * multiplier).all())


@by_name
def test_the_mean_error_is_not_above_that_of_plain_scaling_to_127(name: str) -> None:
    weight = _random(64, 256, seed=1)
    step = np.abs(_groups(weight)).max(-1, keepdims=True) / 127
    plain = np.square(np.rint(_groups(weight) / step) * step - _groups(weight)).sum()
    ours = np.square(_groups(_real(quantise_matrix(name, weight))) - _groups(weight)).sum()
    assert ours < plain


def test_narrow_multipliers_lose_no_accuracy_of_weights_on_no_grid() -> None:
    weight = _random(64, 640, seed=2)
    wide, narrow = (
        np.square(_real(quantise_matrix(name, weight)) - weight).sum() for name in NAMES
    )
    assert narrow < 1.01 * wide


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(-30, 30), min_size=4, max_size=4))
def test_two_signed_bytes_hold_a_layers_weights_in_the_unit_of_their_row(
    seed: int, scales: list[int]
) -> None:
    weight = _random(4, 160, seed)
    weight[0, :32] *= 50
    matrix = quantise_matrix(
        NARROW_NAME, np.ldexp(weight, np.array(scales)[:, None]).astype(np.float32)
    )
    multipliers = matrix.multipliers.astype(np.int64)
    largest = np.abs(matrix.values.astype(np.int64)).reshape(4, -1, GROUP).max(axis=2)
    common = np.gcd.reduce(multipliers, axis=1)
    unit = common & -common  # the largest power of two that divides all multipliers of a row
    assert ((largest * multipliers).max(axis=1) < unit << 15).all()


@by_name
def test_groups_differ_in_scale_without_harm_to_each_other(name: str) -> None:
    weight = _random(8, 128)
    weight[:, 32:64] *= 2.0**-9 if name == WIDE_NAME else 2.0**-5
    got = _real(quantise_matrix(name, weight))
    small = slice(32, 64)
    error = np.linalg.norm(got[:, small] - weight[:, small]) / np.linalg.norm(weight[:, small])
    assert error < 0.01


@by_name
def test_rows_differ_in_scale_without_harm_to_each_other(name: str) -> None:
    weight = _random(8, 128)
    weight[3] *= 2.0**-5
    got = _real(quantise_matrix(name, weight))
    assert np.linalg.norm(got[3] - weight[3]) / np.linalg.norm(weight[3]) < 0.006


@pytest.mark.parametrize(
    ("low", "high", "full", "wide", "narrow"),
    [
        (-7, 7, False, 1e-4, 4e-3),
        (-8, 7, True, 1e-4, 5e-4),
        (-16, 15, False, 1e-4, 4e-3),
        (-16, 15, True, 1e-4, 5e-4),
        (-127, 127, True, 1e-4, 4e-3),
    ],
    ids=["4 bits", "Q4_0", "5 bits", "Q5_0", "Q8_0"],
)
def test_weights_on_a_grid_of_up_to_5_or_of_8_bits_come_out_almost_exactly(
    low: int, high: int, full: bool, wide: float, narrow: float
) -> None:
    """`full`: each group uses the end of its grid, as the GGUF types do by construction."""
    random = np.random.default_rng(2)
    q = random.integers(low, high + 1, size=(500, 32))
    if full:
        q[:, 0] = low
    scales = np.float16(random.uniform(0.002, 0.02, size=(500, 1))).astype(np.float64)
    weight = (q * scales).astype(np.float32).reshape(50, 320)
    for name, allowed in zip(NAMES, (wide, narrow), strict=True):
        matrix = quantise_matrix(name, weight)
        # the integers are hit exactly, so only the multiplier's own rounding is left
        error = np.linalg.norm(_real(matrix) - weight) / np.linalg.norm(weight)
        assert error < allowed, name


@pytest.mark.parametrize(
    ("name", "low", "high", "shift"), [(WIDE_NAME, 30000, 57000, 0), (NARROW_NAME, 130, 256, 3)]
)
def test_weights_that_are_the_canonical_form_already_come_out_exactly(
    name: str, low: int, high: int, shift: int
) -> None:
    random = np.random.default_rng(3)
    q = random.integers(-127, 128, size=(60, 32))
    q[:, 5] = 127
    multipliers = random.integers(low, high, size=(60, 1)) << shift
    weight = (q * multipliers * 2.0**-26).astype(np.float32)
    assert np.array_equal(_real(quantise_matrix(name, weight)), weight.astype(np.float64))


def _equal(a: Matrix, b: Matrix) -> bool:
    same = np.array_equal(a.values, b.values) and np.array_equal(a.multipliers, b.multipliers)
    return same and a.exponent == b.exponent


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.sampled_from([32, 64, 480]),
    st.lists(st.integers(0, 40), max_size=5),
    st.integers(1, 700),
    st.integers(0, 1 << 32),
    st.sampled_from(NAMES),
)
def test_pieces_of_a_matrix_are_quantised_as_the_whole_is(
    outputs: int, inputs: int, cuts: list[int], block: int, seed: int, name: str
) -> None:
    weight = _random(outputs, inputs, seed)
    weight[outputs // 2 :] *= 2.0**-6  # the exponent must not follow a piece
    whole, search = quantise_matrix(name, weight), search_of(name)
    edges = [0, *sorted(min(cut, outputs) for cut in cuts), outputs]
    pieces = [weight[a:b] for a, b in pairwise(edges)]
    exponent = matrix_exponent(max(largest_magnitude("w", piece) for piece in pieces), search)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unisono.models.quantise._BLOCK", block)
        done = [quantise_rows(piece, exponent, search) for piece in pieces]
    values, multipliers = (np.concatenate(parts) for parts in zip(*done, strict=True))
    assert _equal(Matrix(values, multipliers, exponent), whole)


@by_name
def test_the_order_of_a_matrix_in_memory_changes_nothing(name: str) -> None:
    weight = _random(33, 64, seed=4)
    assert _equal(quantise_matrix(name, np.asfortranarray(weight)), quantise_matrix(name, weight))


def _searched(group: Floats, exponent: int, search: Search) -> tuple[list[int], int]:
    """The search as docs/numerics.md describes it, in exact arithmetic, of a row of one group."""
    largest, shift = max(abs(Fraction(float(w))) for w in group) / Fraction(2) ** exponent, 0
    while search.row_bits and largest >= 1 << search.row_bits + shift:
        shift += 1
    exact = [round(Fraction(float(w)) * Fraction(2) ** (4 - exponent - shift)) for w in group]
    tried: list[tuple[int, int, list[int], int]] = []
    for place, level in enumerate(search.levels):
        limit = 32767 // level if search.row_bits else 65535
        m = min(max(round(Fraction(max(map(abs, exact)), 16 * level)), 1), limit)
        q = [min(max(round(Fraction(x, 16 * m)), -127), 127) for x in exact]
        tried.append(
            (sum((x - 16 * m * a) ** 2 for x, a in zip(exact, q, strict=True)), place, q, m)
        )
    values, multiplier = min(tried)[2:]
    return values, multiplier << shift


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.sampled_from([1, 7, 16, 127, 1 << 20]),
    st.integers(-150, 100),
    st.integers(0, 24),
    st.sampled_from(NAMES),
)
def test_the_search_is_the_one_of_exact_arithmetic(
    seed: int, grid: int, scale: int, below: int, name: str
) -> None:
    """Coarse grids are full of ties; groups far below the matrix's largest have multiplier 1."""
    random = np.random.default_rng(seed)
    weight = np.ldexp(random.integers(-grid, grid + 1, (6, 32)), scale).astype(np.float32)
    weight[3:] = np.ldexp(weight[3:], -below)
    matrix = quantise_matrix(name, weight)
    expected = [_searched(group, matrix.exponent, search_of(name)) for group in weight]
    assert matrix.values.tolist() == [q for q, _ in expected]
    assert matrix.multipliers[:, 0].tolist() == [m for _, m in expected]


@settings(max_examples=60, deadline=None)
@given(st.integers(-140, 120), st.integers(0, 1 << 32), st.sampled_from(NAMES))
def test_weights_of_any_magnitude_fit_the_format(scale: int, seed: int, name: str) -> None:
    weight = np.ldexp(_random(3, 64, seed), scale).astype(np.float32)
    matrix = quantise_matrix(name, weight)
    assert matrix.values.min() >= -127
    assert abs(matrix.exponent) <= 128
    if scale > -100:
        error = np.linalg.norm(_real(matrix) - weight) / np.linalg.norm(weight.astype(np.float64))
        assert error < 0.01


@by_name
def test_a_power_of_two_moves_only_the_exponent(name: str) -> None:
    one, two = quantise_matrix(name, _random(5, 64)), quantise_matrix(name, _random(5, 64) * 8)
    assert _equal(Matrix(two.values, two.multipliers, two.exponent - 3), one)


@by_name
def test_zero_matrices_rows_and_groups_stay_zero(name: str) -> None:
    zero = quantise_matrix(name, np.zeros((3, 64), np.float32))
    assert not zero.values.any()
    weight = _random(3, 64)
    weight[:, :32] = 0
    weight[1] = 0
    values = quantise_matrix(name, weight).values
    assert not values[:, :32].any()
    assert not values[1].any()


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
        assert int(np.abs(vector.values).max()) < 1 << bits
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
