"""Integers, rows and weights for property tests: every magnitude is as likely as every other,
and the edges of each range come often."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from unisono.numerics import linear, scalar, tensors
from unisono.types import Q16, Sampling

some = settings(max_examples=40, deadline=None)
many = settings(max_examples=150, deadline=None)

FRACTIONS = st.one_of(st.sampled_from([0, 1, Q16 // 2, Q16 - 1, Q16]), st.integers(0, Q16))
EXPONENTS = st.integers(-120, 60)
"""Exponents far beyond those of any real model."""


def integers(bits: int) -> SearchStrategy[int]:
    """Signed integers whose magnitude has at most `bits` bits."""

    def build(length: int, raw: int, negative: bool) -> int:
        size = raw >> (bits - length)
        return -size if negative else size

    top = (1 << bits) - 1
    edges = [0, 1, -1, top, -top, top >> 1, (top >> 1) + 1, -(top >> 1) - 1]
    drawn = st.builds(build, st.integers(0, bits), st.integers(0, top), st.booleans())
    return st.one_of(drawn, st.sampled_from(edges))


def rows(bits: int, least: int = 1, most: int = 24) -> SearchStrategy[list[int]]:
    """Rows of 1 to 24 such integers."""
    return st.lists(integers(bits), min_size=least, max_size=most)


def tensor(values: object) -> Tensor:
    """An int64 tensor."""
    return torch.tensor(values, dtype=torch.int64)


@st.composite
def long_rows(draw: st.DrawFn, bits: int, size: int) -> list[int]:
    """A row of a given length, most of it from a generator: any number of bits at most, all
    edges, one number, or zeros with a few drawn ones."""
    width = draw(st.one_of(st.just(bits), st.integers(0, bits)))
    kind = draw(st.sampled_from(["any", "edges", "one", "few"]))
    generator = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    top = (1 << width) - 1
    if kind == "any":
        magnitudes = generator.integers(0, top + 1, size) >> generator.integers(0, width + 1, size)
        out = (magnitudes * generator.choice([-1, 1], size)).tolist()
    elif kind == "edges":
        out = generator.choice([0, 1, -1, top, -top, top >> 1, -(top >> 1) - (top > 1)], size)
        out = out.tolist()
    else:
        out = [draw(integers(bits)) if kind == "one" else 0] * size
    some_of_them = st.tuples(st.integers(0, size - 1), integers(bits))
    for i, x in draw(st.lists(some_of_them, max_size=3)):
        out[i] = x
    return out


@st.composite
def matrices(draw: st.DrawFn, outputs: int, inputs: int) -> scalar.Matrix:
    """A grouped matrix with random, extreme or no weights."""
    generator = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    values = generator.integers(-128, 128, (outputs, inputs))
    multipliers = generator.integers(0, 65536, (outputs, inputs // 32))
    kind = draw(st.sampled_from(["random", "random", "extreme", "small", "zero"]))
    if kind == "extreme":
        values, multipliers = np.where(values < 0, -128, 127), np.full_like(multipliers, 65535)
    elif kind == "small":
        multipliers = multipliers % 3
    elif kind == "zero":
        values = np.zeros_like(values)
    exponent = draw(st.integers(-60, 20))
    return scalar.Matrix(values.tolist(), multipliers.tolist(), exponent)


def stored_matrix(matrix: scalar.Matrix) -> tensors.Matrix:
    """The same matrix as it is stored."""
    return tensors.Matrix(
        np.array(matrix.values, dtype=np.int8),
        np.array(matrix.multipliers, dtype=np.uint16),
        matrix.exponent,
    )


def torch_matrix(matrix: scalar.Matrix) -> linear.Matrix:
    """The same matrix for the vectorised operators."""
    return linear.Matrix.on("cpu", stored_matrix(matrix))


def torch_vector(vector: scalar.Vector) -> linear.Vector:
    """The same vector for the vectorised operators."""
    return linear.Vector(tensor(vector.values), vector.exponent)


@st.composite
def rules(draw: st.DrawFn, vocabulary: int) -> Sampling:
    """Sampling rules of every kind, and the extremes that a request may ask for."""
    biased = draw(st.sets(st.integers(0, vocabulary - 1), max_size=4))
    most = (1 << 31) - 1
    penalty = st.one_of(
        st.just(0), st.integers(-2 * Q16, 2 * Q16), st.sampled_from([most, -most - 1])
    )
    bias = st.one_of(st.integers(-100 * Q16, 100 * Q16), st.sampled_from([most, -most - 1]))
    return Sampling(
        temperature=draw(st.sampled_from([0, 1, Q16 // 3, Q16, Q16, 2 * Q16, 50 * Q16, most])),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 5, vocabulary, vocabulary + 1, most])),
        top_p=draw(FRACTIONS),
        min_p=draw(st.one_of(st.just(0), FRACTIONS)),
        repetition_penalty=draw(
            st.sampled_from([Q16, 1, Q16 // 2, 2 * Q16, 10 * Q16, 64 * Q16 - 1])
        ),
        presence_penalty=draw(penalty),
        frequency_penalty=draw(penalty),
        logit_bias=tuple((i, draw(bias)) for i in sorted(biased)),
        seed=draw(st.integers(0, (1 << 63) - 1)),
    )


def scaled(rows: list[scalar.Scaled]) -> tuple[list[list[int]], list[list[int]]]:
    """Rows and exponents as a vectorised operator returns them, as lists."""
    return [row for row, _ in rows], [[exponent] for _, exponent in rows]


def lists(rows: tuple[Tensor, Tensor]) -> tuple[list[list[int]], list[list[int]]]:
    """What a vectorised operator returned, as lists."""
    return rows[0].tolist(), rows[1].tolist()
