"""The largest product by a shortlist is the largest of all, whatever the list was made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.native.exact import exact_product
from tests.numerics.drawn import many
from unisono.native import library
from unisono.native.operators import HeldMatrix

OUTPUTS = [1, 15, 16, 17, 33, 160, 1000]
INPUTS = [32, 64, 96, 640, 8192]
MULTIPLIERS = [0, 1, 2, 255, 256, 65535]
Values = NDArray[np.int64]


def _weights(
    generator: np.random.Generator, outputs: int, inputs: int, kind: str
) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    shape, groups = (outputs, inputs), (outputs, inputs // 32)
    values = generator.integers(-128, 128, shape, dtype=np.int8)
    multipliers = generator.integers(0, 65536, groups, dtype=np.uint16)
    if kind == "edges":
        values = generator.choice([-128, -127, 0, 1, 127], shape).astype(np.int8)
        multipliers = generator.choice(MULTIPLIERS, groups).astype(np.uint16)
    elif kind == "alike":  # many outputs with equal and nearly equal products
        values = np.repeat(values[:1], outputs, axis=0)
        multipliers = np.repeat(multipliers[:1], outputs, axis=0)
        changed = generator.integers(0, outputs, outputs // 2)
        values[changed, generator.integers(0, inputs, len(changed))] ^= 1
    elif kind == "outliers":  # what a shortlist clips
        values = (values >> 6).astype(np.int8)
        values[generator.integers(0, outputs, 3), generator.integers(0, inputs, 3)] = 127
    elif kind == "zeros":
        values[generator.random(outputs) < 0.5] = 0
    return values, multipliers


def _rows(generator: np.random.Generator, count: int, inputs: int, kind: str) -> Values:
    x = generator.integers(-32767, 32768, (count, inputs))
    if kind == "edges":
        x = generator.choice([-32767, -1, 0, 1, 32767], (count, inputs))
    elif kind == "one":
        x[:] = 0
        x[np.arange(count), generator.integers(0, inputs, count)] = generator.choice([-7, 32767])
    elif kind == "zeros":
        x[:] = 0
    elif kind == "uneven":
        x = (x * generator.random(inputs) ** 8).astype(np.int64)
    return x


@many
@given(
    st.integers(0, 1 << 32),
    st.integers(1, 10),
    st.sampled_from(OUTPUTS),
    st.sampled_from(INPUTS),
    st.sampled_from(["any", "edges", "alike", "outliers", "zeros"]),
    st.sampled_from(["any", "edges", "one", "zeros", "uneven"]),
    st.integers(0, 4),
    st.integers(1, 3),
)
def test_the_largest_product_is_found(
    seed: int, count: int, outputs: int, inputs: int, weights: str, rows: str, learned: int,
    threads: int,
) -> None:  # fmt: skip
    generator = np.random.default_rng(seed)
    values, multipliers = _weights(generator, outputs, inputs, weights)
    x = _rows(generator, count, inputs, rows)
    found, _ = HeldMatrix(values, multipliers).largest(x, min(learned, count), threads)
    assert found.tolist() == np.argmax(exact_product(x, values, multipliers), axis=1).tolist()


@pytest.mark.skipif(library.kernels() not in ("vnni", "tiles"), reason="made for these alone")
def test_most_blocks_are_ruled_out_where_one_product_stands_out() -> None:
    generator = np.random.default_rng(7)
    values = generator.integers(-128, 128, (20_000, 256), dtype=np.int8)
    multipliers = generator.integers(100, 200, (20_000, 8), dtype=np.uint16)
    wanted = generator.integers(0, 20_000, 12)
    x = values[wanted].astype(np.int64) * 100 + generator.integers(-2000, 2000, (12, 256))
    found, listed = HeldMatrix(values, multipliers).largest(x, 12, 2)
    assert found.tolist() == wanted.tolist()
    assert listed < 12 * 20_000 / 16 / 100
