"""`unisono keys`: the keys that own money, encrypted on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unisono.cli import options as o

if TYPE_CHECKING:
    from unisono.settlement.ledger.keys import Keystore
    from unisono.settlement.signature import SettlementKey

KeystoreFolder = Annotated[
    str | None,
    typer.Option("--keystore", help="Folder of encrypted keys; else keystore in the state folder."),
]
PassphraseFile = Annotated[
    str | None,
    typer.Option(
        "--passphrase-file",
        help="File whose first line opens the key; else $UNISONO_PASSPHRASE, else it is asked for.",
    ),
]
AccountAddress = Annotated[
    str | None,
    typer.Option("--account", help="Address of the key to use, if there are several."),
]

app = typer.Typer(
    help="Make, list and import the keys that own money on a chain. They are encrypted in files "
    "that other wallets read, too; no command prints one.\n\n"
    "[bold]Examples[/]\n\n"
    "[cyan]unisono keys new[/]\n\n"
    "[cyan]unisono keys import wallet.json[/]\n\n"
    "[cyan]unisono keys list --json[/]",
    rich_markup_mode="rich",
    no_args_is_help=True,
)


@app.callback()
def keys() -> None:
    pass


@app.command("new")
def new_key(
    keystore: KeystoreFolder = None,
    passphrase_file: PassphraseFile = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Make a key and print its address.

    [bold]Example[/]

    [cyan]unisono keys new --passphrase-file ~/.unisono-passphrase[/]
    """
    del verbose
    from unisono.settlement.ledger.keys import find_passphrase

    store = open_keystore(keystore)
    address = store.new(find_passphrase(passphrase_file, twice=True))
    _print_address(address, store, as_json)


@app.command("list")
def list_keys(
    keystore: KeystoreFolder = None, as_json: o.Json = False, verbose: o.Verbose = False
) -> None:
    """List the addresses of all keys.

    [bold]Example[/]

    [cyan]unisono keys list[/]
    """
    del verbose
    store = open_keystore(keystore)
    found = store.list()
    if as_json:
        _print_json({"folder": str(store.directory), "keys": list(found)})
        return
    from unisono.cli.terminal import dim

    for address in found:
        sys.stdout.write(f"{address}\n")
    if not found:
        dim(f"No keys in {store.directory}. Make one: unisono keys new")


@app.command("import")
def import_key(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A wallet's keystore file, a file with 64 hex digits, or - to type the digits.",
        ),
    ],
    keystore: KeystoreFolder = None,
    passphrase_file: PassphraseFile = None,
    source_passphrase_file: Annotated[
        str | None,
        typer.Option(
            "--source-passphrase-file",
            help="File whose first line opens the wallet's keystore file, if that passphrase is "
            "another.",
        ),
    ] = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Add a key of another wallet, encrypted anew, and print its address.

    [bold]Example[/]

    [cyan]unisono keys import wallet.json[/]
    """
    del verbose
    from unisono.settlement.ledger.keys import find_passphrase

    store = open_keystore(keystore)
    key = _read_key(source, source_passphrase_file or passphrase_file)
    address = store.add(key, find_passphrase(passphrase_file, twice=True))
    _print_address(address, store, as_json)


@app.command("address")
def show_address(
    account: AccountAddress = None,
    keystore: KeystoreFolder = None,
    passphrase_file: PassphraseFile = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Open a key with its passphrase, and print the address that it really has.

    [bold]Example[/]

    [cyan]unisono keys address[/]
    """
    del verbose
    key = unlocked(keystore, account, passphrase_file)
    _print_address(key.address, open_keystore(keystore), as_json)


def unlocked(
    keystore: str | None, account: str | None, passphrase_file: str | None
) -> SettlementKey:
    """The key of an account that was named, or the only one.

    Raises:
        ConfigurationError, KeyRefused: there is none, or it does not open.
    """
    from unisono.settlement.ledger.keys import find_passphrase

    store = open_keystore(keystore)
    address = store.choose(account)
    return store.unlock(address, find_passphrase(passphrase_file, what=f"Passphrase of {address}"))


def open_keystore(folder: str | None) -> Keystore:
    """The keystore in a folder, or in the state folder."""
    from unisono.config import state_directory
    from unisono.settlement.ledger.keys import STRENGTH, Keystore

    # Weaker keys are for tests: a second for each guess is what protects a stolen file.
    weaker = os.environ.get("UNISONO_TEST_KEY_STRENGTH", "")
    strength = int(weaker) if weaker.isdecimal() else STRENGTH
    return Keystore(folder or state_directory() / "keystore", strength=strength)


def _read_key(source: str, passphrase_file: str | None) -> SettlementKey:
    from unisono.errors import ConfigurationError
    from unisono.settlement.ledger.keys import decrypted, find_passphrase, read_secret

    if source == "-":
        if sys.stdin.isatty():
            return read_secret(typer.prompt("Private key", hide_input=True, err=True))
        return read_secret(sys.stdin.read(4096))
    try:
        data = Path(source).expanduser().read_bytes()[: 1 << 17]
    except OSError as error:
        raise ConfigurationError(f"cannot read {source}: {error.strerror}") from error
    if data.lstrip().startswith(b"{"):
        opened = find_passphrase(passphrase_file, what=f"Passphrase of {Path(source).name}")
        return decrypted(data, opened, source)
    return read_secret(data.decode("ascii", "replace"))


def _print_address(address: str, store: Keystore, as_json: bool) -> None:
    if as_json:
        _print_json({"address": address, "folder": str(store.directory)})
    else:
        sys.stdout.write(f"{address}\n")


def _print_json(value: object) -> None:
    import json

    sys.stdout.write(json.dumps(value) + "\n")
