"""The compiled operators on single rows against the specification."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.numerics.drawn import EXPONENTS, integers, long_rows, many, some
from unisono.native import operators
from unisono.native.library import load
from unisono.numerics import scalar
from unisono.numerics.tensors import Vector

TURN = 1 << 42
LIMIT = (1 << 43) - 1
EPSILON = (8796093, -43)
"""1e-6 with a mantissa of 24 bits."""
KINDS = ["silu", "gelu_tanh"]
SIZES = st.sampled_from([32, 32, 64, 96, 160])

Scaled = tuple[list[int], int]


def setup_module() -> None:
    assert load() is not None, "the compiled kernels are not built"


def _lists(scaled: tuple[np.ndarray, int]) -> Scaled:
    return scaled[0].tolist(), scaled[1]


@st.composite
def pairs(draw: st.DrawFn, first: int, second: int) -> tuple[list[int], list[int]]:
    """Two rows of one length."""
    size = draw(SIZES)
    return draw(long_rows(first, size)), draw(long_rows(second, size))


@many
@given(
    pairs(62, 20),
    EXPONENTS,
    st.integers(-60, 20),
    st.tuples(integers(24).map(abs), st.integers(-60, 0)),
)
@example(([(1 << 62) - 1] + [0] * 31, [(1 << 20) - 1] * 32), -40, 0, EPSILON)
@example(([1] + [0] * 31, [(1 << 20) - 1] * 32), -40, 0, EPSILON)
@example(([0] * 32, [(1 << 20) - 1] * 32), 60, 0, (0, -60))
@example(([1 - (1 << 62)] * 32, [1 - (1 << 20)] * 32), -120, 20, ((1 << 24) - 1, 0))
def test_the_norm_equals_the_specification(
    drawn: tuple[list[int], list[int]],
    exponent: int,
    weight_exponent: int,
    epsilon: tuple[int, int],
) -> None:
    row, weight = drawn
    expected, out_exponent = scalar.rms_norm(
        row, exponent, scalar.Vector(weight, weight_exponent), epsilon
    )
    got = operators.rms_norm(np.array(row), exponent, np.array(weight), epsilon)
    assert got.tolist() == expected
    assert out_exponent == weight_exponent - 24


def test_a_single_outlier_in_the_widest_row_stays_in_range() -> None:
    weight = [(1 << 20) - 1] * 32768
    for size in (1, 2, 3, 32767, 32768, 65535, (1 << 30) - 1, (1 << 62) - 1):
        for sign in (1, -1):
            row = [0] * 32767 + [sign * size]
            expected, _ = scalar.rms_norm(row, -20, scalar.Vector(weight, 0), EPSILON)
            got = operators.rms_norm(np.array(row), -20, np.array(weight), EPSILON)
            assert got.tolist() == expected


@many
@given(
    st.integers(0, (1 << 18) - 1),
    st.sampled_from([16, 32, 48]).flatmap(lambda n: long_rows(42, n)),
    st.one_of(st.sampled_from([1 << 16, (1 << 20) - 1, 1]), st.integers(1, (1 << 20) - 1)),
)
@example((1 << 18) - 1, [TURN] * 16, (1 << 20) - 1)
@example(0, [TURN - 1] * 16, 1 << 16)
def test_a_rotation_equals_the_specification(
    position: int, frequencies: list[int], factor: int
) -> None:
    turns = [abs(f) for f in frequencies]
    cosines, sines = operators.rotation(position, np.array(turns), factor)
    assert (cosines.tolist(), sines.tolist()) == scalar.rotation(position, turns, factor)


@many
@given(
    st.sampled_from([32, 32, 64, 96, 256]).flatmap(lambda n: long_rows(62, n)),
    EXPONENTS,
    st.integers(0, (1 << 18) - 1),
    st.sampled_from([1 << 16, (1 << 20) - 1, 3]),
)
@example([(1 << 62) - 1] * 32, 60, 9, (1 << 20) - 1)
@example([0] * 32, -7, 5, 1 << 16)
@example([0x1FFFF, -0x1FFFF, *[3] * 30], 0, 0, 1 << 16)
def test_rotating_a_head_equals_the_specification(
    head: list[int], exponent: int, position: int, factor: int
) -> None:
    frequencies = [round(TURN / 6.3 / 10000 ** (i / 16)) for i in range(len(head) // 2)]
    turn = scalar.rotation(position, frequencies, factor)
    got = operators.rotate(np.array(head), exponent, *(np.array(t) for t in turn))
    assert _lists(got) == scalar.rotate(head, exponent, *turn)


@many
@given(st.sampled_from(KINDS), pairs(62, 62), EXPONENTS, EXPONENTS)
@example("silu", ([0] * 32, [(1 << 62) - 1] * 32), 0, 0)
@example("silu", ([(1 << 62) - 1] * 32, [1 - (1 << 62)] * 32), -120, 60)
@example("gelu_tanh", ([1 - (1 << 62)] * 32, [1 - (1 << 62)] * 32), 60, 60)
def test_gated_activations_equal_the_specification(
    kind: str, drawn: tuple[list[int], list[int]], gate_exponent: int, up_exponent: int
) -> None:
    gate, up = drawn
    expected = scalar.gated(kind, gate, gate_exponent, up, up_exponent)
    got = operators.gated(kind, np.array(gate), gate_exponent, np.array(up), up_exponent)
    assert _lists(got) == expected


@many
@given(st.sampled_from(KINDS), SIZES.flatmap(lambda n: long_rows(28, n)), st.integers(-30, -16))
def test_gated_activations_equal_the_specification_at_usual_exponents(
    kind: str, gate: list[int], exponent: int
) -> None:
    up = [1 << 20] * len(gate)
    expected = scalar.gated(kind, gate, exponent, up, -20)
    got = operators.gated(kind, np.array(gate), exponent, np.array(up), -20)
    assert _lists(got) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_gates_on_both_sides_of_every_edge_of_the_sigmoid_equal_the_specification(
    kind: str,
) -> None:
    # the steps of its table, the end of it, and where an argument saturates
    near = [
        sign * (edge + step)
        for edge in (0, 1 << 12, 1 << 20, 15 << 20, 16 << 20, 31 << 20, (1 << 25) - 1, 1 << 25)
        for step in (-1, 0, 1, 2)
        for sign in (1, -1)
    ]
    for gate in (near[:32], near[32:], [x * 17 for x in near[:32]]):
        up = [1, -1, (1 << 31) - 1, 1 - (1 << 31)] * 8
        expected = scalar.gated(kind, gate, -20, up, -9)
        assert _lists(operators.gated(kind, np.array(gate), -20, np.array(up), -9)) == expected


@pytest.mark.parametrize("sign", [1, -1])
def test_every_entry_of_the_tables_of_a_sigmoid_equals_the_specification(sign: int) -> None:
    for start in range(0, 17 << 20, 1 << 20):  # short spans: the least gate keeps its bits
        gate = [sign * x for x in range(start, start + (1 << 20), 511)][:2048]
        up = [(1 << 30) + 1] * len(gate)
        expected = scalar.gated("silu", gate, -20, up, 0)
        assert _lists(operators.gated("silu", np.array(gate), -20, np.array(up), 0)) == expected


def test_every_entry_of_the_cosine_table_equals_the_specification() -> None:
    for start in range(0, TURN, TURN >> 3):
        turns = list(range(start, start + (TURN >> 3), (TURN >> 13) + 12345))
        cosines, sines = operators.rotation(1, np.array(turns), 1 << 16)
        assert (cosines.tolist(), sines.tolist()) == scalar.rotation(1, turns, 1 << 16)


@many
@given(pairs(53, 24), EXPONENTS, st.integers(-100, 100))
@example(([(1 << 53) - 1] * 32, [(1 << 24) - 1] * 32), 0, 36)
@example(([1 - (1 << 53)] * 32, [1 - (1 << 24)] * 32), 0, 37)
@example(([1 - (1 << 53)] * 32, [1 - (1 << 24)] * 32), 0, 100)
@example(([0] * 32, [1] * 32), 60, -100)
def test_adding_a_bias_equals_the_specification(
    drawn: tuple[list[int], list[int]], exponent: int, above: int
) -> None:
    product, bias = drawn
    bias_exponent = exponent + above
    # `scalar.linear` after its product
    common = max(exponent, bias_exponent - 36)
    shifted = [scalar.round_shift(x, min(common - exponent, 62)) for x in product]
    added = [scalar.align(b, common - bias_exponent, 60) for b in bias]
    expected = [scalar.in_range(x + b, 61) for x, b in zip(shifted, added, strict=True)]
    vector = Vector(np.array(bias), bias_exponent)
    got = operators.add_bias(np.array(product), exponent, vector)
    assert _lists(got) == (expected, common)


@some
@given(st.data(), st.integers(-60, 20), st.integers(-100, 60), EXPONENTS)
def test_a_product_and_its_bias_equal_a_linear_layer_of_the_specification(
    data: st.DataObject, matrix_exponent: int, bias_exponent: int, exponent: int
) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    values = generator.integers(-128, 128, (32, 64), dtype=np.int8)
    multipliers = generator.integers(0, 65536, (32, 2), dtype=np.uint16)
    row, bias = data.draw(long_rows(15, 64)), data.draw(long_rows(24, 32))
    matrix = scalar.Matrix(values.tolist(), multipliers.tolist(), matrix_exponent)
    expected = scalar.linear(row, exponent, matrix, scalar.Vector(bias, bias_exponent))
    product = operators.product(np.array([row]), values, multipliers)[0]
    vector = Vector(np.array(bias), bias_exponent)
    assert _lists(operators.add_bias(product, exponent + matrix_exponent, vector)) == expected


@many
@given(pairs(43, 62), EXPONENTS)
@example(([LIMIT, -LIMIT, 0, 0] * 8, [1, -1, 1 << 61, -(1 << 61)] * 8), -20)
@example(([LIMIT] * 32, [(1 << 62) - 1] * 32), 60)
@example(([-LIMIT] * 32, [1 - (1 << 62)] * 32), -82)
def test_the_residual_sum_equals_the_specification(
    drawn: tuple[list[int], list[int]], exponent: int
) -> None:
    stream, x = drawn
    got = operators.add_residual(np.array(stream), np.array(x), exponent)
    assert got.tolist() == scalar.add(stream, x, exponent)


def test_the_operators_leave_the_arrays_of_the_caller_alone() -> None:
    row, other = np.arange(32) << 50, np.arange(32) << 40
    kept = row.copy(), other.copy()
    operators.rms_norm(row, -20, other >> 30, EPSILON)
    operators.rotate(row, -20, other[:16], other[16:])
    operators.gated("silu", row, -20, other, -20)
    operators.add_bias(row, -20, Vector(other >> 30, -3))
    operators.add_residual(other >> 8, row, -20)
    assert np.array_equal(row, kept[0])
    assert np.array_equal(other, kept[1])
