"""`unisono gateway`: the front door alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from unisono.cli import options as o

if TYPE_CHECKING:
    from unisono.compose.gateway import FrontSettings


def gateway(
    blocks: Annotated[
        int,
        typer.Option("--blocks", "-b", min=1, help="Into how many blocks nodes cut the model."),
    ] = 1,
    host: o.Host = "127.0.0.1",
    port: o.Port = 8000,
    bind: Annotated[
        str, typer.Option("--bind", help="HOST:PORT that nodes announce to; port 0 is a free one.")
    ] = "127.0.0.1:0",
    key: Annotated[
        str | None, typer.Option("--key", help="File of the gateway's key, made if not there.")
    ] = None,
    model: o.Model = o.DEFAULT_MODEL,
    transport: o.Transport = o.TransportName.iroh,
    api_key: o.ApiKeys = None,
    max_answers: Annotated[
        int, typer.Option("--max-answers", min=1, help="Answers at the same time.")
    ] = 64,
    verbose: o.Verbose = False,
) -> None:
    """Run a gateway without nodes until Ctrl-C; nodes join with the address that it prints.

    Its key and receipts are kept per HTTP port in the state folder ($UNISONO_STATE or
    ~/.local/state/unisono); with --port 0 they are not kept.

    [bold]Examples[/]

    [cyan]unisono gateway --blocks 3[/]

    [cyan]unisono gateway --blocks 2 --host 0.0.0.0 --bind 0.0.0.0:4433 --api-key secret[/]
    """
    del verbose
    from unisono.cli.preparation import prepared
    from unisono.config import state_directory

    stored = prepared(model)
    from unisono.compose.gateway import FrontSettings
    from unisono.routing.placement import even_blocks

    even_blocks(stored.layer_count, blocks)
    state = state_directory() / "networks" / str(port) if port else None
    settings = FrontSettings(
        model=stored.id,
        blocks=blocks,
        host=host,
        port=port,
        transport=transport.value,
        bind=bind,
        key=key or (str(state / "keys" / "gateway.key") if state else None),
        receipts=str(state / "receipts.sqlite") if state else None,
        api_keys=tuple(api_key or ()),
        max_running_answers=max_answers,
    )
    import asyncio

    asyncio.run(_serve(settings))


async def _serve(settings: FrontSettings) -> None:
    from unisono.cli.terminal import err, out
    from unisono.compose.gateway import Front

    front = Front(settings)
    try:
        with err.status("Starting …"):
            server = await front.start()
        out.print(f"base_url   {server.url}/v1", soft_wrap=True, markup=False)
        out.print(
            f"join       unisono node --join {front.address}",
            soft_wrap=True,
            markup=False,
        )
        await server.wait()
    finally:
        await front.close()
