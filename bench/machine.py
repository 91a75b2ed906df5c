"""How a benchmark's figures are measured, printed and kept."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from unisono.observe.machine import describe

RESULTS = Path(__file__).parent / "results"


def median_ms(*runs: Callable[[], object], repeat: int = 15) -> list[float]:
    """Median milliseconds of each function, their calls interleaved."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeat + 2):
        for taken, run in zip(times, runs, strict=True):
            run()  # what another function left in the caches must not count
            start = time.perf_counter()
            run()
            taken.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(taken[2:]) for taken in times]


def publish(name: str, rows: list[dict[str, object]], **more: object) -> None:
    """Print a table and keep the figures as `bench/results/NAME.json`, with `more` beside them."""
    described = describe()
    print(" · ".join(f"{k}: {v}" for k, v in described.items()))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_text(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(x) for x in column) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip())
    RESULTS.mkdir(exist_ok=True)
    kept = {"machine": described, "rows": rows, **more}
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def _text(value: object) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 10
        else (f"{value:.1f}" if isinstance(value, float) else str(value))
    )
