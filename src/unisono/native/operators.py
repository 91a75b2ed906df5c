"""Single operators of the compiled library on numpy arrays, for tests and benchmarks.

Each is one operator of `unisono.numerics`; mantissas are int64, exponents Python integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisono.native import library
from unisono.native.library import address, check
from unisono.numerics.tensors import Vector

Row = NDArray[np.int64]


def _loaded() -> Any:
    loaded = library.load()
    assert loaded is not None, "the compiled kernels are not built"
    return loaded


def _copied(x: Row) -> Row:
    return np.array(x, dtype=np.int64, order="C")


class HeldMatrix:
    """Grouped weights in the library's layout."""

    def __init__(self, values: NDArray[np.int8], multipliers: NDArray[np.uint16]) -> None:
        self._library = _loaded()
        given = np.ascontiguousarray(values), np.ascontiguousarray(multipliers)
        self._outputs = len(values)
        self._matrix = self._library.unisono_matrix(
            address(given[0]), address(given[1]), *values.shape
        )
        if not self._matrix:
            check(self._library, -1)

    def __del__(self) -> None:
        if getattr(self, "_matrix", None):
            self._library.unisono_free_matrix(self._matrix)

    def product(self, x: Row, threads: int = 1) -> Row:
        """int64 [rows, inputs] (`|x| < 2**15`) → int64 [rows, outputs]."""
        x, out = _copied(x), np.empty((len(x), self._outputs), dtype=np.int64)
        status = self._library.unisono_product(
            self._matrix, address(x), len(x), threads, address(out)
        )
        check(self._library, status)
        return out

    def largest(self, x: Row, learned: int = 0, threads: int = 1) -> tuple[Row, int]:
        """The output with the largest product of each row, the lowest of several, by a shortlist
        made for the first `learned` rows.

        Args:
            x: int64 [rows, inputs], `|x| < 2**15`.

        Returns:
            int64 [rows], and how many blocks of 16 outputs were computed for all rows together.
        """
        x, out = _copied(x), np.empty(len(x), dtype=np.int64)
        listed = np.zeros(1, dtype=np.int64)
        status = self._library.unisono_largest(
            self._matrix, address(x), len(x), learned, threads, address(out), address(listed)
        )
        check(self._library, status)
        return out, int(listed[0])


def product(
    x: Row, values: NDArray[np.int8], multipliers: NDArray[np.uint16], threads: int = 1
) -> Row:
    """int64 [rows, inputs] (`|x| < 2**15`) times grouped weights → int64 [rows, outputs]."""
    return HeldMatrix(values, multipliers).product(x, threads)


def rms_norm(x: Row, exponent: int, weight: Row, epsilon: tuple[int, int]) -> Row:
    """The mantissas of a normalized row; their exponent is the weight's less 24."""
    x, weight, out = _copied(x), _copied(weight), np.empty(len(x), dtype=np.int64)
    _loaded().unisono_norm(address(x), exponent, len(x), address(weight), *epsilon, address(out))
    return out


def rotation(position: int, frequencies: Row, factor: int) -> tuple[Row, Row]:
    """Cosines and sines of a position, 22 fraction bits."""
    turns = _copied(frequencies)
    out = np.empty((2, len(turns)), dtype=np.int64)
    _loaded().unisono_rotation(
        position, address(turns), factor, len(turns), address(out[0]), address(out[1])
    )
    return out[0], out[1]


def rotate(head: Row, exponent: int, cosines: Row, sines: Row) -> tuple[Row, int]:
    """A head rotated and reduced to 15 bits, and its exponent."""
    x, c, s = _copied(head), _copied(cosines), _copied(sines)
    e = _loaded().unisono_rotate(address(x), exponent, len(x), address(c), address(s))
    return x, e


def gated(kind: str, gate: Row, gate_exponent: int, up: Row, up_exponent: int) -> tuple[Row, int]:
    """`activation(gate) * up` and its exponent; `kind` is `silu` or `gelu_tanh`."""
    g, u, out = _copied(gate), _copied(up), np.empty(len(gate), dtype=np.int64)
    gelu = kind == "gelu_tanh"
    e = _loaded().unisono_gated(
        gelu, address(g), gate_exponent, address(u), up_exponent, len(g), address(out)
    )
    return out, e


def add_bias(x: Row, exponent: int, bias: Vector) -> tuple[Row, int]:
    """A product plus a bias, and their exponent."""
    x, values = _copied(x), _copied(bias.values)
    e = _loaded().unisono_add_bias(address(x), exponent, len(x), address(values), bias.exponent)
    return x, e


def add_residual(residual: Row, x: Row, exponent: int) -> Row:
    """The residual row plus a row with an exponent, saturated."""
    out, x = _copied(residual), _copied(x)
    _loaded().unisono_add_residual(address(out), address(x), exponent, len(x))
    return out


def choose(logits: Row, draw: library.Draw) -> None:
    """Choose a token of int64 [vocabulary] logits; the draw holds what came out."""
    scores = _copied(logits)
    _loaded().unisono_choose(address(scores), len(scores), draw)


def enable_tiles(wanted: bool) -> None:
    """Whether matrix tiles are used where the processor has them; for tests of the other forms."""
    _loaded().unisono_enable_tiles(wanted)
