from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unisono.numerics.tensors import Matrix
from unisono.verification.light.field import (
    PRIME,
    input_product,
    limbs,
    output_product,
    secret_vector,
    weights_product,
)

SEED = bytes(range(32))
MAX_PRODUCT = (1 << 53) - 1


def drawn(seed: int, outputs: int, inputs: int, edges: bool = False) -> Matrix:
    generator = np.random.default_rng(seed)
    if edges:
        values = generator.choice([-128, 127, 0, 1], (outputs, inputs)).astype(np.int8)
        multipliers = generator.choice([0, 1, 65535], (outputs, inputs // 32)).astype(np.uint16)
    else:
        values = generator.integers(-128, 128, (outputs, inputs), dtype=np.int8)
        multipliers = generator.integers(0, 65536, (outputs, inputs // 32), dtype=np.uint16)
    return Matrix(values, multipliers, -24)


def effective(matrix: Matrix) -> NDArray[np.int64]:
    wide = matrix.multipliers.astype(np.int64).repeat(32, axis=1)
    return matrix.values.astype(np.int64) * wide


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from([1, 3, 511, 512, 513, 1100]),
    st.sampled_from([32, 96]),
    st.booleans(),
)
def test_sums_equal_integers_of_any_size(seed: int, outputs: int, inputs: int, edges: bool) -> None:
    matrix = drawn(seed, outputs, inputs, edges)
    secret = secret_vector(SEED, str(seed), outputs)
    wide = effective(matrix)
    expected = [
        sum(int(r) * int(w) for r, w in zip(secret, wide[:, k], strict=True)) % PRIME
        for k in range(inputs)
    ]
    assert weights_product(secret, matrix).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([1, 7, 16384, 16385, 40000]))
def test_output_products_equal_integers_of_any_size(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    outputs = generator.integers(-MAX_PRODUCT, MAX_PRODUCT + 1, count)
    outputs[:2] = [MAX_PRODUCT, -MAX_PRODUCT][: outputs.size]
    secret = secret_vector(SEED, "x", count)
    expected = sum(int(r) * int(y) for r, y in zip(secret, outputs, strict=True)) % PRIME
    assert output_product(limbs(secret), outputs) == expected


@pytest.mark.parametrize("value", [32767, -32767])
@pytest.mark.parametrize("count", [1 << 15, 1 << 17, (1 << 17) + 1])
def test_long_rows_of_the_largest_inputs_are_exact(value: int, count: int) -> None:
    sums = np.full(count, PRIME - 1, dtype=np.uint64)
    assert input_product(limbs(sums), np.full(count, value)) == (PRIME - 1) * value * count % PRIME


def test_the_largest_outputs_of_a_whole_chunk_are_exact() -> None:
    secret = np.full(16384, PRIME - 1, dtype=np.uint64)
    for value in (MAX_PRODUCT, -MAX_PRODUCT):
        outputs = np.full(16384, value)
        assert output_product(limbs(secret), outputs) == (PRIME - 1) * value * 16384 % PRIME


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 63), st.integers(-(1 << 52), 1 << 52))
def test_a_product_passes_if_and_only_if_it_is_right(seed: int, at: int, change: int) -> None:
    matrix = drawn(seed, 64, 96)
    secret = secret_vector(SEED, "m", 64)
    sums = limbs(weights_product(secret, matrix))
    inputs = np.random.default_rng(seed).integers(-32767, 32768, 96)
    outputs = inputs @ effective(matrix).T
    assert output_product(limbs(secret), outputs) == input_product(sums, inputs)
    outputs[at] = np.clip(outputs[at] + change, -MAX_PRODUCT, MAX_PRODUCT)
    same = bool((outputs == inputs @ effective(matrix).T).all())
    assert (output_product(limbs(secret), outputs) == input_product(sums, inputs)) == same


def test_secret_vectors_follow_from_seed_and_name_and_are_reduced() -> None:
    one = secret_vector(SEED, "layers.0.query", 5000)
    assert (one == secret_vector(SEED, "layers.0.query", 5000)).all()
    assert (one[:100] == secret_vector(SEED, "layers.0.query", 100)).all()
    assert not (one == secret_vector(SEED, "layers.0.key", 5000)).any()
    assert not (one == secret_vector(bytes(32), "layers.0.query", 5000)).any()
    assert int(one.max()) <= PRIME
    assert len(set(one.tolist())) == 5000
    # of 61 random bits each is set about half the time
    for bit in range(61):
        assert 2200 < int(((one >> np.uint64(bit)) & np.uint64(1)).sum()) < 2800
