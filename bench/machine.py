"""The machine that a benchmark ran on, and how its figures are printed and kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def machine() -> dict[str, str]:
    """Processor, cores, instruction sets and versions that figures depend on."""
    name, flags = platform.processor(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
    sets = [f for f in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if f in flags]
    return {
        "processor": name,
        "cores": str(os.cpu_count()),
        "instructions": " ".join(sets) or platform.machine(),
        "torch": torch.__version__,
    }


def median_ms(*runs: Callable[[], object], repeat: int = 15) -> list[float]:
    """Median milliseconds of each function, their calls interleaved."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeat + 2):
        for taken, run in zip(times, runs, strict=True):
            start = time.perf_counter()
            run()
            taken.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(taken[2:]) for taken in times]


def publish(name: str, rows: list[dict[str, object]]) -> None:
    """Print a table and keep the figures as `bench/results/NAME.json`."""
    described = machine()
    print(" · ".join(f"{k}: {v}" for k, v in described.items()))
    columns = list(rows[0])
    cells = [
        [f"{r[c]:.2f}" if isinstance(r[c], float) else str(r[c]) for c in columns] for r in rows
    ]
    widths = [max(len(x) for x in column) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)))
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    kept = {"machine": described, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
