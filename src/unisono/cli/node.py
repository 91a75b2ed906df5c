"""`unisono node`: one node in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisono.cli import money as m
from unisono.cli import options as o
from unisono.cli.keys import AccountAddress, KeystoreFolder, PassphraseFile

if TYPE_CHECKING:
    from unisono.compose.node_settings import NodeSettings
    from unisono.types import LayerRange, PeerAddress

DRAIN_SECONDS = 30.0
"""How long a node that is told to stop serves the answers that run."""


def node(
    join: o.Join = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", help="A block A:B, layer B left out; else what the network needs most."
        ),
    ] = None,
    model: o.Model = o.DEFAULT_MODEL,
    transport: Annotated[
        o.TransportName | None,
        typer.Option("--transport", help="How nodes reach each other; as --join says, else iroh."),
    ] = None,
    bind: Annotated[
        str, typer.Option("--bind", help="HOST:PORT to listen on; port 0 picks a free one.")
    ] = "127.0.0.1:0",
    relay: o.Relays = None,
    serve_relay: Annotated[
        bool,
        typer.Option(
            "--serve-relay",
            help="Carry traffic of nodes that cannot be reached directly; for machines that "
            "everyone can dial.",
        ),
    ] = False,
    key: Annotated[
        str | None,
        typer.Option("--key", help="File of the node's key, made if it is not there."),
    ] = None,
    device: o.Device = o.DeviceName.auto,
    threads: o.Threads = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(
            "--memory-gib",
            min=0.01,
            help="Memory for weights and sessions, by which the block is chosen; else a share of "
            "what is free.",
        ),
    ] = None,
    kv_gib: Annotated[
        float, typer.Option("--kv-gib", min=0.01, help="Memory for running sessions, in GiB.")
    ] = 2.0,
    beacon: o.Beacon = None,
    epoch_seconds: o.EpochSeconds = 60,
    service_window: o.ServiceWindow = 86_400,
    chain_rpc: m.ChainRpc = None,
    deployment: m.DeploymentFile = None,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    price_in: m.PriceIn = None,
    price_out: m.PriceOut = None,
    watts: m.Watts = None,
    electricity: m.Electricity = None,
    off_peak: m.OffPeak = None,
    margin: m.Margin = None,
    payee: m.Payee = None,
    stake: m.Stake = 0.0,
    bench: m.Bench = 0.0,
    tier: m.Tier = None,
    window: m.Window = None,
    verbose: o.Verbose = False,
) -> None:
    """Run one node until Ctrl-C; with --join it serves a network.

    Others can join through this node as well as through a gateway. It serves for nothing unless
    it is told a chain and a price; then its money is that of --account, or of a key that follows
    from the node's own (--key).

    Exit codes: 1 if it cannot start, is refused, or loses its network for ten minutes; 2 for a
    wrong flag; 130 after Ctrl-C.

    [bold]Examples[/]

    [cyan]unisono node --join iroh://NODE_ID@192.0.2.7:4433 --bind 0.0.0.0:0[/]

    [cyan]unisono node --join $ADDRESS --layers 6:12 --key ~/node.key[/]

    [cyan]unisono node --device cuda --kv-gib 16 --join $ADDRESS[/]

    [cyan]unisono node --join $ADDRESS --key ~/node.key --chain-rpc $URL --deployment network.json
    --watts 65 --electricity 0.30 --stake 200 --bench 50[/]
    """
    del verbose
    block = parse_layers(layers) if layers is not None else None
    chain = m.chain_settings(
        chain_rpc,
        deployment,
        account=account,
        keystore=keystore,
        passphrase_file=passphrase_file,
        key=key,
    )
    seller = m.seller_settings(
        chain,
        price_in=price_in,
        price_out=price_out,
        watts=watts,
        electricity=electricity,
        off_peak=off_peak,
        margin=margin,
        payee=payee,
        stake=stake,
        bench=bench,
        tier=tier,
        window=window,
        key=key,
    )
    from unisono.compose.node_settings import NodeSettings, beacon_operators, join_addresses

    join_addresses(relay)
    operators = beacon_operators(beacon or ())
    for address in join_addresses(join):  # before anything slow
        transport = transport or _known_transport(address)
        if address.transport != transport.value:
            from unisono.errors import ConfigurationError

            raise ConfigurationError(
                f"the network at {address} speaks {address.transport}, this node "
                f"{transport.value}: add --transport {address.transport}"
            )
    from unisono.cli.preparation import prepared

    stored = prepared(model)
    settings = NodeSettings(
        model=stored.id,
        join=",".join(join) if join else None,
        layers=block,
        transport=(transport or o.TransportName.iroh).value,
        bind=bind,
        relays=",".join(relay) if relay else None,
        serve_relay=serve_relay,
        key=key,
        memory=None if memory_gib is None else int(memory_gib * (1 << 30)),
        kv_bytes=int(kv_gib * (1 << 30)),
        device=device.value,
        threads=threads,
        beacon=operators,
        epoch_seconds=epoch_seconds,
        service_window=service_window,
        chain=chain,
        seller=seller,
    )
    import asyncio

    asyncio.run(_serve(settings))


def _known_transport(address: PeerAddress) -> o.TransportName:
    from unisono.errors import ConfigurationError

    try:
        return o.TransportName(address.transport)
    except ValueError as error:
        known = ", ".join(o.TransportName)
        raise ConfigurationError(
            f"there is no transport '{address.transport}' as in {address}: expected {known}"
        ) from error


def parse_layers(text: str) -> LayerRange:
    """Read `A:B`.

    Raises:
        typer.BadParameter: not two whole numbers with A below B.
    """
    from unisono.types import LayerRange

    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise typer.BadParameter(
            f"'{text}' is not a block of layers: expected A:B with A below B, such as 0:6",
            param_hint="'--layers'",
        )
    return LayerRange(int(start), int(stop))


async def _serve(settings: NodeSettings) -> None:
    from unisono.cli.terminal import err, out
    from unisono.compose.node import Node

    running = Node(settings)
    stopped = _Stop()
    try:
        with err.status("Starting …") as waiting:
            address = await running.start(lambda step: waiting.update(f"Starting: {step} …"))
        out.print(f"node       {running.identity.node_id}", soft_wrap=True, markup=False)
        out.print(f"layers     {running.layers}", soft_wrap=True, markup=False)
        out.print(f"address    {address}", soft_wrap=True, markup=False)
        await stopped.wait_beside(running.run())
        sessions = running.worker.sessions if running.worker is not None else 0
        if sessions:
            err.print(f"leaving: {sessions} answers go on; press Ctrl-C again to stop at once")
        await stopped.wait_beside(running.drain(DRAIN_SECONDS))
    finally:
        await running.close()
    raise SystemExit(stopped.code)


class _Stop:
    """Ctrl-C and SIGTERM, which end what runs in order; the second one at once."""

    def __init__(self) -> None:
        import asyncio
        import signal

        self.code = 0
        self._asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # not on every system
                loop.add_signal_handler(number, self._ask, 128 + number)

    def _ask(self, code: int) -> None:
        self.code = code
        self._asked.set()

    async def wait_beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it ends or a signal comes."""
        import asyncio

        self._asked.clear()
        running, asked = asyncio.create_task(work), asyncio.create_task(self._asked.wait())
        await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if running.done():
            running.result()
        else:
            running.cancel()
            await asyncio.wait({running})
