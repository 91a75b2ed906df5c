"""`unisono simulate`: an hour of a network of thousands of nodes, in minutes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unisono.cli import options as o
from unisono.simulation.settings import VIEW, Policy, Regions, Scenario

if TYPE_CHECKING:
    from unisono.simulation.report import Percentiles, Report


def simulate(
    nodes: Annotated[int, typer.Option("--nodes", help="How many there are.")] = 10_000,
    hours: Annotated[float, typer.Option("--hours", help="Of network time.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same result.")] = 1,
    scenario: Annotated[
        Scenario, typer.Option("--scenario", help="What goes wrong.")
    ] = Scenario.STEADY,
    policy: Annotated[
        Policy, typer.Option("--policy", help="How gateways choose the nodes of an answer.")
    ] = Policy.BEST_PATH,
    requests_per_second: Annotated[
        float,
        typer.Option(
            "--requests-per-second",
            help="Of the whole network, as a mean over a day; 0: 0.003 for every node.",
        ),
    ] = 0.0,
    start_hour: Annotated[
        int, typer.Option("--start-hour", help="Of the day, in UTC, at which it begins.")
    ] = 14,
    view: Annotated[
        int, typer.Option("--view", help="Nodes that know each other, at most.")
    ] = VIEW,
    gateway_view: Annotated[
        int | None,
        typer.Option(
            "--gateway-view", help="Nodes that a gateway chooses from, at most; else as --view."
        ),
    ] = None,
    regions: Annotated[
        Regions, typer.Option("--regions", help="What makes nodes know each other.")
    ] = Regions.HASH,
    market: Annotated[
        bool,
        typer.Option(
            "--market",
            help="Simulate the economy of operators instead: prices, cheating, stakes, volatile "
            "coins, tricks of bidders. Of the other options only --nodes (operators), --seed, "
            "--plot and --json count.",
        ),
    ] = False,
    tables: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FOLDER", help="With --market: write every part as CSV."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the curves (needs matplotlib)."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the result, or - for stdout."),
    ] = None,
    verbose: o.Verbose = False,
) -> None:
    """Run a large network on virtual time: nodes on five continents that come, go, crash, slow
    down or lie, and clients that ask for answers of a 70B model.

    Membership regions, choice of blocks, choice of paths, reputation and replacement of lost hops
    are the code that real networks run; computing, links and the spreading of records are modelled
    (the end of the output says how).

    [bold]Examples[/]

    [cyan]unisono simulate --plot hour.png[/]

    [cyan]unisono simulate --nodes 1000 --hours 0.25 --scenario churn[/]

    [cyan]unisono simulate --nodes 1000 --policy random --json - | jq .first_token_ms[/]

    [cyan]unisono simulate --market --nodes 2000 --plot economy.png --csv tables[/]
    """
    del verbose
    if market:
        from unisono.cli.simulate_market import simulate_economy

        simulate_economy(nodes, seed, tables, plot, json_file)
        return
    if tables is not None:
        raise typer.BadParameter("--csv goes with --market", param_hint="'--csv'")
    from unisono.cli.terminal import out, progress_bar
    from unisono.simulation.plot import check_target, draw
    from unisono.simulation.run import simulate as run
    from unisono.simulation.settings import Settings

    settings = Settings(
        nodes=nodes,
        hours=hours,
        seed=seed,
        scenario=scenario,
        policy=policy,
        requests_per_second=requests_per_second,
        start_hour=start_hour,
        view=view,
        gateway_view=view if gateway_view is None else gateway_view,
        regions=regions,
    ).checked()
    to_stdout = json_file == Path("-")
    if plot is not None:
        check_target(plot)
    if json_file is not None and not to_stdout:
        _check_folder(json_file)
    with progress_bar("Minutes") as progress:
        report = run(settings, progress)
    if plot is not None:
        draw(report, plot)
    if to_stdout:
        sys.stdout.write(report.encoded().decode())
        return
    if json_file is not None:
        _write(json_file, report.encoded())
    for line in lines(report):
        out.print(line, soft_wrap=True)


def lines(report: Report) -> list[str]:
    """The report as people read it."""
    failed = sum(report.failed.values())
    why = ", ".join(f"{name} {count}" for name, count in report.failed.items() if count)
    control = report.control
    return [
        f"{report.settings.nodes:,} nodes ({report.online:,.0f} on at a time) in {report.cells} "
        f"regions, {report.settings.hours:g} h, {report.settings.scenario.value}, "
        f"{report.settings.policy.value}, seed {report.settings.seed}; model: {report.model}",
        f"requests        {report.requests:,} asked, {report.completed:,} answered, "
        f"{failed:,} failed ({why or 'none'}), {report.in_progress:,} cut off by the end",
        f"throughput      {report.requests_per_second:.2f} answers/s, "
        f"{report.tokens_per_second:,.0f} answer tokens/s, "
        f"{report.prompt_rows:,} prompt rows read",
        _percentiles("first token", report.first_token_ms),
        _percentiles("per token", report.token_ms),
        _percentiles("answer's mean", report.answer_token_ms),
        _percentiles("pause at a loss", report.pause_ms),
        f"chains          {report.hops:.2f} hops in the mean; {report.replaced:,} answers lost a "
        f"hop, {report.mended:,} chains mended in place",
        f"retries         {report.retries:,} hops asked in vain or lost, most of one request "
        f"{report.most_retries}; {report.redirected:,} clients sent to another gateway",
        f"availability    {100 * report.availability:.2f} % of the placed nodes answer, "
        f"{100 * report.coverage:.2f} % of the gateways know a whole chain",
        f"utilisation     {100 * report.utilisation:.1f} % of the serving nodes' time",
        f"churn           {report.joins:,} joins, {report.leaves:,} leaves, "
        f"{report.crashes:,} crashes, {report.moves:,} blocks loaded anew",
        f"control traffic {sum(control.values()) / 1000:.2f} KB/s per node: "
        + ", ".join(f"{name} {sent / 1000:.2f}" for name, sent in control.items()),
        *(f"modelled        {what}" for what in report.modelled),
    ]


def _percentiles(name: str, p: Percentiles) -> str:
    return (
        f"{name:15} p50 {p.p50:,.0f} ms, p90 {p.p90:,.0f}, p95 {p.p95:,.0f}, p99 {p.p99:,.0f}, "
        f"most {p.most:,.0f} ({p.count:,})"
    )


def _check_folder(path: Path) -> None:
    from unisono.errors import ConfigurationError

    if not path.parent.is_dir() or path.is_dir():
        raise ConfigurationError(
            f"--json {path}: expected a file in a folder that exists, or - for stdout"
        )


def _write(path: Path, data: bytes) -> None:
    from unisono.errors import ConfigurationError

    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
