"""The tables that canonical operators look up, made from integers only.

Every entry is the correctly rounded value of a real function, computed with 160 fraction
bits by recurrences whose error stays below 2**-140. The same integers result on every
machine; `digest()` names them in each model's manifest.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_PRECISION = 160
_ONE = 1 << _PRECISION

EXP_BITS = 38
"""Fraction bits of `exp2_table`."""
EXP_STEPS = 1024
GATE_BITS = 24
"""Fraction bits of `gate_table`."""
GATE_STEPS = 4096
COS_BITS = 22
"""Fraction bits of `cosine_table`."""
COS_STEPS = 4096
LOG_BITS = 38
"""Fraction bits of `log2_table`."""
LOG_STEPS = 4096


def _rounded(value: int, bits: int) -> int:
    """`value` with 160 fraction bits, rounded to `bits` of them."""
    shift = _PRECISION - bits
    return (value + (1 << (shift - 1))) >> shift


def _multiply(a: int, b: int) -> int:
    return (a * b) >> _PRECISION


def _exp_small(numerator: int, denominator: int) -> int:
    """exp(-numerator/denominator) by its Taylor series, 160 fraction bits."""
    total, term, k = _ONE, _ONE, 0
    while term:
        k += 1
        term = -term * numerator // (denominator * k)
        if term == -1:  # floor division of a negative remainder never reaches 0
            break
        total += term
    return total


@cache
def pi() -> int:
    """π with 160 fraction bits, by Machin's formula."""

    def arctan_inverse(n: int) -> int:
        power, total, k = _ONE // n, _ONE // n, 1
        while power:
            power //= n * n
            k += 2
            total += -(power // k) if k % 4 == 3 else power // k
        return total

    return 4 * (4 * arctan_inverse(5) - arctan_inverse(239))


@cache
def ln2() -> int:
    """ln 2 with 160 fraction bits: the sum of 1 / (k 2**k)."""
    return sum(_ONE // (k << k) for k in range(1, _PRECISION + 1))


@cache
def exp2_values() -> tuple[int, ...]:
    """`2**(-k/1024)` for k = 0..1024, 38 fraction bits."""
    step = _exp_small(ln2(), _ONE * EXP_STEPS)
    values: list[int] = []
    x = _ONE
    for _ in range(EXP_STEPS + 1):
        values.append(_rounded(x, EXP_BITS))
        x = _multiply(x, step)
    return tuple(values)


@cache
def gate_values() -> tuple[int, ...]:
    """`1 / (1 + exp(-k/256))` for k = 0..4096, 24 fraction bits."""
    step = _exp_small(1, 256)
    values: list[int] = []
    x = _ONE
    for _ in range(GATE_STEPS + 1):
        values.append(_rounded((_ONE << _PRECISION) // (_ONE + x), GATE_BITS))
        x = _multiply(x, step)
    return tuple(values)


@cache
def cosine_values() -> tuple[int, ...]:
    """`cos(2π k/4096)` for k = 0..4096, 22 fraction bits."""
    angle = 2 * pi() // COS_STEPS
    square = _multiply(angle, angle)
    cos_step, term, k = _ONE, _ONE, 0
    while term:
        term = _multiply(term, square) // ((k + 1) * (k + 2))
        k += 2
        cos_step += -term if k % 4 == 2 else term
    # cos((k+1)a) = 2 cos(a) cos(ka) - cos((k-1)a), over one quarter, then by symmetry
    quarter = COS_STEPS // 4
    exact = [_ONE, cos_step]
    for _ in range(quarter - 1):
        exact.append(2 * _multiply(cos_step, exact[-1]) - exact[-2])
    first = [_rounded(x, COS_BITS) for x in exact[:quarter]]
    first.append(0)
    half = first + [-x for x in reversed(first[:-1])]
    return tuple(half + list(reversed(half[:-1])))


@cache
def log2_values() -> tuple[int, ...]:
    """`log2(1 + k/4096)` for k = 0..4096, 38 fraction bits.

    log2(a) - log2(b) = 2 artanh((a-b)/(a+b)) / ln 2, summed from entry to entry.
    """
    values, x = [0], 0
    for k in range(LOG_STEPS):
        n = 2 * (LOG_STEPS + k) + 1
        power, total, j = _ONE // n, _ONE // n, 1
        while power:
            power //= n * n
            j += 2
            total += power // j
        x += (2 * total << _PRECISION) // ln2()
        values.append(_rounded(x, LOG_BITS))
    return tuple(values)


_TABLES = {
    "exp2": exp2_values,
    "gate": gate_values,
    "cosine": cosine_values,
    "log2": log2_values,
}
NAMES = tuple(sorted(_TABLES))


def values(name: str) -> tuple[int, ...]:
    """A table's entries. `name`: exp2, gate, cosine or log2."""
    return _TABLES[name]()


@cache
def digest() -> str:
    """64 hex digits: SHA-256 of all tables, each entry as 8 bytes little-endian."""
    state = hashlib.sha256()
    for name, values in sorted(_TABLES.items()):
        state.update(name.encode() + b"\0")
        for value in values():
            state.update(value.to_bytes(8, "little", signed=True))
    return state.hexdigest()


@cache
def table(name: str, device: str = "cpu") -> Tensor:
    """A table as an int64 tensor on a device. `name`: exp2, gate, cosine or log2."""
    import torch  # the gateway hashes tables without ever loading torch

    return torch.tensor(_TABLES[name](), dtype=torch.int64, device=device)
