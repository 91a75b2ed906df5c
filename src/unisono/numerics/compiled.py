"""Operators compiled for the CPU: the same integers as their torch forms in fewer passes.

`bench/kernels.py` justifies them: as separate torch calls, the operators around the matrix
products of one decode step of an 18-layer model take 130 ms, most of it call overhead.
The torch forms stay for other devices; the tests hold both against `numerics.scalar`.
"""
# numba carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import numba
import numpy as np
import torch
from torch import Tensor

from unisono.numerics.vectors import dot_heads, head_address

_enabled = True

PARALLEL_WORK = 1 << 15
"""Elements from which waking the other threads costs less than it saves."""

_lock = threading.Lock()
"""numba's default thread pool must not be entered from two threads at once."""


class Kernel:
    """A function compiled twice, for one thread and for all, ahead of its first call."""

    def __init__(self, signature: str, function: Callable[..., None]) -> None:
        self._serial = _jit(signature)(function)
        self._parallel = _jit(signature, parallel=True)(function)

    def __call__(self, wide: bool, *arguments: Any) -> None:
        """Run on all threads if there is enough work (`wide`), else on this one."""
        if wide and torch.get_num_threads() > 1:
            with _lock:
                self._parallel(*arguments)
        else:
            self._serial(*arguments)


def usable(x: Tensor) -> bool:
    """Whether the compiled form of an operator may run on this tensor."""
    return _enabled and x.device.type == "cpu"


@contextmanager
def pure_torch() -> Generator[None]:
    """Switch the compiled operators off, to hold them against the torch forms."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def array(x: Tensor) -> Any:
    """A contiguous numpy view (or copy) of a CPU tensor."""
    return cast(Any, x.contiguous()).numpy()


def _jit(signature: str | None = None, parallel: bool = False) -> Any:
    options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
    if parallel:
        options["parallel"] = True
    return numba.njit(signature, **options) if signature else numba.njit(**options)


@_jit("int64(int64, int64)")
def _shift(x, s):
    """`fixed.round_shift`"""
    if s == 0:
        return x
    return (x + (np.int64(1) << (s - 1))) >> s


@_jit("int64(int64, int64, int64)")
def _align(x, right, bits):
    """`fixed.align`"""
    limit = (np.int64(1) << bits) - 1
    if right >= 0:
        y = _shift(x, min(right, 62))
        return min(max(y, -limit), limit)
    left = min(-right, 62)
    bound = limit >> left
    if x > bound:
        return limit
    return -limit if x < -bound else x << left


@_jit("int64(int64)")
def _bits(x):
    """`fixed.bit_length`"""
    n = 0
    for step in (32, 16, 8, 4, 2, 1):
        if x >> step:
            x >>= step
            n += step
    return n + (1 if x else 0)


@_jit("int64(int64[::1])")
def _largest(x):
    top = np.int64(0)
    for i in range(x.shape[0]):
        top = max(top, abs(x[i]))
    return top


@_jit("int64(int64[::1], int64, int64[::1])")
def _reduce(x, bits, out):
    """`fixed.reduce_rows` of one row; returns the shift."""
    limit = (np.int64(1) << bits) - 1
    shift = max(_bits(_largest(x)) - bits, 0)
    if shift == 0:
        for i in range(x.shape[0]):
            out[i] = x[i]
        return shift
    half = np.int64(1) << (shift - 1)
    for i in range(x.shape[0]):
        out[i] = min(max((x[i] + half) >> shift, -limit), limit)
    return shift


def _reduce_rows(x, exponent, bits, out, out_exponent):
    for m in numba.prange(x.shape[0]):
        out_exponent[m] = exponent[m] + _reduce(x[m], bits, out[m])


_reduce_kernel = Kernel(
    "void(int64[:,::1], int64[::1], int64, int64[:,::1], int64[::1])",
    _reduce_rows,
)


def reduce_rows(x: Tensor, exponent: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """See `fixed.reduce_rows`."""
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=torch.int64)
    out_exponent = torch.empty(exponent.shape, dtype=torch.int64)
    rows = array(x).reshape(-1, width)
    _reduce_kernel(
        x.numel() > PARALLEL_WORK,
        rows,
        array(exponent).reshape(-1),
        bits,
        array(out).reshape(-1, width),
        array(out_exponent).reshape(-1),
    )
    return out, out_exponent


@_jit("int64(int64)")
def _root(x):
    """`fixed.square_root`"""
    r = np.int64(np.sqrt(np.float64(x)))
    if r * r > x:
        r -= 1
    if (r + 1) * (r + 1) <= x:
        r += 1
    return r


def _norm_rows(x, exponent, weight, mantissa, epsilon_exponent, out):
    n = x.shape[1]
    for m in numba.prange(x.shape[0]):
        row = out[m]
        row_exponent = exponent[m] + _reduce(x[m], 30, row)
        shift = max(_bits(_largest(row)) - 15, 0)
        limit = (np.int64(1) << 15) - 1
        total = np.int64(0)
        for i in range(n):
            c = min(max(_shift(row[i], shift), -limit), limit)
            total += c * c
        mean = (total << 16) // n
        right = 2 * (row_exponent + shift) - 16 - epsilon_exponent
        root = max(_root(mean + _align(mantissa, right, 50)), 1)
        inverse = (np.int64(1) << 46) // root
        for i in range(n):
            row[i] = _shift(row[i] * inverse, shift + 14) * weight[i]


_norm_kernel = Kernel(
    "void(int64[:,::1], int64[::1], int64[::1], int64, int64, int64[:,::1])",
    _norm_rows,
)


def rms_norm(x: Tensor, exponent: Tensor, weight: Tensor, epsilon: tuple[int, int]) -> Tensor:
    """The mantissas of `norm.rms_norm`."""
    out = torch.empty(x.shape, dtype=torch.int64)
    width = x.shape[-1]
    rows = array(x).reshape(-1, width)
    _norm_kernel(
        x.numel() > PARALLEL_WORK,
        rows,
        array(exponent).reshape(-1),
        array(weight),
        epsilon[0],
        epsilon[1],
        array(out).reshape(-1, width),
    )
    return out


def _rotate_rows(x, exponent, cosines, sines, out, out_exponent):
    heads, size = x.shape[1], x.shape[2]
    half = size // 2
    for m in numba.prange(x.shape[0]):
        scratch = np.empty(size, np.int64)
        for h in range(heads):
            e = exponent[m, h] + _reduce(x[m, h], 24, scratch)
            row = out[m, h]
            for i in range(half):
                a, b, c, s = scratch[i], scratch[half + i], cosines[m, i], sines[m, i]
                row[i] = a * c - b * s
                row[half + i] = b * c + a * s
            out_exponent[m, h] = e - 22 + _reduce(row, 15, row)


_rotate_kernel = Kernel(
    (
        "void(int64[:,:,::1], int64[:,::1], int64[:,::1], int64[:,::1], int64[:,:,::1], "
        "int64[:,::1])"
    ),
    _rotate_rows,
)


def rotate(x: Tensor, exponent: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """See `rotary.rotate`."""
    out = torch.empty(x.shape, dtype=torch.int64)
    out_exponent = torch.empty(exponent.shape, dtype=torch.int64)
    _rotate_kernel(
        x.numel() > PARALLEL_WORK,
        array(x),
        array(exponent)[..., 0],
        array(cosines),
        array(sines),
        array(out),
        array(out_exponent)[..., 0],
    )
    return out, out_exponent


@_jit("int64(int64, int64, int64[::1])")
def _exp2(distance, bits, table):
    """`softmax.exp2_negative`"""
    index = (distance >> 6) & 1023
    low = table[index]
    value = low - _shift((low - table[index + 1]) * (distance & 63), 6)
    return _shift(value, min((distance >> 16) + (38 - bits), 62))


@_jit("int64(int64, int64[::1], int64[::1])")
def _sigmoid(a, gate, exp2):
    """`activation.sigmoid`"""
    size = abs(a)
    if size >= np.int64(16) << 20:
        upper = np.int64(1) << 24
    else:
        index = size >> 12
        upper = gate[index] + _shift((gate[index + 1] - gate[index]) * (size & 4095), 12)
    if a >= 0:
        return upper << 14
    distance = _shift(size * np.int64(94548), 20)
    return _shift(_exp2(distance, 38, exp2) * upper, 24)


def _gated_rows(gelu, gate, gate_exponent, up, up_exponent, gates, exp2, out, out_exponent):
    n = gate.shape[1]
    limit = (np.int64(1) << 25) - 1
    for m in numba.prange(gate.shape[0]):
        active = np.empty(n, np.int64)
        row = out[m]
        shift = _reduce(gate[m], 24, active)
        for i in range(n):
            t = _align(gate[m, i], -(gate_exponent[m] + 20), 25)
            if gelu:
                square = _shift(t * t, 20)
                inner = np.int64(1713444047) + _shift(square * np.int64(76616651), 20)
                t = min(max(_shift(t * inner, 30), -limit), limit)
            active[i] *= _sigmoid(t, gates, exp2)
        e = gate_exponent[m] + shift - 38 + _reduce(active, 31, active)
        e += up_exponent[m] + _reduce(up[m], 31, row)
        for i in range(n):
            row[i] *= active[i]
        out_exponent[m] = e


_gated_kernel = Kernel(
    (
        "void(boolean, int64[:,::1], int64[::1], int64[:,::1], int64[::1], int64[::1], int64[::1], "
        "int64[:,::1], int64[::1])"
    ),
    _gated_rows,
)


def gated(
    gelu: bool,
    gate: tuple[Tensor, Tensor],
    up: tuple[Tensor, Tensor],
    tables: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """See `activation.gated`; `tables` are gate and exp2."""
    out = torch.empty(gate[0].shape, dtype=torch.int64)
    out_exponent = torch.empty(gate[1].shape, dtype=torch.int64)
    _gated_kernel(
        gate[0].numel() > PARALLEL_WORK,
        gelu,
        array(gate[0]),
        array(gate[1]).reshape(-1),
        array(up[0]),
        array(up[1]).reshape(-1),
        array(tables[0]),
        array(tables[1]),
        array(out),
        array(out_exponent).reshape(-1),
    )
    return out, out_exponent


def _attend_rows(
    q,
    q_exponent,
    k,
    k_exponent,
    v,
    v_exponent,
    first,
    last,
    mantissa,
    scale,
    exp2,
    out,
    out_exponent,
):
    n, heads, size = q.shape
    group = heads // k.shape[1]
    for job in numba.prange(n * heads):
        m, h = job // heads, job % heads
        g = h // group
        begin, end = first[m], last[m]
        scores = np.empty(end - begin, np.int64)
        top = -(np.int64(1) << 62)
        highest = np.int64(-(1 << 30))
        for j in range(begin, end):
            right = -(q_exponent[m, h] + k_exponent[j, g] + scale + 16)
            dot = dot_heads(head_address(q, m, h), head_address(k, j, g), size // 32)
            score = _align(dot * mantissa, right, 40)
            scores[j - begin] = score
            top = max(top, score)
            highest = max(highest, np.int64(v_exponent[j, g]))
        row = out[m, h]
        row[:] = 0
        total = np.int64(0)
        for j in range(begin, end):
            p = _exp2(min(top - scores[j - begin], np.int64(40) << 16), 28, exp2)
            total += p
            weight = _shift(p, min(highest - v_exponent[j, g], 62))
            if weight:
                narrow = np.int64(np.int32(weight))  # tells the compiler that 32 bits suffice
                for i in range(size):
                    row[i] += narrow * np.int64(v[j, g, i])
        for i in range(size):
            row[i] //= total >> 9
        out_exponent[m, h] = highest


_attend_kernel = Kernel(
    (
        "void(int16[:,:,::1], int64[:,::1], int16[:,:,::1], int16[:,::1], int16[:,:,::1], "
        "int16[:,::1], int64[::1], int64[::1], int64, int64, int64[::1], int64[:,:,::1], "
        "int64[:,::1])"
    ),
    _attend_rows,
)


def attend(
    queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    span: tuple[Tensor, Tensor],
    scale: tuple[int, int],
    exp2: Tensor,
) -> tuple[Tensor, Tensor]:
    """Per head, the weighted values of `softmax.attend` before heads share an exponent.

    `span` says per query which keys it sees: from the first up to, not including, the last.
    Keys, values and their exponents are int16.
    """
    query, query_exponent = queries
    out = torch.empty(query.shape, dtype=torch.int64)
    out_exponent = torch.empty(query_exponent.shape, dtype=torch.int64)
    _attend_kernel(
        query.numel() * keys[0].shape[0] > 16 * PARALLEL_WORK,
        array(query.to(torch.int16)),
        array(query_exponent)[..., 0],
        array(keys[0]),
        array(keys[1]),
        array(values[0]),
        array(values[1]),
        array(span[0]),
        array(span[1]),
        scale[0],
        scale[1],
        array(exp2),
        array(out),
        array(out_exponent)[..., 0],
    )
    return out, out_exponent
