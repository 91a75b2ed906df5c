"""`unisono gateway`: the front door alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from unisono.cli import money as m
from unisono.cli import options as o
from unisono.cli.keys import AccountAddress, KeystoreFolder, PassphraseFile

if TYPE_CHECKING:
    from unisono.compose.gateway import FrontSettings


def gateway(
    join: o.Join = None,
    host: o.Host = "127.0.0.1",
    port: o.Port = 8000,
    bind: Annotated[
        str, typer.Option("--bind", help="HOST:PORT that nodes join with; port 0 is a free one.")
    ] = "127.0.0.1:0",
    relay: o.Relays = None,
    key: Annotated[
        str | None, typer.Option("--key", help="File of the gateway's key, made if not there.")
    ] = None,
    model: o.Model = o.DEFAULT_MODEL,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            help="Another model that is served here; repeat it for several. Models of one "
            "vocabulary can answer together.",
        ),
    ] = None,
    transport: o.Transport = o.TransportName.iroh,
    api_key: o.ApiKeys = None,
    max_answers: Annotated[
        int, typer.Option("--max-answers", min=1, help="Answers at the same time.")
    ] = 64,
    fallback: Annotated[
        list[str] | None,
        typer.Option(
            "--fallback",
            help="Who answers when the network cannot: model:NAME, replica, or "
            "remote:MODEL@URL; repeat it for a chain. Answers of a remote one cannot be verified.",
        ),
    ] = None,
    fallback_key: Annotated[
        list[str] | None,
        typer.Option(
            "--fallback-key",
            help="Where the key of remote fallbacks is: env:VARIABLE, file:PATH, or "
            "HOST=env:VARIABLE for one of them.",
        ),
    ] = None,
    fallback_when_full: Annotated[
        bool, typer.Option("--fallback-when-full", help="Fall back also when every node is full.")
    ] = False,
    availability_threshold: Annotated[
        float,
        typer.Option(
            "--availability-threshold",
            min=0,
            max=100,
            help="Percent of the nodes that must answer; below it clients are told and fallbacks "
            "are asked first.",
        ),
    ] = 90.0,
    guesses: o.Guesses = True,
    audit_rate: o.AuditRate = 0.5,
    beacon: o.Beacon = None,
    epoch_seconds: o.EpochSeconds = 60,
    service_window: o.ServiceWindow = 86_400,
    chain_rpc: m.ChainRpc = None,
    deployment: m.DeploymentFile = None,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    deposit: m.Deposit = None,
    second_worth: m.SecondWorth = 0.00001,
    least_stake: m.LeastStake = 0.0,
    accuse: Annotated[
        bool,
        typer.Option(
            "--accuse/--no-accuse",
            help="Whether claims of staked nodes that audits find false are taken to the "
            "committee of the chain. That costs a bond and fees, and pays a share of the penalty.",
        ),
    ] = True,
    verbose: o.Verbose = False,
) -> None:
    """Run a gateway without nodes until Ctrl-C; nodes join with the address that it prints.

    With --join it serves the nodes of a network that exists, beside its other gateways.
    Its key and receipts are kept per HTTP port in the state folder ($UNISONO_STATE or
    ~/.local/state/unisono); with --port 0 they are not kept.

    [bold]Examples[/]

    [cyan]unisono gateway[/]

    [cyan]unisono gateway --host 0.0.0.0 --bind 0.0.0.0:4433 --api-key secret[/]

    [cyan]unisono gateway --port 8001 --join iroh://NODE_ID@192.0.2.7:4433[/]

    [cyan]unisono gateway --chain-rpc $URL --deployment network.json --deposit 5[/]

    [cyan]unisono gateway --fallback replica --fallback remote:MODEL@https://api.example.com/v1
    --fallback-key env:EXAMPLE_KEY[/]
    """
    del verbose
    from unisono.cli.preparation import prepared
    from unisono.compose.node_settings import beacon_operators, join_addresses
    from unisono.config import state_directory

    join_addresses(join)  # before anything slow
    operators = beacon_operators(beacon or ())
    if fallback or fallback_key:
        from unisono.gateway import parse_fallbacks

        parse_fallbacks([f for f in fallback or () if f != "replica"], fallback_key or ())
    state = state_directory() / "networks" / str(port) if port else None
    key = key or (str(state / "keys" / "gateway.key") if state else None)
    chain = m.chain_settings(
        chain_rpc,
        deployment,
        account=account,
        keystore=keystore,
        passphrase_file=passphrase_file,
        key=key,
        deposit=deposit,
    )
    if least_stake and chain is None:
        from unisono.errors import ConfigurationError

        raise ConfigurationError("--least-stake needs a chain: give --chain-rpc and --deployment")
    stored = prepared(model)
    others = [prepared(name) for name in also or ()]
    from unisono.compose.gateway import FrontSettings

    settings = FrontSettings(
        model=stored.id,
        also=tuple(other.id for other in others),
        join=",".join(join) if join else None,
        host=host,
        port=port,
        transport=transport.value,
        bind=bind,
        relays=",".join(relay) if relay else None,
        draft=guesses,
        key=key,
        receipts=str(state / "receipts.sqlite") if state else None,
        api_keys=tuple(api_key or ()),
        max_running_answers=max_answers,
        fallbacks=tuple(fallback or ()),
        fallback_keys=tuple(fallback_key or ()),
        fall_back_when_full=fallback_when_full,
        availability_threshold=round(10 * availability_threshold),
        audit_rate=round(10_000 * audit_rate),
        beacon=operators,
        epoch_seconds=epoch_seconds,
        service_window=service_window,
        chain=chain,
        price_seconds=1 / (second_worth * m.UNIT),
        least_stake=m.units(least_stake),
        accuse=accuse,
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
