"""Decode speed against context length and against the number of streams, as figures and plots.

    python -m bench.curves

Needs matplotlib for the plots, which go to docs/ as PNG; the figures are kept as JSON.
"""

from __future__ import annotations

import json
import os

from bench import ours
from bench.machine import RESULTS, publish
from unisono.observe import speed

CONTEXTS = (1, 256, 512, 1024, 2048, 4096, 8192)
STREAMS = (1, 2, 4, 8, 16, 32, 64)
DOCS = RESULTS.parents[1] / "docs"


def measure(threads: int) -> list[dict[str, object]]:
    """Median of three runs each."""
    rows: list[dict[str, object]] = []
    with ours.decoder(threads) as made:
        for context in CONTEXTS:
            rate = speed.median_rate(lambda c=context: speed.decode(made, 24, context=c), 3)
            rows.append({"context": context, "streams": 1, "tok/s": rate})
        for streams in STREAMS:
            rate = speed.median_rate(lambda n=streams: speed.decode(made, 24, n, context=64), 3)
            rows.append({"context": 64, "streams": streams, "tok/s": rate})
    return rows


def plot() -> None:
    """Two PNGs from the kept figures."""
    from matplotlib import pyplot

    kept = json.loads((RESULTS / "curves.json").read_text())
    rows, machine = kept["rows"], kept["machine"]
    for name, label, chosen in (
        ("context", "positions before the token", [r for r in rows if r["context"] != 64]),
        ("streams", "streams side by side", [r for r in rows if r["context"] == 64]),
    ):
        figure, axes = pyplot.subplots(figsize=(6, 3.6))
        axes.plot([r[name] for r in chosen], [r["tok/s"] for r in chosen], "o-")
        axes.set(xlabel=label, ylabel="tokens per second", ylim=0, xscale="log")
        axes.set_xticks([r[name] for r in chosen], [str(r[name]) for r in chosen])
        axes.set_title(f"Gemma 3 270M, {machine['cores']} cores, {machine['kernels']} kernels")
        axes.grid(alpha=0.3)
        figure.savefig(DOCS / f"decode-{name}.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    publish("curves", measure(os.cpu_count() or 1))
    plot()
