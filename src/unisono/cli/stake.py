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
from unisono.cli.chain import DEFAULT_URL, DeploymentFile
from unisono.cli.chain import ChainRpc as ChainUrl
from unisono.cli.keys import AccountAddress, KeystoreFolder, PassphraseFile
from unisono.cli.wallet import account_of, opened

if TYPE_CHECKING:
    from unisono.compose.chain_settings import ChainSettings
    from unisono.settlement.bench import BenchPlace, Earnings, OwnPlace
    from unisono.settlement.ledger.deployment import Deployment
    from unisono.settlement.ledger.ledger import Ledger
    from unisono.settlement.stakes import OwnStake, StakeRecord
    from unisono.types import EvmAddress
    from unisono.wire.identity import Identity

    Act = Callable[[OwnStake], Awaitable[StakeRecord]]
    Facts = tuple[StakeRecord, BenchPlace | None, Earnings | None]

NodeKey = Annotated[str, typer.Option("--key", metavar="FILE", help="The node's key.")]
Amount = Annotated[float, typer.Argument(min=0.000001, max=m.MAX_AMOUNT, help="Coins.")]

app = typer.Typer(
    help="What stands behind a node's word in the network's registry: show it, add to it, begin "
    "to take it back, and withdraw it when the delay is over; and its place on the bench of the "
    "committee. The money is that of --account, or of the key that follows from the node's. Stop "
    "the node for what changes something.\n\n"
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
    _print(*asyncio.run(_read(settings, identity)), as_json=as_json)


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
    _print(*_done(settings, identity, lambda own: own.add(m.units(amount))), as_json=as_json)


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
    _print(*_done(settings, identity, lambda own: own.unbond(m.units(amount))), as_json=as_json)


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
    _print(*_done(settings, identity, lambda own: own.withdraw()), as_json=as_json)


@app.command("bench")
def take_place(
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
    """Deposit coins for a place on the committee's bench; the node must be registered.

    While it runs it may be drawn to compute answers of others again. It earns a fee for each, and
    is fined for what it does not open or gets wrong.

    [bold]Example[/]

    [cyan]unisono stake bench 50 --deployment network.json --key ~/node.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    _print(*_placed(settings, identity, lambda own: own.ensure(m.units(amount))), as_json=as_json)


@app.command("leave")
def leave_bench(
    key: NodeKey,
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Take no part in cases that are opened from now on. The deposit stays until `release`.

    [bold]Example[/]

    [cyan]unisono stake leave --deployment network.json --key ~/node.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    _print(*_placed(settings, identity, lambda own: own.leave()), as_json=as_json)


@app.command("release")
def release_deposit(
    key: NodeKey,
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Take the deposit back, 256 blocks and a draw after `leave`, and after the last case.

    [bold]Example[/]

    [cyan]unisono stake release --deployment network.json --key ~/node.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    _print(*_placed(settings, identity, lambda own: own.release()), as_json=as_json)


async def _read(settings: ChainSettings, identity: Identity) -> Facts:
    from unisono.compose.wallet import onlooker
    from unisono.settlement.ledger.deployment import load_deployment

    async with onlooker(settings, identity) as (address, ledger, _):
        return await _facts(ledger, load_deployment(settings.deployment), identity, address)


async def _facts(
    ledger: Ledger, deployment: Deployment, identity: Identity, account: EvmAddress
) -> Facts:
    """A node's stake, its place on the bench, and what that earned."""
    from unisono.settlement.bench import COMMITTEE, earnings_of, place_of
    from unisono.settlement.stakes import Registry

    record = await Registry(ledger, deployment).record(identity.node_id, account)
    if COMMITTEE not in deployment.contracts:
        return record, None, None
    place = await place_of(ledger, deployment, identity.node_id, account)
    return record, place, await earnings_of(ledger, deployment, account)


def _done(settings: ChainSettings, identity: Identity, act: Act) -> Facts:
    async def work() -> Facts:
        async with opened(settings, identity) as wallet:
            await act(wallet.own_stake(identity))
            return await _facts(wallet.ledger, wallet.deployment, identity, wallet.key.address)

    return asyncio.run(work())


def _placed(
    settings: ChainSettings, identity: Identity, act: Callable[[OwnPlace], Awaitable[object]]
) -> Facts:
    async def work() -> Facts:
        async with opened(settings, identity) as wallet:
            await act(wallet.own_place(identity))
            return await _facts(wallet.ledger, wallet.deployment, identity, wallet.key.address)

    return asyncio.run(work())


def _print(
    record: StakeRecord, place: BenchPlace | None, earnings: Earnings | None, *, as_json: bool
) -> None:
    if as_json:
        from dataclasses import asdict

        facts: dict[str, object] = {**asdict(record), "counts": record.counts}
        facts["bench"] = None if place is None else asdict(place)
        facts["committee"] = None if earnings is None else asdict(earnings)
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    if not record.registered:
        sys.stdout.write("not registered\n")
    sys.stdout.write(f"stake      {m.coins(record.stake)}\n")
    if record.leaving:
        sys.stdout.write(
            f"leaving    {m.coins(record.leaving)}, free from {record.ready} on (Unix seconds)\n"
        )
    if record.locked:
        sys.stdout.write(f"locked     {m.coins(record.locked)} by open disputes and cases\n")
    if place is not None:
        left = f", left in block {place.left}" if place.left else ""
        cases = f"sits in {place.seated} open cases{left}"
        sys.stdout.write(f"bench      {m.coins(place.deposit)} deposited, {cases}\n")
    if earnings is not None and (place is not None or earnings.credited or earnings.fined):
        fined = m.coins(earnings.fined)
        sys.stdout.write(
            f"committee  {m.coins(earnings.credited)} credited, {fined} fined in all\n"
        )
