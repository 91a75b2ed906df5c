"""Compiled operators against their torch forms, in the shapes of Gemma 3 270M.

    python -m bench.kernels

The torch forms are what runs on other devices; both give the same integers, which this
bench asserts before it measures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.machine import median_ms, publish
from unisono.numerics import fixed, kernels, norm, rotary, softmax
from unisono.numerics.activation import gated
from unisono.numerics.compiled import pure_torch
from unisono.numerics.linear import Matrix

HIDDEN, MLP, HEADS, SIZE, SEEN = 640, 2048, 4, 256, 512

Result = tuple[Tensor, ...]


def compare(
    name: str, rows: int, compiled: Callable[[], Result], other: Callable[[], Result] | None = None
) -> dict[str, object]:
    """One line of the table: `other` is the torch form of `compiled` unless it is given."""

    def in_torch() -> Result:
        with pure_torch():
            return (other or compiled)()

    for a, b in zip(compiled(), in_torch(), strict=True):
        assert torch.equal(a, b), f"{name}: the two forms differ"
    fast, slow = median_ms(compiled, in_torch)
    return {"operator": name, "rows": rows, "compiled ms": fast, "torch ms": slow, "×": slow / fast}


def measure(rows: int) -> list[dict[str, object]]:
    """All operators with this many rows."""
    x, e = torch.randint(-(1 << 28), 1 << 28, (rows, HIDDEN)), torch.full((rows, 1), -20)
    weight = torch.randint(-(1 << 19), 1 << 19, (HIDDEN,))
    gate, up = (torch.randint(-(1 << 40), 1 << 40, (rows, MLP)) for _ in range(2))
    wide = torch.full((rows, 1), -38)
    heads, heads_e = torch.randint(-(1 << 40), 1 << 40, (rows, HEADS, SIZE)), wide[:, :, None]
    heads_e = heads_e.expand(rows, HEADS, 1).contiguous()
    turn = rotary.rotation(torch.arange(rows), torch.randint(0, 1 << 40, (SIZE // 2,)), 1 << 16)
    query = rotary.rotate(heads, heads_e, *turn)
    k, v = (torch.randint(-32767, 32768, (SEEN, 1, SIZE), dtype=torch.int16) for _ in range(2))
    ke, ve = (torch.randint(-20, -10, (SEEN, 1), dtype=torch.int16) for _ in range(2))
    values = torch.randint(-127, 128, (MLP, HIDDEN), dtype=torch.int8)
    multipliers = torch.randint(1, 65535, (MLP, HIDDEN // 32), dtype=torch.int32)
    matrix = Matrix(values, multipliers.to(torch.uint16), -20)
    narrow = torch.randint(-32767, 32768, (rows, HIDDEN))

    def product() -> Result:
        return (kernels.row_product(narrow, matrix.values, matrix.multipliers),)

    def expanded() -> Result:
        out = narrow.to(torch.float64) @ matrix.effective(0, MLP).t()
        return (out.to(torch.int64),)

    def attend() -> Result:
        return softmax.attend_causal(
            query, (k, ke), (v, ve), SEEN - rows, 0, 0, scale=(600_000, -23)
        )

    return [
        compare("rms_norm", rows, lambda: norm.rms_norm(x, e, weight, -18, (8796093, -43))),
        compare("reduce_rows", rows, lambda: fixed.reduce_rows(x, e, 15)),
        compare("gated gelu", rows, lambda: gated("gelu_tanh", gate, wide, up, wide)),
        compare("rotate", rows, lambda: rotary.rotate(heads, heads_e, *turn)),
        compare(f"attend {SEEN}", rows, attend),
        compare(f"product {MLP}×{HIDDEN}", rows, product, expanded),
    ]


if __name__ == "__main__":
    torch.manual_seed(0)
    publish("kernels", [line for rows in (1, 16, 128) for line in measure(rows)])
