"""`unisono up`: a gateway and local nodes that stay."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from unisono.cli import options as o


def up(
    nodes: o.Nodes = 3,
    spare: Annotated[
        int,
        typer.Option(
            "--spare", min=0, help="Extra nodes on the least covered blocks, to take over."
        ),
    ] = 0,
    join: o.Join = None,
    host: o.Host = "127.0.0.1",
    port: o.Port = 8000,
    bind: Annotated[
        str,
        typer.Option(
            "--bind",
            help="HOST:PORT that nodes of other machines join with; the local nodes listen on the "
            "same host.",
        ),
    ] = "127.0.0.1:0",
    model: o.Model = o.DEFAULT_MODEL,
    transport: o.LocalTransport = None,
    threads: o.Threads = None,
    guesses: o.Guesses = True,
    api_key: o.ApiKeys = None,
    audit_rate: o.AuditRate = 0.5,
    epoch_seconds: o.EpochSeconds = 60,
    service_window: o.ServiceWindow = 86_400,
    no_chain: Annotated[
        bool,
        typer.Option(
            "--no-chain",
            help="Nodes serve for nothing; else they are paid in a test coin on a chain of this "
            "machine's own.",
        ),
    ] = False,
    price_in: Annotated[
        float, typer.Option("--price-in", min=0.0, help="Per million prompt tokens.")
    ] = 0.02,
    price_out: Annotated[
        float, typer.Option("--price-out", min=0.0, help="Per million answer tokens.")
    ] = 0.08,
    verbose: o.Verbose = False,
) -> None:
    """Start a gateway and local nodes, and keep them until Ctrl-C.

    The gateway speaks OpenAI's HTTP interface. Keys and receipts are kept per port in the state
    folder ($UNISONO_STATE or ~/.local/state/unisono), so the network is the same one after a
    restart; with --port 0 they are not kept. Nodes are paid for what they sign, over a chain of
    this machine's own: leave that out with --no-chain. A node that dies is reported and started
    again.

    [bold]Examples[/]

    [cyan]unisono up[/]

    [cyan]unisono up --nodes 2 --spare 2 --port 9000 --api-key secret[/]

    [cyan]unisono up --model Qwen/Qwen3-0.6B[/]

    [cyan]unisono up --nodes 1 --join iroh://NODE_ID@192.0.2.7:4433[/]
    """
    from unisono.cli.child import start_servers

    start_servers()
    import logging

    from unisono.cli.local_network import LocalSettings, running, usual_transport
    from unisono.cli.preparation import prepared
    from unisono.cli.terminal import err, note, out
    from unisono.config import state_directory

    stored = prepared(model)
    settings = LocalSettings(
        model=stored,
        nodes=nodes,
        spare=spare,
        join=",".join(join) if join else None,
        transport=transport.value if transport else usual_transport(join, bind),
        threads=threads,
        draft=guesses,
        host=host,
        port=port,
        bind=bind,
        api_keys=tuple(api_key or ()),
        state=state_directory() / "networks" / str(port) if port else None,
        restart=True,
        audit_rate=round(10_000 * audit_rate),
        epoch_seconds=epoch_seconds,
        service_window=service_window,
        paid=not no_chain and join is None,
        price_in=round(1_000_000 * price_in),
        price_out=round(1_000_000 * price_out),
        log_level=logging.INFO if verbose else logging.WARNING,
    )
    waiting = err.status(f"Starting {nodes + spare} nodes and a gateway …")
    waiting.start()
    try:
        with running(settings, note) as network:
            waiting.stop()
            say = lambda line="": out.print(line, soft_wrap=True, markup=False)  # noqa: E731
            say(f"base_url   {network.url}/v1")
            say(f"model      {stored.name}  {stored.id}")
            say(f"join       unisono node --join {network.join_address}")
            if network.wallet_command:
                say(f"money      {network.wallet_command}")
            for place, pid in network.processes():
                say(f"{place}: process {pid}")
            say()
            for line in snippets(network.url, stored.name, bool(api_key)):
                say(line)
            say()
            say("Ctrl-C stops everything.")
            threading.Event().wait()
    finally:
        waiting.stop()


def snippets(url: str, model: str, keyed: bool) -> list[str]:
    """How to ask the gateway, with curl and with OpenAI's package."""
    key = "YOUR_KEY" if keyed else "none"
    header = " -H 'authorization: Bearer YOUR_KEY'" if keyed else ""
    return [
        f"curl {url}/v1/completions{header} -H 'content-type: application/json' \\",
        f"""  -d '{{"model": "{model}", "prompt": "The sea is", "max_tokens": 32}}'""",
        "",
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}/v1", api_key="{key}")',
        f'client.completions.create(model="{model}", prompt="The sea is", max_tokens=32)',
    ]
