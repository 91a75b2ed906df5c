"""`unisono wallet`: what an account has on its network's chain, and how to get it back."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisono.cli import money as m
from unisono.cli import options as o
from unisono.cli.chain import DEFAULT_URL, DeploymentFile
from unisono.cli.chain import ChainRpc as ChainUrl
from unisono.cli.keys import AccountAddress, KeystoreFolder, PassphraseFile

if TYPE_CHECKING:
    from unisono.compose.chain_settings import ChainSettings
    from unisono.compose.wallet import Wallet
    from unisono.types import EvmAddress
    from unisono.wire.identity import Identity

KeyFile = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Key of a node or gateway whose money follows from it; else a key of the keystore.",
    ),
]
PayeeAddress = Annotated[str, typer.Argument(metavar="PAYEE", help="Whom the channel pays.")]

app = typer.Typer(
    help="What an account has on its network's chain: coins, channels and deposits; close a "
    "channel, take the rest back, send coins away. A process that works with the same account "
    "has to be stopped for what changes something.\n\n"
    "[bold]Examples[/]\n\n"
    "[cyan]unisono wallet show --deployment network.json --key ~/gateway.key[/]\n\n"
    "[cyan]unisono wallet close 0x… --deployment network.json[/]\n\n"
    "[cyan]unisono wallet finish 0x… --deployment network.json[/]",
    rich_markup_mode="rich",
    no_args_is_help=True,
)


@app.callback()
def wallet() -> None:
    pass


@app.command("show")
def show_wallet(
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    key: KeyFile = None,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Show coins, coins for gas, and every channel from and to the account.

    [bold]Example[/]

    [cyan]unisono wallet show --deployment network.json --key ~/gateway.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    facts = asyncio.run(_facts(settings, identity))
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    lines = [
        f"account    {facts['account']}",
        f"coins      {m.coins(facts['coins'])}",
        f"gas        {facts['gas'] / 10**18:.6f} of the chain's own coin",
    ]
    if facts["owed"]:
        lines.append(f"owed       {m.coins(facts['owed'])} by registry, court and committee")
    for channel in facts["channels"]:
        other, way = channel["other"], "to  " if channel["pays"] else "from"
        left = channel["deposit"] - channel["redeemed"]
        closes = f", closes at {channel['closes']}" if channel["closes"] else ""
        lines.append(
            f"channel {way} {other}: {m.coins(left)} left, {m.coins(channel['redeemed'])} "
            f"redeemed{closes}"
        )
    sys.stdout.write("\n".join(lines) + "\n")


@app.command("close")
def close_channel(
    payee: PayeeAddress,
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    key: KeyFile = None,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    verbose: o.Verbose = False,
) -> None:
    """Begin to close a channel: the payee has the network's window to redeem, then `finish`.

    [bold]Example[/]

    [cyan]unisono wallet close 0x… --deployment network.json --key ~/gateway.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    asyncio.run(_close(settings, identity, payee))


@app.command("finish")
def finish_channel(
    payee: PayeeAddress,
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    key: KeyFile = None,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    verbose: o.Verbose = False,
) -> None:
    """Take back what is left of a channel whose window is over.

    [bold]Example[/]

    [cyan]unisono wallet finish 0x… --deployment network.json --key ~/gateway.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    asyncio.run(_finish(settings, identity, payee))


@app.command("collect")
def collect_awards(
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    key: KeyFile = None,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    verbose: o.Verbose = False,
) -> None:
    """Have paid out what verdicts awarded to the account.

    [bold]Example[/]

    [cyan]unisono wallet collect --deployment network.json --key ~/node.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    asyncio.run(_collect(settings, identity))


@app.command("send")
def send_coins(
    recipient: Annotated[str, typer.Argument(metavar="ADDRESS", help="Who gets the coins.")],
    amount: Annotated[float, typer.Argument(min=0.000001, max=m.MAX_AMOUNT, help="How many.")],
    deployment: DeploymentFile,
    chain_rpc: ChainUrl = DEFAULT_URL,
    key: KeyFile = None,
    keystore: KeystoreFolder = None,
    account: AccountAddress = None,
    passphrase_file: PassphraseFile = None,
    verbose: o.Verbose = False,
) -> None:
    """Send coins that are in no channel and no stake to an address, such as that of a savings
    wallet.

    [bold]Example[/]

    [cyan]unisono wallet send 0x… 12.50 --deployment network.json --key ~/node.key[/]
    """
    del verbose
    settings, identity = account_of(chain_rpc, deployment, key, keystore, account, passphrase_file)
    asyncio.run(_send(settings, identity, recipient, m.units(amount)))


def account_of(
    rpc: str,
    deployment: str,
    key: str | None,
    keystore: str | None,
    account: str | None,
    passphrase_file: str | None,
) -> tuple[ChainSettings, Identity]:
    """The account that a verb is about, and the network key if it follows from one.

    Raises:
        ConfigurationError: the key's file is not there, or cannot be used.
    """
    from pathlib import Path

    from unisono.errors import ConfigurationError
    from unisono.wire.identity import Identity

    named = (account, keystore, passphrase_file) != (None, None, None)
    identity = None
    if key is not None:
        if not Path(key).expanduser().is_file():
            raise ConfigurationError(f"there is no key in {key}: name the file of --key")
        identity = Identity.load_or_create(str(Path(key).expanduser()))
    elif not named:
        from unisono.config import state_directory

        keystore = str(state_directory() / "keystore")
    settings = m.chain_settings(
        rpc,
        deployment,
        account=account,
        keystore=keystore,
        passphrase_file=passphrase_file,
        key=key,
    )
    assert settings is not None
    return settings, identity or Identity.generate()


@asynccontextmanager
async def opened(settings: ChainSettings, identity: Identity) -> AsyncGenerator[Wallet]:
    """The account, to do something with it."""
    from unisono.clock import SystemClock
    from unisono.compose.wallet import Wallet

    made = await Wallet.open(settings, identity, SystemClock())
    try:
        yield made
    finally:
        await made.close()


async def _facts(settings: ChainSettings, identity: Identity) -> dict[str, Any]:
    from unisono.compose.wallet import onlooker
    from unisono.settlement.awards import owed
    from unisono.settlement.ledger.deployment import load_deployment

    async with onlooker(settings, identity) as (address, ledger, channels):
        found: list[dict[str, Any]] = []
        for pays in (True, False):
            for other in await channels.partners(address, pays=pays):
                pair = (address, other) if pays else (other, address)
                state = await channels.state(*pair)
                found.append(
                    {
                        "other": other,
                        "pays": pays,
                        "deposit": state.deposit,
                        "redeemed": state.redeemed,
                        "closes": state.closes,
                        "epoch": state.epoch,
                    }
                )
        return {
            "account": address,
            "coins": await channels.balance(address),
            "gas": await ledger.balance(address),
            "owed": await owed(ledger, load_deployment(settings.deployment), address),
            "channels": found,
        }


async def _close(settings: ChainSettings, identity: Identity, payee: str) -> None:
    from unisono.errors import ConfigurationError

    async with opened(settings, identity) as own:
        to = _address(payee)
        state = await own.channels.state(own.key.address, to)
        if not state.deposit:
            raise ConfigurationError(f"there is no channel from {own.key.address} to {to}")
        if not state.closes:
            await own.channels.start_close(to)
            state = await own.channels.state(own.key.address, to)
        sys.stdout.write(
            f"closing: {m.coins(state.deposit - state.redeemed)} at most come back with `unisono "
            f"wallet finish {to}` from {state.closes} on (Unix seconds)\n"
        )


async def _finish(settings: ChainSettings, identity: Identity, payee: str) -> None:
    from unisono.clock import SystemClock
    from unisono.errors import ConfigurationError

    async with opened(settings, identity) as own:
        to = _address(payee)
        state = await own.channels.state(own.key.address, to)
        if not state.closes:
            raise ConfigurationError(
                f"the channel to {to} is not being closed: begin with `unisono wallet close {to}`"
            )
        # A quiet chain has no block of this minute.
        wait = state.closes - int(SystemClock().now())
        if wait > 0:
            raise ConfigurationError(f"the payee may redeem for {wait:,} seconds more: wait")
        await own.channels.finish_close(to)
        sys.stdout.write(f"closed: {m.coins(state.deposit - state.redeemed)} came back\n")


async def _collect(settings: ChainSettings, identity: Identity) -> None:
    from unisono.settlement.awards import Awards

    async with opened(settings, identity) as own:
        units, _ = await Awards(own.ledger, own.outbox, own.deployment).collect(own.key.address)
        sys.stdout.write(f"collected {m.coins(units)}\n")


async def _send(settings: ChainSettings, identity: Identity, recipient: str, amount: int) -> None:
    from unisono.settlement.ledger.shortfall import shortfall

    to = _address(recipient)
    async with opened(settings, identity) as own:
        have = await own.channels.balance(own.key.address)
        if have < amount:
            raise shortfall(
                have,
                amount,
                what=f"balance of {own.key.address}",
                purpose=f"sending to {to}",
                remedy="send less",
                decimals=6,
            )
        await own.channels.send(to, amount)
        sys.stdout.write(f"sent {m.coins(amount)} to {to}\n")


def _address(text: str) -> EvmAddress:
    from unisono.settlement.eip712 import parse_address

    return parse_address(text)
