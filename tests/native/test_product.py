from __future__ import annotations

from itertools import product as every

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.native.exact import exact_product
from tests.numerics.drawn import long_rows, many, matrices, some, stored_matrix
from unisono.native.operators import product
from unisono.numerics import scalar

pytestmark = pytest.mark.usefixtures("form")

OUTPUTS = [1, 15, 16, 17, 33]
INPUTS = [32, 64, 96, 160, 2048, 16384, 16416, 32768]
"""Groups and halves of a tile's step, and both sides of what int32 sums of tiles hold."""
EDGES = {
    "x": [32767, -32767, 1, -1, 255, 256, -255, -256],
    "values": [127, -127, -128, 1, -1],
    "multipliers": [0, 1, 255, 256, 32767, 32768, 65535],
}
NARROW = [(127, 255), (-128, 255), (-127, 258), (7, 4681), (-1, 32767), (1, 1), (0, 65535)]
"""Values and multipliers whose product two signed bytes hold."""

Drawn = tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.uint16]]


def _drawn(seed: int, rows: int, outputs: int, inputs: int, kind: str = "any") -> Drawn:
    generator = np.random.default_rng(seed)
    groups = inputs // 32
    if kind == "any":
        return (
            generator.integers(-32767, 32768, (rows, inputs)),
            generator.integers(-128, 128, (outputs, inputs), dtype=np.int8),
            generator.integers(0, 65536, (outputs, groups), dtype=np.uint16),
        )
    if kind == "narrow":
        values, multipliers = _narrow(generator, outputs, groups)
        return generator.choice(EDGES["x"], (rows, inputs)), values, multipliers
    return (
        generator.choice(EDGES["x"], (rows, inputs)),
        generator.choice(EDGES["values"], (outputs, inputs)).astype(np.int8),
        generator.choice(EDGES["multipliers"], (outputs, groups)).astype(np.uint16),
    )


def _narrow(
    generator: np.random.Generator, outputs: int, groups: int
) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Groups of equal products up to 15 bits, times a power of two of each row where it fits."""
    chosen = np.array(NARROW)[generator.integers(0, len(NARROW), (outputs, groups))]
    signs = generator.choice([1, -1], (outputs, groups, 32))
    values = (chosen[..., :1] * signs).clip(-128, 127).reshape(outputs, -1)
    multipliers = chosen[..., 1]
    most = multipliers.max(axis=1, keepdims=True)
    shifts = generator.integers(0, 16, (outputs, 1))
    return (
        values.astype(np.int8),
        np.where(most << shifts <= 65535, multipliers << shifts, multipliers).astype(np.uint16),
    )


@some
@given(st.data(), st.integers(1, 12), st.integers(1, 18), st.integers(1, 3), st.integers(1, 3))
def test_products_equal_the_specification(
    data: st.DataObject, count: int, outputs: int, groups: int, threads: int
) -> None:
    matrix = data.draw(matrices(outputs, 32 * groups))
    distinct = data.draw(st.lists(long_rows(15, 32 * groups), min_size=1, max_size=4))
    rows = [distinct[i % len(distinct)] for i in range(count)]
    expected = [scalar.product(row, matrix) for row in distinct]
    stored = stored_matrix(matrix)
    got = product(np.array(rows), stored.values, stored.multipliers, threads)
    assert got.tolist() == [expected[i % len(distinct)] for i in range(count)]


@many
@given(
    st.integers(0, 1 << 32),
    st.integers(1, 40),
    st.sampled_from(OUTPUTS),
    st.sampled_from(INPUTS),
    st.integers(1, 3),
    st.sampled_from(["any", "edges", "narrow"]),
)
def test_products_of_every_shape_areexact_product(
    seed: int, rows: int, outputs: int, inputs: int, threads: int, kind: str
) -> None:
    drawn = _drawn(seed, rows, outputs, inputs, kind)
    assert np.array_equal(product(*drawn, threads), exact_product(*drawn))


@pytest.mark.parametrize("inputs", [32, 96, 2048])
def test_every_number_of_rows_gives_the_same_products(inputs: int) -> None:
    x, values, multipliers = _drawn(inputs, 40, 33, inputs)
    expected = exact_product(x, values, multipliers)
    for rows in range(1, 41):
        assert np.array_equal(product(x[:rows], values, multipliers), expected[:rows]), rows


@pytest.mark.parametrize("rows", [1, 8, 9, 10, 16, 17, 33])
def test_products_beyond_what_a_tile_sums_at_once_areexact_product(rows: int) -> None:
    for inputs in (16352, 16384, 16416, 32768):
        drawn = _drawn(rows + inputs, rows, 17, inputs, ("any", "edges")[rows % 2])
        assert np.array_equal(product(*drawn), exact_product(*drawn)), inputs


def test_products_are_exact_at_the_extremes_of_every_input() -> None:
    inputs = 32768
    for x, value, multiplier in every(*EDGES.values()):
        expected = x * value * multiplier * inputs
        assert abs(expected) < 1 << 53
        for rows in (1, 10):
            got = product(
                np.full((rows, inputs), x),
                np.full((1, inputs), value, dtype=np.int8),
                np.full((1, inputs // 32), multiplier, dtype=np.uint16),
            )
            assert (got == expected).all(), (x, value, multiplier, rows)


@pytest.mark.parametrize("shift", [0, 3, 8])
@pytest.mark.parametrize("value", [127, -128])
def test_products_are_exact_on_both_sides_of_what_two_bytes_hold(value: int, shift: int) -> None:
    """One row of a matrix decides: 258 is the last multiplier of 127 with 15 bits, 255 of 128."""
    generator = np.random.default_rng(shift)
    for multiplier in (254, 255, 256, 257, 258, 259):
        values = generator.integers(-127, 128, (40, 96)).astype(np.int8)
        multipliers = (generator.integers(1, 128, (40, 3)) << shift).astype(np.uint16)
        if multiplier << shift > 65535:
            continue
        values[37, 64:], multipliers[37, 2] = value, multiplier << shift
        x = generator.choice(EDGES["x"], (20, 96))
        assert np.array_equal(
            product(x, values, multipliers), exact_product(x, values, multipliers)
        )


def test_the_number_of_threads_does_not_change_a_product() -> None:
    for rows, outputs in ((1, 1), (6, 130), (20, 1000), (3, 16)):
        drawn = _drawn(rows, rows, outputs, 128)
        expected = exact_product(*drawn)
        for threads in (1, 2, 3, 7):
            assert np.array_equal(product(*drawn, threads), expected), (rows, outputs, threads)


def test_inputs_that_are_not_contiguous_are_multiplied_as_they_read() -> None:
    for rows in (4, 12):
        x, values, multipliers = _drawn(5, rows, 9, 64)
        expected = exact_product(x, values, multipliers)
        turned = np.asfortranarray(x), np.asfortranarray(values), np.asfortranarray(multipliers)
        assert np.array_equal(product(*turned), expected)
        spread = np.zeros((2 * rows, 128), dtype=np.int64)
        spread[::2, ::2] = x
        assert np.array_equal(product(spread[::2, ::2], values, multipliers), expected)
