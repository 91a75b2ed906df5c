"""The economy's curves as one picture."""

from __future__ import annotations

from pathlib import Path

from unisono.errors import ConfigurationError
from unisono.simulation.market.report import ELECTRICITY, MarketReport
from unisono.simulation.plot import pyplot_module


def draw_market(report: MarketReport, path: Path) -> None:
    """Write six panels to `path`; the suffix says in which format.

    Raises:
        ConfigurationError: matplotlib is missing, or the file cannot be written.
    """
    plot = pyplot_module()
    figure, axes = plot.subplots(3, 2, figsize=(11, 11))
    axis = axes[0][0]
    for electricity in ELECTRICITY:
        rows = [r for r in report.prices if r.electricity == electricity]
        label = f"{electricity:.2f} per kWh"
        axis.plot([r.load for r in rows], [r.price for r in rows], marker="o", label=label)
    axis.set(title="price per million tokens", xlabel="demand over capacity")
    axis.legend(fontsize=8)
    axis = axes[0][1]
    for electricity in ELECTRICITY:
        rows = [r for r in report.prices if r.electricity == electricity]
        ratio = [r.price / r.sellers_electricity for r in rows]
        axis.plot([r.load for r in rows], ratio, marker="o")
    axis.set(title="price over the sellers' electricity", xlabel="demand over capacity")
    axis = axes[1][0]
    for row in report.break_even:
        points = [c for c in report.cheats if c.strategy == row.strategy]
        axis.errorbar(
            [c.rate / row.formula for c in points],
            [c.extra / max(points[0].extra, 1e-12) for c in points],
            [c.error / max(points[0].extra, 1e-12) for c in points],
            marker="o",
            label=row.strategy,
        )
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.axvline(1, color="grey", linewidth=0.8)
    axis.set(title="profit of cheating (first point = 1)", xlabel="audit rate over break-even")
    axis.legend(fontsize=8)
    axis = axes[1][1]
    months = [r.month for r in report.wealth]
    axis.plot(months, [r.gini_by_work for r in report.wealth], label="paid by work")
    axis.plot(months, [r.gini_by_stake for r in report.wealth], label="paid by stake")
    axis.set(title="concentration of stakes (Gini)", xlabel="month")
    axis.legend(fontsize=8)
    axis = axes[2][0]
    axis.plot([r.volatility for r in report.currency], [r.margin for r in report.currency], "o-")
    axis.set(
        title="margin for one losing month in twenty", xlabel="volatility of the coin per year"
    )
    axis = axes[2][1]
    places = range(len(report.tricks))
    axis.barh(places, [t.ratio for t in report.tricks], xerr=[t.error for t in report.tricks])
    axis.set_yticks(places, [t.trick for t in report.tricks], fontsize=7)
    axis.axvline(1, color="grey", linewidth=0.8)
    axis.set(title="pay with a trick over honest pay")
    for row in axes:
        for axis in row:
            axis.grid(alpha=0.3)
            axis.title.set_fontsize(10)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    finally:
        plot.close(figure)
