"""Compiled operators against their torch forms, in the shapes of Gemma 3 270M, one thread.

    python -m bench.kernels

The torch forms are what runs on other devices; all give the same integers, which this bench
asserts before it measures. It justifies the compiled kernels, and from which number of rows
matrix tiles are used (`TILE_ROWS_FROM` of `native/cpp/product.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.machine import median_ms, publish
from unisono.native import operators
from unisono.numerics import activation, norm, rotary
from unisono.numerics.linear import Matrix, from_numpy, product
from unisono.numerics.tensors import Matrix as Stored

HIDDEN, MLP, SIZE = 640, 2048, 256
ROWS = (1, 4, 8, 12, 16, 64, 256)

Row = dict[str, object]


def compared(work: str, rows: int, forms: dict[str, Callable[[], Any]]) -> Row:
    """One line of the table; forms must agree."""
    results = [np.asarray(form()) for form in forms.values()]
    assert all(np.array_equal(r, results[0]) for r in results), f"{work}: the forms differ"
    times = median_ms(*forms.values())
    named = {f"{name} ms": ms for name, ms in zip(forms, times, strict=True)}
    return {"work": work, "rows": rows, **named, "×": times[-1] / times[0]}


def products(outputs: int, inputs: int, largest: int = 255) -> list[Row]:
    """Matrix products with tiles, with dot products and in torch; of a layer's weights, or with
    multipliers of 16 bits as the output matrix has them."""
    draw = np.random.default_rng(0)
    values = draw.integers(-127, 128, (outputs, inputs), dtype=np.int8)
    multipliers = draw.integers(1, largest + 1, (outputs, inputs // 32), dtype=np.uint16)
    on_torch = Matrix.on("cpu", Stored(values, multipliers, 0))
    held = operators.HeldMatrix(values, multipliers)
    lines: list[Row] = []
    for rows in ROWS:
        x = draw.integers(-32767, 32768, (rows, inputs))

        def with_tiles(wanted: bool, x: Any = x) -> Any:
            operators.enable_tiles(wanted)
            try:
                return held.product(x)
            finally:
                operators.enable_tiles(True)

        forms = {
            "compiled": lambda: with_tiles(True),
            "without tiles": lambda: with_tiles(False),
            "torch": lambda x=x: product(from_numpy(x), on_torch).numpy(),
        }
        bits = largest.bit_length()
        lines.append(compared(f"product {outputs}×{inputs}, {bits} bits", rows, forms))
    return lines


def rows_of_operators() -> list[Row]:
    """Norm, gate and rotation of one row."""
    draw = np.random.default_rng(1)
    x, weight = draw.integers(-(1 << 28), 1 << 28, HIDDEN), draw.integers(0, 1 << 20, HIDDEN)
    gate, up = (draw.integers(-(1 << 40), 1 << 40, MLP) for _ in range(2))
    head, turns = draw.integers(-(1 << 40), 1 << 40, SIZE), draw.integers(0, 1 << 40, SIZE // 2)
    epsilon, one = (8796093, -43), torch.tensor([[-20]])
    turn = operators.rotation(17, turns, 1 << 16)
    wide = torch.tensor([[-38]])

    def row(values: Any) -> torch.Tensor:
        return from_numpy(values)[None]

    return [
        compared(
            "rms_norm",
            1,
            {
                "compiled": lambda: operators.rms_norm(x, -20, weight, epsilon),
                "torch": lambda: norm.rms_norm(row(x), one, from_numpy(weight), -18, epsilon)[0][
                    0
                ].numpy(),
            },
        ),
        compared(
            "gated gelu",
            1,
            {
                "compiled": lambda: operators.gated("gelu_tanh", gate, -38, up, -38)[0],
                "torch": lambda: activation.gated("gelu_tanh", row(gate), wide, row(up), wide)[0][
                    0
                ].numpy(),
            },
        ),
        compared(
            "rotate",
            1,
            {
                "compiled": lambda: operators.rotate(head, -38, *turn)[0],
                "torch": lambda: rotary.rotate(
                    row(head)[None], wide[None], row(turn[0]), row(turn[1])
                )[0][0, 0].numpy(),
            },
        ),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    publish(
        "kernels",
        [
            *rows_of_operators(),
            *products(MLP, HIDDEN),
            *products(HIDDEN, MLP),
            *products(MLP, HIDDEN, 65535),
        ],
    )
