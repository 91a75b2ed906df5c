"""Curves of a run as a picture. Needs matplotlib, which only this file imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unisono.errors import ConfigurationError
from unisono.simulation.report import Report, Sample


def check_target(path: Path) -> None:
    """Before a long run: whether a picture could be written to `path` after it.

    Raises:
        ConfigurationError: matplotlib is missing, or the path cannot be a picture.
    """
    pyplot_module()
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigurationError(
            f"--plot {path}: expected a name that ends with .png, .svg or .pdf"
        )
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"--plot {path}: there is no folder {path.parent}: create it first"
        )


def draw(report: Report, path: Path) -> None:
    """Write the curves of a run to `path`; the suffix says in which format.

    Raises:
        ConfigurationError: matplotlib is missing, or the file cannot be written.
    """
    pyplot = pyplot_module()
    settings, series = report.settings, report.series
    figure, axes = pyplot.subplots(3, 2, figsize=(11, 10), sharex=True)
    minutes = [point.minute for point in series]

    def panel(row: int, column: int, title: str, **lines: list[float]) -> Any:
        axis = axes[row][column]
        for name, values in lines.items():
            axis.plot(minutes, values, linewidth=1.2, label=name.replace("_", " "))
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_ylim(0, 1.08 * max((1e-9, *(v for values in lines.values() for v in values))))
        if len(lines) > 1:
            axis.legend(fontsize=8)
        return axis

    def of(name: str) -> list[float]:
        return [float(getattr(point, name)) for point in series]

    panel(0, 0, "answer tokens per second, whole network", tokens=of("tokens_per_second"))
    panel(0, 1, "nodes", online=of("online"), serving_as_known=of("placed"))
    first = panel(1, 0, "time to first token, median of 10 s (s)", median=_seconds(series))
    first.set_ylabel(f"all: p50 {report.first_token_ms.p50 / 1e3:.1f} s", fontsize=8)
    panel(
        1,
        1,
        "availability and coverage",
        placed_nodes_that_answer=[p.answering / max(1, p.placed) for p in series],
        gateways_with_a_whole_chain=of("covered_cells"),
    ).set_ylim(0, 1.05)
    panel(
        2,
        0,
        "requests per 10 s",
        arrived=of("arrived"),
        completed=of("completed"),
        failed=of("failed"),
        hops_asked_in_vain=of("retries"),
    )
    if settings.scenario.value == "liars":
        panel(2, 1, "liars among the hops of new chains", liars=of("marked_share"))
    else:
        panel(2, 1, "computing time used", utilisation=of("utilisation"))
    for axis in axes[2]:
        axis.set_xlabel("minutes")
    figure.suptitle(
        f"{settings.nodes:,} nodes, {settings.hours:g} h, {settings.scenario.value}, "
        f"{settings.policy.value}, seed {settings.seed}",
        fontsize=12,
    )
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=110, metadata={"Software": None} if _is_png(path) else None)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _seconds(series: tuple[Sample, ...]) -> list[float]:
    return [point.first_token_p50_ms / 1000 for point in series]


def pyplot_module() -> Any:
    """matplotlib's pyplot, drawing to files only.

    Raises:
        ConfigurationError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigurationError(
            "drawing needs matplotlib, which is not installed: pip install 'unisono[bench]', "
            "or leave --plot out"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
