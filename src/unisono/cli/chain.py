"""`unisono chain`: the embedded chain, and a network's contracts on any chain."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unisono.cli import money as m
from unisono.cli import options as o
from unisono.cli.keys import (
    AccountAddress,
    KeystoreFolder,
    PassphraseFile,
    unlocked,
)

if TYPE_CHECKING:
    from unisono.settlement.ledger.delivery import OutboxSettings
    from unisono.settlement.ledger.deployment import Deployment
    from unisono.settlement.ledger.outbox import Outbox
    from unisono.settlement.ledger.rpc import RpcLedger
    from unisono.settlement.signature import SettlementKey
    from unisono.types import EvmAddress

DEFAULT_PORT = 8545
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"

ChainRpc = Annotated[
    str,
    typer.Option(
        "--chain-rpc", help="JSON-RPC address of the chain; the default is `unisono chain serve`."
    ),
]
DeploymentFile = Annotated[
    str, typer.Option("--deployment", help="The network's file of contracts.")
]

app = typer.Typer(
    help="Run the embedded chain, deploy a network's contracts, and check them.\n\n"
    "[bold]Examples[/]\n\n"
    "[cyan]unisono chain serve[/]\n\n"
    "[cyan]unisono chain deploy --out network.json[/]\n\n"
    "[cyan]unisono chain check --deployment network.json[/]",
    rich_markup_mode="rich",
    no_args_is_help=True,
)


@app.callback()
def chain() -> None:
    pass


@app.command("serve")
def serve_chain(
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port on 127.0.0.1; 0 is free.")
    ] = DEFAULT_PORT,
    store: Annotated[
        str | None,
        typer.Option("--store", help="The chain's file; else chain.sqlite in the state folder."),
    ] = None,
    chain_id: Annotated[
        int | None, typer.Option("--chain-id", min=1, help="Number of a new chain.")
    ] = None,
    attached: Annotated[
        bool, typer.Option("--attached", hidden=True, help="End when standard input does.")
    ] = False,
    verbose: o.Verbose = False,
) -> None:
    """Run the embedded chain for the processes of this machine until Ctrl-C.

    It needs no other program and no network. What it confirmed is on disk.

    [bold]Examples[/]

    [cyan]unisono chain serve[/]

    [cyan]unisono chain serve --store /var/lib/unisono/chain.sqlite --port 9545[/]
    """
    del verbose
    from unisono.config import state_directory

    path = Path(store) if store else state_directory() / "chain.sqlite"
    asyncio.run(_serve(path, chain_id, port, attached))


async def _serve(path: Path, chain_id: int | None, port: int, attached: bool) -> None:
    from unisono.cli.terminal import out
    from unisono.settlement.ledger.embedded import EmbeddedChain
    from unisono.settlement.ledger.rpc_server import RpcServer

    chain = EmbeddedChain(path, chain_id=chain_id)
    server = RpcServer(chain)
    try:
        await server.start(port)
        out.print(f"chain_rpc  {server.url}", soft_wrap=True, markup=False)
        out.print(f"chain_id   {chain.chain_id}", soft_wrap=True, markup=False)
        waiting = [asyncio.create_task(server.wait())]
        if attached:
            waiting.append(asyncio.create_task(_until_input_ends()))
        done, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        for task in done:
            task.result()
    finally:
        await server.close()


async def _until_input_ends() -> None:
    """Whoever started this process holds the other end of its input: it ends with them, even if
    they are killed."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass


@app.command("deploy")
def deploy_contracts(
    out: Annotated[str, typer.Option("--out", help="The deployment file to write.")],
    chain_rpc: ChainRpc = DEFAULT_URL,
    coin: Annotated[
        str | None,
        typer.Option(
            "--coin",
            help="Address of the ERC-20 that the network settles in, a dollar coin by convention; "
            "on a private chain a test coin is made without it.",
        ),
    ] = None,
    confirmations: Annotated[
        int, typer.Option("--confirmations", min=0, help="Blocks on top that make things final.")
    ] = 0,
    term: Annotated[
        list[str] | None,
        typer.Option(
            "--term",
            help="NAME=NUMBER: a rule of the contracts that cannot be changed later, such as "
            "delay=1209600 (seconds until an unbonded stake is free); repeat it for several.",
        ),
    ] = None,
    max_gas_price: Annotated[
        float, typer.Option("--max-gas-price", min=0.0, help="In gwei; no transaction pays more.")
    ] = 200.0,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    verbose: o.Verbose = False,
) -> None:
    """Put a network's contracts onto a chain, and write the file that operators share.

    [bold]Examples[/]

    [cyan]unisono chain deploy --out network.json[/]

    [cyan]unisono chain deploy --chain-rpc https://rpc.example.org --coin 0x… --confirmations 12
    --out network.json[/]
    """
    del verbose
    from unisono.errors import ConfigurationError
    from unisono.settlement.eip712 import parse_address
    from unisono.settlement.ledger.fees import GWEI

    target = Path(out)
    if target.exists():
        raise ConfigurationError(f"{target} is there already: name another file, or move it away")
    if not target.absolute().parent.is_dir():
        raise ConfigurationError(f"there is no folder for {target}: make it first")
    terms = _terms(term or ())
    money = parse_address(coin) if coin else None
    key = unlocked(keystore, account, passphrase_file)
    work = _deploy(chain_rpc, key, money, terms, confirmations, int(max_gas_price * GWEI))
    deployment = asyncio.run(work)
    from unisono.cli.terminal import note

    target.write_bytes(deployment.encode())
    for name, contract in deployment.contracts.items():
        sys.stdout.write(f"{name:<16} {contract.address}\n")
    note(f"written to {target}; give this file to every gateway and node of the network")


async def _deploy(
    url: str,
    key: SettlementKey,
    coin: str | None,
    terms: dict[str, int],
    confirmations: int,
    limit: int,
) -> Deployment:
    from unisono.cli.terminal import progress_bar
    from unisono.errors import ConfigurationError
    from unisono.settlement.eip712 import parse_address
    from unisono.settlement.ledger.delivery import OutboxSettings
    from unisono.settlement.ledger.deploy import Plan, deploy
    from unisono.settlement.ledger.fees import FeeRule

    async with _ledger(url) as ledger:
        private = await ledger.is_private()
        if coin is None and not private:
            raise ConfigurationError(
                "this chain is public, so the network must settle in a coin that is there: give "
                "its address with --coin"
            )
        money = parse_address(coin) if coin else None
        if money and not await ledger.code(money):
            raise ConfigurationError(f"there is no contract at {money}: is it on another chain?")
        if private:
            await ledger.fund(key.address)
        settings = OutboxSettings(poll_seconds=0.2 if private else 2.0, fees=FeeRule(limit=limit))
        async with _sending(ledger, key, settings) as outbox:
            nonce = await ledger.nonce(key.address)
            plan = Plan(key.address, nonce, terms=terms, coin=money)
            with progress_bar("Deploying") as report:
                return await deploy(
                    outbox, ledger, plan, confirmations=confirmations, report=report
                )


@app.command("mint")
def mint_coins(
    recipient: Annotated[str, typer.Argument(metavar="ADDRESS", help="Who gets the coins.")],
    amount: Annotated[float, typer.Argument(min=0.000001, max=m.MAX_AMOUNT, help="How many.")],
    deployment: DeploymentFile,
    chain_rpc: ChainRpc = DEFAULT_URL,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    verbose: o.Verbose = False,
) -> None:
    """Make coins of the test coin that `deploy` put onto a private chain: with the key that did.

    [bold]Example[/]

    [cyan]unisono chain mint 0x… 500 --deployment network.json[/]
    """
    del verbose
    from unisono.settlement.eip712 import parse_address

    to, units = parse_address(recipient), m.units(amount)
    key = unlocked(keystore, account, passphrase_file)
    asyncio.run(_mint(chain_rpc, deployment, key, to, units))
    sys.stdout.write(f"made {m.coins(units)} for {to}\n")


async def _mint(url: str, deployment: str, key: SettlementKey, to: EvmAddress, units: int) -> None:
    from unisono.settlement.ledger.delivery import OutboxSettings
    from unisono.settlement.ledger.deploy import COIN
    from unisono.settlement.ledger.intents import Intent
    from unisono.settlement.ledger.network import open_network

    network = await open_network(url, deployment, wait_seconds=0)
    try:
        coin = network.contract(COIN)
        if await network.ledger.is_private():
            await network.ledger.fund(key.address)
        async with _sending(network.ledger, key, OutboxSettings(poll_seconds=0.2)) as outbox:
            data = coin.encode("mint", to, units)
            await outbox.perform(Intent(coin.address, data, purpose="making test coins"))
    finally:
        await network.close()


@app.command("check")
def check_contracts(
    deployment: DeploymentFile,
    chain_rpc: ChainRpc = DEFAULT_URL,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Compare a deployment file with the chain: its number, and every contract's code.

    [bold]Example[/]

    [cyan]unisono chain check --deployment network.json[/]
    """
    del verbose
    from unisono.settlement.ledger.deployment import load_deployment

    found = load_deployment(deployment)
    block = asyncio.run(_check(chain_rpc, found))
    if as_json:
        import json

        contracts = {name: c.address for name, c in found.contracts.items()}
        facts = {"chain_id": found.chain_id, "block": block, "contracts": contracts}
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        sys.stdout.write(
            f"chain {found.chain_id} at block {block:,}: all {len(found.contracts)} contracts are "
            "there, with the code of the file\n"
        )


async def _check(url: str, deployment: Deployment) -> int:
    from unisono.settlement.ledger.deployment import check_deployment

    async with _ledger(url) as ledger:
        await check_deployment(deployment, ledger)
        return (await ledger.head()).number


@asynccontextmanager
async def _sending(
    ledger: RpcLedger, key: SettlementKey, settings: OutboxSettings
) -> AsyncGenerator[Outbox]:
    """What puts a key's transactions onto the chain, as long as the block lasts."""
    from unisono.settlement.ledger.outbox import Outbox, stop

    outbox = await Outbox.open(None, ledger, key, settings=settings)
    worker = asyncio.create_task(outbox.run())
    try:
        yield outbox
    finally:
        await stop(worker)
        await outbox.close()


@asynccontextmanager
async def _ledger(url: str) -> AsyncGenerator[RpcLedger]:
    from unisono.settlement.ledger.rpc import RpcLedger

    ledger = RpcLedger(url)
    try:
        yield ledger
    finally:
        await ledger.close()


def _terms(given: list[str] | tuple[str, ...]) -> dict[str, int]:
    from unisono.errors import ConfigurationError
    from unisono.settlement.ledger.deploy import TERMS

    terms = dict(TERMS)
    for text in given:
        name, found, value = text.partition("=")
        if not found or not value.isdecimal() or name not in TERMS:
            raise ConfigurationError(
                f"--term {text[:60]} is not NAME=NUMBER with one of {', '.join(TERMS)}"
            )
        terms[name] = int(value)
    return terms
