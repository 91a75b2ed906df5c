"""`unisono simulate --market`: the economy of operators."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unisono.simulation.market.report import MarketReport


def simulate_economy(
    operators: int, seed: int, tables: Path | None, plot: Path | None, json_file: Path | None
) -> None:
    """Run it, and write what was asked for.

    Raises:
        ConfigurationError: a bad value, or a place that cannot be written to.
    """
    import msgspec

    from unisono.cli.terminal import out, progress_bar
    from unisono.errors import ConfigurationError
    from unisono.simulation.market.report import MarketSettings, simulate_market

    settings = MarketSettings(operators=operators, seed=seed).checked()
    to_stdout = json_file == Path("-")
    if plot is not None:
        from unisono.simulation.plot import check_target

        check_target(plot)
    try:
        if tables is not None:
            tables.mkdir(parents=True, exist_ok=True)
        with progress_bar("Parts") as progress:
            report = simulate_market(settings, progress)
        for name, data in report.tables().items() if tables else ():
            assert tables is not None
            (tables / f"{name}.csv").write_bytes(data)
        encoded = msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
        if to_stdout:
            sys.stdout.write(encoded.decode())
        elif json_file is not None:
            json_file.write_bytes(encoded)
    except OSError as error:
        raise ConfigurationError(f"cannot write {error.filename}: {error.strerror}") from error
    if plot is not None:
        from unisono.simulation.market.pictures import draw_market

        draw_market(report, plot)
    if not to_stdout:
        for line in market_lines(report):
            out.print(line, soft_wrap=True, markup=False)


def market_lines(report: MarketReport) -> list[str]:
    """The report as people read it."""
    lines = [f"{report.settings.operators:,} operators, seed {report.settings.seed}", ""]
    lines.append("electricity/kWh  demand  price/M  over electricity  served  idle operators")
    lines += [
        f"{r.electricity:15.2f} {r.load:7.1f} {r.price:8.4f} "
        f"{r.price / r.sellers_electricity:17.2f} {100 * r.served:6.1f} % {100 * r.idle:5.1f} %"
        for r in report.prices
    ]
    lines += ["", "cheat            break-even rate: formula, measured (standard error)"]
    lines += [
        f"{r.strategy:16} {r.formula:.3e}, {r.measured:.3e} ({r.error:.1e})"
        for r in report.break_even
    ]
    last = report.wealth[-1]
    lines += [
        "",
        f"stakes after {last.month} months: Gini {report.wealth[0].gini_by_work:.3f} before, "
        f"{last.gini_by_work:.3f} paid by work, {last.gini_by_stake:.3f} paid by stake",
        "",
        "volatility of the coin  months with a loss at 20 % margin  margin for 5 % of months",
    ]
    lines += [
        f"{r.volatility:22.2f} {100 * r.losing:32.1f} % {100 * r.margin:22.1f} %"
        for r in report.currency
    ]
    lines += ["", "trick of a bidder: pay over honest pay (standard error)"]
    lines += [f"{r.trick:42} {r.ratio:.2f} ({r.error:.2f})" for r in report.tricks]
    return lines
