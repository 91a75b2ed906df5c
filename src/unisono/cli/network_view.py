"""The live map of a network, drawn for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unisono.cli.terminal import printable

MAX_NODES = 40
MAX_LINKS = 12
"""Rows that are drawn; `--json` has all."""
_SHORT = 12

Map = dict[str, Any]
"""The JSON of `GET /v1/network`."""


def runs(holders: list[int]) -> list[tuple[int, int, int]]:
    """Runs of layers (start, stop) that equally many nodes hold, and how many."""
    found: list[tuple[int, int, int]] = []
    for count, group in groupby(holders):
        start = found[-1][1] if found else 0
        found.append((start, start + len(list(group)), count))
    return found


def drawn(shown: Map, ready: bool, message: str) -> RenderableType:
    """The whole map. `message` is what the gateway says of its readiness.

    Raises:
        KeyError, TypeError: `shown` is not a map of a network.
    """
    parts: list[RenderableType] = [_nodes(shown)]
    for model in shown["models"]:
        parts.append(_model(model))
    if shown["links"]:
        parts.append(_links(shown["links"]))
    for each in shown.get("convicted", ()):
        text = f"convicted: {each['node'][:_SHORT]}… {each['message']}"
        parts.append(Text(printable(text), style="red"))
    if shown.get("sla"):
        parts.append(_levels(shown["sla"]))
    fine = ready and message == "ready"
    style = "green" if fine else "yellow" if ready else "red"
    parts.append(Text(printable(message), style=style))
    return Group(*parts)


def _nodes(shown: Map) -> RenderableType:
    names = {model["id"]: str(model["name"]) for model in shown["models"]}
    convicted = {each["node"] for each in shown.get("convicted", ())}
    rows = [
        (node, Text("convicted", style="bold red") if node["node"] in convicted else _state(node))
        for node in shown["data"]
    ]
    rows += [(node, Text("gone", style="red")) for node in shown["departed"]]
    rows.sort(key=lambda row: (row[0]["model"], row[0]["layers"]["start"], row[0]["node"]))
    columns: dict[str, Callable[[Map], str]] = {
        "model": lambda n: printable(names.get(n["model"], n["model"][:_SHORT] or "none")),
        "layers": lambda n: f"{n['layers']['start']}:{n['layers']['stop']}",
        "round trip": lambda n: _milliseconds(n["rtt_us"]),
        "sends": lambda n: _rate(n["bandwidth"]),
        "step": lambda n: _milliseconds(n["step_us"]),
        "queue": lambda n: f"{n['queue']:,}" if n["queue"] else "",
        "price": lambda n: (
            f"{n['price_in']:,}/{n['price_out']:,}" if n["price_in"] or n["price_out"] else ""
        ),
        "sessions": lambda n: f"{n['sessions']:,}",
        "free": lambda n: f"{n['free_positions']:,}",
    }
    cells = {name: [tell(node) for node, _ in rows] for name, tell in columns.items()}
    if len({*cells["model"]}) <= 1:
        del cells["model"]
    # What no node says needs no column.
    cells = {name: column for name, column in cells.items() if any(column) or not rows}
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("node", no_wrap=True)
    for name in cells:
        table.add_column(name, justify="left" if name == "model" else "right")
    table.add_column("state", no_wrap=True)
    for index, (node, state) in enumerate(rows[:MAX_NODES]):
        told = [column[index] for column in cells.values()]
        table.add_row(f"{printable(node['node'])[:_SHORT]}…", *told, state)
    if len(rows) > MAX_NODES:
        table.caption = f"and {len(rows) - MAX_NODES:,} more"
    return table


def _state(node: Map) -> Text:
    if not node["alive"]:
        return Text("unreachable", style="red")
    return Text("leaving", style="yellow") if node["leaving"] else Text("alive", style="green")


def _model(model: Map) -> RenderableType:
    """Availability in words, and every layer as the number of its holders."""
    trouble, share = model["trouble"], float(model["availability"])
    line = Text.assemble(
        (printable(str(model["name"])), "bold"),
        f"  availability {share:.1%} ({model['alive']} of {model['known']} nodes answer)",
    )
    if trouble:
        line.append(f"  {printable(str(trouble))}", style="bold red")
    strip = Text("layers  ")
    for count in model["holders"]:
        mark = "·" if not count else str(count) if count < 10 else "+"
        strip.append(mark, style="" if count > 1 else "yellow" if count else "bold red")
    words = Text("        ")
    for start, stop, count in runs(model["holders"]):
        text = f"{start}:{stop} {count} node{'' if count == 1 else 's'}   "
        words.append(text, style="" if count else "red")
    return Group(line, strip, words)


def _levels(sla: Map) -> RenderableType:
    """Service levels on one line: of the window that runs, and credits of the last ones."""
    line = Text.assemble(("service levels", "bold"))
    if sla["uptime"] is not None:
        line.append(
            f"  uptime {sla['uptime'] / 10:.1f}% (least {sla['least_uptime'] / 10:.1f}%), "
            f"{sla['kept']} of {len(sla['nodes'])} nodes keep theirs"
        )
    for own in sla["gateway"][:1]:
        line.append(f"; this gateway {own['availability'] / 10:.1f}%")
        asked = own["answered"] + own["failed"]
        if asked:
            line.append(f", {own['answered']:,} of {asked:,} answers")
    if sla["credits"]:
        line.append(f"; {sla['credits'] / 1e6:.6f} came back")
    if sla["refused"]:
        line.append(f"; {sla['refused']} credits refused", style="bold red")
    return line


def _links(links: list[Map]) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("from", "to", "round trip", "sends"):
        table.add_column(name, justify="left" if name in ("from", "to") else "right")
    between = [link for link in links if link["source"] is not None]
    # Those from the gateway are in the table of nodes already.
    for link in between[:MAX_LINKS]:
        about = "~" if link["estimated"] else ""
        table.add_row(
            f"{printable(link['source'])[:_SHORT]}…",
            f"{printable(link['target'])[:_SHORT]}…",
            about + _milliseconds(link["rtt_us"]),
            _rate(link["bandwidth"]),
        )
    if len(between) > MAX_LINKS:
        table.caption = f"and {len(between) - MAX_LINKS:,} more"
    return table if between else Group()


def _milliseconds(microseconds: int) -> str:
    return f"{microseconds / 1000:.3g} ms" if microseconds else ""


def _rate(bandwidth: int) -> str:
    """Bytes per second, in the unit that is short."""
    for unit, size in (("GB/s", 10**9), ("MB/s", 10**6), ("kB/s", 10**3)):
        if bandwidth >= size:
            return f"{bandwidth / size:.3g} {unit}"
    return f"{bandwidth} B/s" if bandwidth else ""
