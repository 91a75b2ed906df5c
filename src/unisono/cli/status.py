"""`unisono status`: what a gateway knows about its network, once or live."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from unisono.cli import options as o

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unisono.cli.client import GatewayClient

DEFAULT_URL = "http://127.0.0.1:8000"


def status(
    base_url: o.BaseUrl = DEFAULT_URL,
    api_key: o.ApiKey = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C, with what is new.")
    ] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two looks of --watch.")
    ] = 2.0,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Show the nodes of a network, what they hold, how well they are linked, how often each layer
    is covered, and how much of the network answers.

    Exit code 0 if the gateway is ready to answer, else 1. With --watch and --json, one object per
    line and look.

    [bold]Examples[/]

    [cyan]unisono status[/]

    [cyan]unisono status --watch --interval 1[/]

    [cyan]unisono status --base-url http://127.0.0.1:9000 --json | jq .ready[/]
    """
    del verbose
    from unisono.cli.client import GatewayClient

    with GatewayClient(base_url or DEFAULT_URL, api_key) as client:
        if watch:
            _watch(client, interval, as_json=as_json)
            return
        report = look(client)
    if as_json:
        _write(report)
    else:
        from unisono.cli.terminal import out

        out.print(picture(report))
    raise typer.Exit(0 if report["ready"] else 1)


def look(client: GatewayClient) -> dict[str, Any]:
    """What the gateway says now: `ready`, `message`, `nodes`, `departed`, `models` with the
    coverage of each, `convicted`, `links`, and `sla`: the service levels, or null where none are
    measured.

    Raises:
        UnisonoError: it cannot be reached, refuses, or does not answer like a gateway.
    """
    from unisono.cli.network_view import runs
    from unisono.errors import WireError

    ready = client.get("/readyz", accept=(503,))
    page = client.get("/v1/network")
    levels = client.get("/v1/sla", accept=(404,))
    try:
        shown = cast("dict[str, Any]", page.json())
        return {
            "ready": ready.status_code == 200,
            "message": ready.text.strip(),
            "nodes": shown["data"],
            "departed": shown["departed"],
            "models": [
                model
                | {
                    "coverage": [
                        {"start": start, "stop": stop, "nodes": count}
                        for start, stop, count in runs(model["holders"])
                    ]
                }
                for model in shown["models"]
            ],
            "convicted": shown.get("convicted", []),
            "links": shown["links"],
            "sla": levels.json() if levels.status_code == 200 else None,
        }
    except (ValueError, KeyError, TypeError) as error:
        raise WireError(f"{client.url} does not answer like a gateway: {error!r}") from error


def picture(report: dict[str, Any]) -> RenderableType:
    """A report of `look`, drawn.

    Raises:
        WireError: it holds what no gateway says.
    """
    from unisono.cli.network_view import drawn
    from unisono.errors import WireError

    try:
        return drawn(report | {"data": report["nodes"]}, report["ready"], report["message"])
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"the gateway's map of the network cannot be read: {error!r}") from error


def _watch(client: GatewayClient, interval: float, *, as_json: bool) -> None:
    """Look again and again; a gateway that is away for a while does not end it."""
    from unisono.errors import UnisonoError

    def reports() -> Iterator[dict[str, Any] | UnisonoError]:
        while True:
            try:
                yield look(client)
            except UnisonoError as error:
                yield error
            time.sleep(interval)

    try:
        if as_json:
            for report in reports():
                failed = isinstance(report, UnisonoError)
                _write({"ready": False, "message": str(report)} if failed else report)
        else:
            _draw(reports())
    except KeyboardInterrupt:
        return


def _draw(reports: Iterator[dict[str, Any] | Exception]) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from unisono.cli.terminal import out, printable
    from unisono.errors import UnisonoError

    with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
        last: RenderableType = Text("")
        for report in reports:
            try:
                if isinstance(report, Exception):
                    raise report
                last = picture(report)
                live.update(last, refresh=True)
            except UnisonoError as error:
                trouble = Text(printable(str(error)), style="bold red")
                live.update(Group(last, trouble), refresh=True)


def _write(report: dict[str, Any]) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    sys.stdout.flush()
