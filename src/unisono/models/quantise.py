"""From float weights to the canonical integers. Deterministic on every machine.

Only operations whose result IEEE 754 fixes are used (scaling by powers of two, single
divisions, rounding to even, sums of integers below 2**53 in float64), so that everybody who
converts the same file gets the same model id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unisono.errors import CorruptModel
from unisono.numerics.tensors import BIAS_BITS, GROUP, WEIGHT_BITS, Matrix, Vector


@dataclass(frozen=True, slots=True)
class Search:
    """What the multipliers of a matrix may be."""

    levels: tuple[int, ...]
    """Candidates for the integer that stands for a group's largest weight. The one with the
    least squared error is taken: weights that lie on a coarser grid (GGUF types of up to 5 bits)
    then come out exact, because some candidate is a multiple of their largest step."""
    row_bits: int = 0
    """If not 0: magnitude bits of value times multiplier in the unit of a row, a power of two
    times that of the matrix."""

    def limit(self, level: int) -> int:
        """The largest multiplier at a level, in the row's unit."""
        return ((1 << self.row_bits) - 1) // level if self.row_bits else 65535


WIDE = Search((127, 126, 124, 121, 120, 117, 112))
"""Multipliers of 16 bits, so that 8-bit grids come out exact too."""
NARROW = Search((127, 126, 125, 124, 123, 121, 120, 119, 117, 112, 16), row_bits=15)
"""Two bytes hold a weight: matrix tiles then multiply by two digits instead of three
(`native/cpp/tiles.cpp`). Multipliers have 8 bits at 127 and 11 at 16, the end of the 5-bit grids;
more levels make up for what that loses."""
_EXTRA_BITS = 4
_MAX_EXPONENT = 128
_BLOCK = 2048
"""Groups at a time: two buffers of 512 KiB stay in a core's cache. Nanoseconds per weight of two
threads on two cores: 30 with 512, 19 with 1,024, 13.5 with 2,048, 12.3 with 4,096."""

_Floats = NDArray[np.float64]


def largest_magnitude(name: str, weights: NDArray[np.float32]) -> float:
    """The largest magnitude in an array of any shape, 0 of an empty one.

    Raises:
        CorruptModel: a weight is infinite or not a number; names the tensor.
    """
    return _largest(name, weights, "weights")


def search_of(name: str) -> Search:
    """Prompts multiply by the matrices of layers. The embedding is the output matrix of many
    models, where weights cost most accuracy and a prompt needs one row."""
    return NARROW if name.startswith("layers.") else WIDE


def matrix_exponent(largest: float, search: Search) -> int:
    """The exponent of a matrix whose largest magnitude is this: multipliers get 16 bits."""
    exponent = math.frexp(largest / search.levels[-1])[1] - 16 if largest else 0
    return max(-_MAX_EXPONENT, min(_MAX_EXPONENT, exponent))


def quantise_rows(
    rows: NDArray[np.float32], exponent: int, search: Search
) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Grouped int8 form of some rows of a matrix with this `matrix_exponent`.

    Args:
        rows: finite float32 [n, inputs]; inputs are a multiple of 32.

    Returns:
        Values int8 [n, inputs] and multipliers uint16 [n, inputs / 32].
    """
    shifts = np.repeat(_row_shifts(rows, exponent, search), rows.shape[1] // GROUP)
    units = np.ldexp(1.0, _EXTRA_BITS - exponent - shifts)
    groups = rows.reshape(-1, GROUP)
    values = np.empty(groups.shape, np.int8)
    multipliers = np.empty(len(groups), np.uint16)
    scratch = np.empty((2, GROUP, min(_BLOCK, len(groups))))
    for start in range(0, len(groups), _BLOCK):
        part = groups[start : start + _BLOCK]
        stop = start + len(part)
        # One group per column: numpy then runs along the groups, and not along 32 elements.
        exact, q = scratch[:, :, : len(part)]
        np.multiply(part.T, units[start:stop], out=exact, dtype=np.float64)
        np.rint(exact, out=exact)
        steps = _quantise_groups(exact, q, search)
        multipliers[start:stop] = np.ldexp(steps, shifts[start:stop] - _EXTRA_BITS)
        values[start:stop] = q.T
    return values.reshape(rows.shape), multipliers.reshape(len(rows), rows.shape[1] // GROUP)


def _row_shifts(rows: NDArray[np.float32], exponent: int, search: Search) -> NDArray[np.int32]:
    """How far the unit of each row lies above the matrix's: binary orders, [n]."""
    if not search.row_bits:
        return np.zeros(len(rows), np.int32)
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    orders = np.frexp(largest.astype(np.float64))[1] - (exponent + search.row_bits)
    return np.where(largest > 0, orders.clip(0), 0).astype(np.int32)


def _quantise_groups(exact: _Floats, q: _Floats, search: Search) -> _Floats:
    """Integers [32, g] → `q` [32, g], overwritten, and the steps [g] with the least error."""
    largest = np.abs(exact, out=q).max(axis=0)
    step, error = largest, None
    for level in search.levels:
        candidate = _step(largest, level, search.limit(level))
        _divide(exact, candidate, largest, q)
        q *= candidate
        np.subtract(exact, q, out=q)
        q *= q
        found = q.sum(axis=0)
        if error is None:
            step, error = candidate, found
        else:
            step = np.where(found < error, candidate, step)
            error = np.minimum(error, found)
        if not error.any():
            break
    _divide(exact, step, largest, q)
    return step


def _step(largest: _Floats, level: int, limit: int) -> _Floats:
    """16 times the multiplier, up to `limit`, that takes each group's largest magnitude to
    `level`."""
    scale = 1 << _EXTRA_BITS
    return np.rint(largest / (scale * level)).clip(1, limit) * scale


def _divide(exact: _Floats, step: _Floats, largest: _Floats, q: _Floats) -> None:
    """`exact / step` rounded to even and clipped to 127, into `q`."""
    np.divide(exact, step, out=q)
    np.rint(q, out=q)
    if bool((largest >= 127.5 * step).any()):  # rare, and a clip takes as long as the rounding
        np.clip(q, -127, 127, out=q)


def quantise_matrix(name: str, weight: NDArray[np.float32]) -> Matrix:
    """Grouped int8 form of a float matrix [outputs, inputs], searched as its name says.

    Raises:
        CorruptModel: a weight is infinite or not a number; names the tensor.
    """
    search = search_of(name)
    exponent = matrix_exponent(largest_magnitude(name, weight), search)
    return Matrix(*quantise_rows(weight, exponent, search), exponent)


def quantise_norm(name: str, values: NDArray[np.float32]) -> Vector:
    """Norm weights [n] as 20-bit integers with one exponent.

    Raises:
        CorruptModel: a value is infinite or not a number; names the tensor.
    """
    return _quantise_vector(name, values, WEIGHT_BITS)


def quantise_bias(name: str, values: NDArray[np.float32]) -> Vector:
    """A bias [n] as 24-bit integers with one exponent. Raises as `quantise_norm` does."""
    return _quantise_vector(name, values, BIAS_BITS)


def _quantise_vector(name: str, values: NDArray[np.float32], bits: int) -> Vector:
    largest = _largest(name, values, "values")
    exponent = math.frexp(largest)[1] - bits if largest else 0
    exponent = max(-_MAX_EXPONENT, exponent)
    limit = (1 << bits) - 1
    scaled = np.rint(values.astype(np.float64) * 2.0**-exponent).clip(-limit, limit)
    return Vector(scaled.astype(np.int64), exponent)


def _largest(name: str, values: NDArray[np.float32], what: str) -> float:
    if not values.size:
        return 0.0
    low, high = float(values.min()), float(values.max())  # both NaN if any is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CorruptModel(f"tensor '{name}' holds infinite {what} or NaN")
    return max(-low, high)
