"""Compiled operators against their torch forms, in the shapes of Gemma 3 270M.

    python -m bench.kernels

The torch forms are what runs on other devices; both give the same integers, which this
bench asserts before it measures.
"""

from __future__ import annotations

import torch

from bench.machine import median_ms, publish
from unisono.numerics import fixed, kernels, norm, rotary, softmax
from unisono.numerics.activation import gated
from unisono.numerics.compiled import pure_torch
from unisono.numerics.linear import Matrix

HIDDEN, MLP, HEADS, SIZE = 640, 2048, 4, 256


def _compare(name: str, rows: int, run) -> dict[str, object]:
    def in_torch():
        with pure_torch():
            return run()

    for a, b in zip(run(), in_torch(), strict=True):
        assert torch.equal(a, b), name
    compiled, torch_ms = median_ms(run, in_torch)
    return {
        "operator": name,
        "rows": rows,
        "compiled ms": compiled,
        "torch ms": torch_ms,
        "ratio": torch_ms / compiled,
    }


def main() -> None:
    torch.manual_seed(0)
    results: list[dict[str, object]] = []
    for rows in (1, 128):
        x = torch.randint(-(1 << 28), 1 << 28, (rows, HIDDEN))
        e = torch.full((rows, 1), -20)
        w = torch.randint(-(1 << 19), 1 << 19, (HIDDEN,))
        results.append(
            _compare("rms_norm", rows, lambda: norm.rms_norm(x, e, w, -18, (8796093, -43)))
        )
        results.append(_compare("reduce_rows", rows, lambda: fixed.reduce_rows(x, e, 15)))  # noqa: B023
        gate, up = (torch.randint(-(1 << 40), 1 << 40, (rows, MLP)) for _ in range(2))
        ge = torch.full((rows, 1), -38)
        results.append(_compare("gated gelu", rows, lambda: gated("gelu_tanh", gate, ge, up, ge)))  # noqa: B023
        q = torch.randint(-(1 << 40), 1 << 40, (rows, HEADS, SIZE))
        qe = torch.full((rows, HEADS, 1), -38)
        cos, sin = rotary.rotation(
            torch.arange(rows), torch.randint(0, 1 << 40, (SIZE // 2,)), 1 << 16
        )
        results.append(_compare("rotate", rows, lambda: rotary.rotate(q, qe, cos, sin)))  # noqa: B023
        query, query_exponent = rotary.rotate(q, qe, cos, sin)
        seen = 512
        k, v = (torch.randint(-32767, 32768, (seen, 1, SIZE), dtype=torch.int16) for _ in range(2))
        ke, ve = (torch.randint(-20, -10, (seen, 1), dtype=torch.int16) for _ in range(2))
        results.append(
            _compare(
                "attend 512",
                rows,
                lambda: softmax.attend_causal(
                    (query, query_exponent),
                    (k, ke),
                    (v, ve),
                    seen - rows,
                    0,
                    0,
                    (600000, -23),
                ),
            )
        )
        values = torch.randint(-127, 128, (MLP, HIDDEN), dtype=torch.int8)
        multipliers = torch.randint(1, 65535, (MLP, HIDDEN // 32), dtype=torch.int32)
        matrix = Matrix(values, multipliers.to(torch.uint16), -20)
        narrow = torch.randint(-32767, 32768, (rows, HIDDEN))

        def product():
            return (kernels.row_product(narrow, matrix.values, matrix.multipliers),)  # noqa: B023

        def expanded():
            wide = narrow.to(torch.float64) @ matrix.effective(0, MLP).t()  # noqa: B023
            return wide.to(torch.int64)

        assert torch.equal(product()[0], expanded())
        compiled, torch_ms = median_ms(product, expanded)
        results.append(
            {
                "operator": "product 2048×640",
                "rows": rows,
                "compiled ms": compiled,
                "torch ms": torch_ms,
                "ratio": torch_ms / compiled,
            }
        )
    publish("kernels", results)


if __name__ == "__main__":
    main()
