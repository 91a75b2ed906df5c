"""`unisono status`: what a gateway knows about its network."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any, cast

import typer

from unisono.cli import options as o

DEFAULT_URL = "http://127.0.0.1:8000"


def status(
    base_url: o.BaseUrl = DEFAULT_URL,
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Show the nodes of a network, what they hold, and how often each layer is covered.

    Exit code 0 if the gateway is ready to answer, else 1.

    [bold]Examples[/]

    [cyan]unisono status[/]

    [cyan]unisono status --base-url http://127.0.0.1:9000 --json | jq .ready[/]
    """
    del verbose
    import msgspec

    from unisono.cli.client import GatewayClient

    with GatewayClient(base_url or DEFAULT_URL, api_key) as client:
        ready = client.get("/readyz", accept=(503,))
        nodes = cast("list[dict[str, Any]]", client.get("/v1/network").json()["data"])
    covered = coverage(nodes)
    if as_json:
        report = {
            "ready": ready.status_code == 200,
            "message": ready.text.strip(),
            "nodes": nodes,
            "coverage": [
                {"start": start, "stop": stop, "nodes": count} for start, stop, count in covered
            ],
        }
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _show(nodes, covered, ready.text.strip())
    raise typer.Exit(0 if ready.status_code == 200 else 1)


def coverage(nodes: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    """Runs of layers (start, stop) that equally many live nodes hold, and how many."""
    ranges = [(n["layers"]["start"], n["layers"]["stop"]) for n in nodes if n["alive"]]
    edges = sorted({0, *(edge for block in ranges for edge in block)})
    runs: list[tuple[int, int, int]] = []
    for start, stop in pairwise(edges):
        count = sum(a <= start and stop <= b for a, b in ranges)
        if runs and runs[-1][2] == count:
            start = runs.pop()[0]
        runs.append((start, stop, count))
    return runs


def _show(nodes: list[dict[str, Any]], covered: list[tuple[int, int, int]], ready: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from unisono.cli.terminal import out, printable

    table = Table(header_style="bold", pad_edge=False)
    for name in ("node", "layers", "sessions", "free positions", "state"):
        table.add_column(name, justify="left" if name in ("node", "state") else "right")
    for node in sorted(nodes, key=lambda n: (n["layers"]["start"], n["node"])):
        table.add_row(
            f"{node['node'][:16]}…",
            f"{node['layers']['start']}:{node['layers']['stop']}",
            str(node["sessions"]),
            f"{node['free_positions']:,}",
            "alive" if node["alive"] else Text("unreachable", style="red"),
        )
    out.print(table)
    for start, stop, count in covered:
        out.print(
            Text(
                f"layers {start}:{stop}  {count} node{'' if count == 1 else 's'}",
                style="" if count else "red",
            )
        )
    out.print(Text(printable(ready), style="green" if ready == "ready" else "red"))
