"""Known answers at the edges of every range, before a process computes for others.

Some instruction sets saturate silently inside 8-bit products, and a machine may claim one that
does not work.
"""

from __future__ import annotations

import numpy as np

from unisono.errors import UnisonoError
from unisono.native import library
from unisono.native.operators import product


def self_test(device: str = "cpu") -> None:
    """Check this machine's products: the compiled ones, or torch's on another device.

    Raises:
        UnisonoError: they are not exact.
    """
    x = np.array([[32767, -32767] * 512, [-32767] * 1024], dtype=np.int64)
    signs = np.array([127, -127] * 512, dtype=np.int8)
    values = np.stack([signs, np.full(1024, 127, dtype=np.int8)])
    sums = np.array([[1, 0], [0, -1]], dtype=np.int64) * (32767 * 127 * 1024)
    if device == "cpu" and library.load() is not None:
        # more rows take another way through the machine, and so do small multipliers
        many, many_sums = np.concatenate([x] * 8), np.concatenate([sums] * 8)
        for largest in (65535, 258 << 7):
            multipliers = np.full((2, 32), largest, dtype=np.uint16)
            for rows, wanted in ((x, sums), (many, many_sums)):
                _compare(library.kernels(), product(rows, values, multipliers), largest * wanted)
        return
    import torch

    from unisono.numerics.linear import from_numpy

    wide = from_numpy(values).to(device, torch.float64) * 65535.0
    got = from_numpy(x).to(device, torch.float64) @ wide.t()
    _compare("float64", np.asarray(got.to(torch.int64).cpu()), 65535 * sums)


def _compare(name: str, got: np.ndarray, expected: np.ndarray) -> None:
    if not np.array_equal(got, expected):
        raise UnisonoError(
            f"this machine's {name} product is not exact: expected {expected.tolist()}, got "
            f"{got.tolist()}. Its answers would be rejected; do not serve from it."
        )
