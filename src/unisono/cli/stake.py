"""`unisono stake`: what an operator has put up for a node's word."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from unisono.cli import money as m
from unisono.cli import options as o
from unisono.cli.chain import DEFAULT_URL
from unisono.cli.chain import ChainRpc as ChainUrl
from unisono.cli.keys import AccountAddress, KeystoreFolder, PassphraseFile
from unisono.cli.wallet import DeploymentFile, account_of, opened

if TYPE_CHECKING:
    from unisono.compose.chain_settings import ChainSettings
    from unisono.settlement.stakes import OwnStake, StakeRecord
    from unisono.wire.identity import Identity

    Act = Callable[[OwnStake], Awaitable[StakeRecord]]

NodeKey = Annotated[str, typer.Option("--key", metavar="FILE", help="The node's key.")]
Amount = Annotated[float, typer.Argument(min=0.000001, max=m.MAX_AMOUNT, help="Coins.")]

app = typer.Typer(
    help="What stands behind a node's word in the network's registry: show it, add to it, begin "
    "to take it back, and withdraw it when the delay is over. The money is that of --account, or "
    "of the key that follows from the node's. Stop the node for what changes something.\n\n"
    "[bold]Examples[/]\n\n"
    "[cyan]unisono stake show --deployment network.json --key ~/node.key[/]\n\n"
    "[cyan]unisono stake add 100 --deployment network.json --key ~/node.key[/]\n\n"
    "[cyan]unisono stake unbond 100 --deployment network.json --key ~/node.key[/]",
    rich_markup_mode="rich",
    no_args_is_help=True,
)


@app.callback()
def stake() -> None:
    pass


@app.command("show")
def show_stake(
    key: NodeKey,
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Show what the registry has of the node. Works beside a node that runs.

    [bold]Example[/]

    [cyan]unisono stake show --deployment network.json --key ~/node.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    _print(asyncio.run(_read(settings, identity)), as_json)


@app.command("add")
def add_stake(
    amount: Amount,
    key: NodeKey,
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Register the node, if it is not, and stake more.

    [bold]Example[/]

    [cyan]unisono stake add 100 --deployment network.json --key ~/node.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    _print(_done(settings, identity, lambda own: own.add(m.units(amount))), as_json)


@app.command("unbond")
def unbond_stake(
    amount: Amount,
    key: NodeKey,
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Begin to take a part back. It stays liable until the network's delay is over.

    [bold]Example[/]

    [cyan]unisono stake unbond 50 --deployment network.json --key ~/node.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    _print(_done(settings, identity, lambda own: own.unbond(m.units(amount))), as_json)


@app.command("withdraw")
def withdraw_stake(
    key: NodeKey,
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Take back what was unbonded long enough ago.

    [bold]Example[/]

    [cyan]unisono stake withdraw --deployment network.json --key ~/node.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    _print(_done(settings, identity, lambda own: own.withdraw()), as_json)


async def _read(settings: ChainSettings, identity: Identity) -> StakeRecord:
    from unisono.compose.wallet import onlooker
    from unisono.settlement.ledger.deployment import load_deployment
    from unisono.settlement.stakes import Registry

    async with onlooker(settings, identity) as (address, ledger, _):
        registry = Registry(ledger, load_deployment(settings.deployment))
        return await registry.record(identity.node_id, address)


def _done(settings: ChainSettings, identity: Identity, act: Act) -> StakeRecord:
    async def work() -> StakeRecord:
        async with opened(settings, identity) as wallet:
            return await act(wallet.own_stake(identity))

    return asyncio.run(work())


def _print(record: StakeRecord, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        sys.stdout.write(json.dumps(asdict(record) | {"counts": record.counts}) + "\n")
        return
    if not record.registered:
        sys.stdout.write("not registered\n")
    sys.stdout.write(f"stake      {m.coins(record.stake)}\n")
    if record.leaving:
        sys.stdout.write(
            f"leaving    {m.coins(record.leaving)}, free from {record.ready} on (Unix seconds)\n"
        )
    if record.locked:
        sys.stdout.write(f"locked     {m.coins(record.locked)} by open disputes\n")
