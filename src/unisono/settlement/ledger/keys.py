"""Keys at rest: one encrypted file per key, in the keystore format that Ethereum's wallets share.

The secret is nowhere else: not in settings, logs, representations or arguments of a command. A
passphrase comes from a prompt, a file or a variable.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from eth_account import Account

from unisono.errors import ConfigurationError, KeyRefused
from unisono.settlement.eip712 import checksummed, parse_address
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress

PASSPHRASE_VARIABLE = "UNISONO_PASSPHRASE"
STRENGTH = 1 << 18
"""Scrypt's work factor: about a second and 256 MiB for one guess at a passphrase."""
_LARGEST = 1 << 16
_MOST_MEMORY = 1 << 30
_SUFFIX = ".json"

_Hex = Annotated[str, msgspec.Meta(pattern="^(0x)?[0-9a-fA-F]*$", max_length=256)]


class _Derivation(msgspec.Struct):
    """Parameters of scrypt or PBKDF2; either may come from another wallet."""

    dklen: Annotated[int, msgspec.Meta(ge=32, le=64)]
    salt: _Hex
    n: Annotated[int, msgspec.Meta(ge=1, le=1 << 22)] | None = None
    r: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    p: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    c: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    prf: Literal["hmac-sha256"] | None = None


class _Vector(msgspec.Struct):
    iv: _Hex


class _Crypto(msgspec.Struct):
    cipher: Literal["aes-128-ctr"]
    cipherparams: _Vector
    ciphertext: _Hex
    kdf: Literal["scrypt", "pbkdf2"]
    kdfparams: _Derivation
    mac: _Hex


class _KeyFile(msgspec.Struct):
    crypto: _Crypto
    version: Literal[3]
    address: Annotated[str, msgspec.Meta(pattern="^(0x)?[0-9a-fA-F]{40}$")] | None = None


class Keystore:
    """A folder of key files that only its owner can read."""

    def __init__(self, directory: Path | str, *, strength: int = STRENGTH) -> None:
        """
        Args:
            directory: made with the first key.
            strength: scrypt's work factor, a power of two; less only for tests.
        """
        self.directory = Path(directory)
        self._strength = strength

    def list(self) -> tuple[EvmAddress, ...]:
        """The addresses of all keys, sorted; files of other names are passed over.

        Raises:
            ConfigurationError: the folder cannot be read.
        """
        try:
            names = sorted(p.name for p in self.directory.glob(f"0x*{_SUFFIX}"))
        except OSError as error:
            raise self._unusable(error) from error
        found: list[EvmAddress] = []
        for name in names:
            with contextlib.suppress(ConfigurationError):
                found.append(parse_address(name.removesuffix(_SUFFIX)))
        return tuple(found)

    def new(self, passphrase: str) -> EvmAddress:
        """Make a key from the operating system's randomness and keep it.

        Raises:
            ConfigurationError: the folder cannot be written.
            KeyRefused: the passphrase is empty.
        """
        return self.add(SettlementKey.generate(), passphrase)

    def add(self, key: SettlementKey, passphrase: str) -> EvmAddress:
        """Keep a key; a file that is there already stays as it is.

        Raises:
            ConfigurationError: the folder cannot be written.
            KeyRefused: the passphrase is empty, or the key is there already.
        """
        if not passphrase:
            raise KeyRefused("an empty passphrase protects nothing: choose another")
        content: Any = Account.encrypt(
            key.secret(), passphrase, kdf="scrypt", iterations=self._strength
        )
        path = self._path(key.address)
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create(path, msgspec.json.encode(content))
        except FileExistsError as error:
            raise KeyRefused(f"the keystore has {key.address} already: {path}") from error
        except OSError as error:
            raise self._unusable(error) from error
        return key.address

    def unlock(self, address: EvmAddress, passphrase: str) -> SettlementKey:
        """The key of an address.

        Raises:
            KeyRefused: it is not here, or the passphrase is wrong.
            ConfigurationError: the file is damaged or readable by other users.
        """
        path = self._path(address)
        try:
            with path.open("rb") as file:
                if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
                    raise ConfigurationError(
                        f"other users may read the key file {path}: run `chmod 600 {path}`"
                    )
                data = file.read(_LARGEST + 1)
        except FileNotFoundError as error:
            raise KeyRefused(
                f"there is no key of {address} in {self.directory}: `unisono keys list` shows "
                "which are there"
            ) from error
        except OSError as error:
            raise self._unusable(error) from error
        key = decrypted(data, passphrase, str(path))
        if key.address != address:
            raise ConfigurationError(
                f"{path} holds the key of {key.address}: give the file back its own name"
            )
        return key

    def choose(self, address: str | None = None) -> EvmAddress:
        """The address that was named, else the only one that is here.

        Raises:
            ConfigurationError: what was named is no address.
            KeyRefused: none or several are here and none was named.
        """
        if address is not None:
            return parse_address(address)
        found = self.list()
        if len(found) == 1:
            return found[0]
        raise KeyRefused(
            f"{self.directory} holds {len(found)} keys: "
            + ("name one of them with --account" if found else "make one with `unisono keys new`")
        )

    def _path(self, address: EvmAddress) -> Path:
        return self.directory / f"{address}{_SUFFIX}"

    def _unusable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"cannot use the keystore {self.directory}: {error.strerror}; name a folder that "
            "this user may write"
        )


def decrypted(data: bytes, passphrase: str, name: str) -> SettlementKey:
    """The key in a keystore file of any wallet (version 3, scrypt or PBKDF2).

    Raises:
        ConfigurationError: it is no such file, or asks for more than 1 GiB to be opened.
        KeyRefused: the passphrase is wrong.
    """
    try:
        if len(data) > _LARGEST:
            raise msgspec.ValidationError(f"more than {_LARGEST:,} bytes")
        file = msgspec.json.decode(data.lower(), type=_KeyFile)
        parameters = file.crypto.kdfparams
        memory = 128 * (parameters.n or 0) * (parameters.r or 0)
        if memory > _MOST_MEMORY or (parameters.n or 0) * (parameters.p or 0) > 1 << 24:
            raise msgspec.ValidationError("its derivation costs too much memory or time")
        secret = Account.decrypt(msgspec.to_builtins(file, str_keys=True), passphrase)
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{name} is not a keystore file: {error}; expected version 3 JSON of a wallet"
        ) from error
    except ValueError as error:
        # eth-account raises it for a wrong MAC; its text may hold parameters, never the secret.
        raise KeyRefused(f"the passphrase does not open {name}") from error
    return SettlementKey(bytes(secret))


def read_secret(text: str) -> SettlementKey:
    """A key from 64 hex digits, with or without `0x`. The text is never repeated in an error.

    Raises:
        ConfigurationError: it is something else.
    """
    digits = text.strip().removeprefix("0x")
    try:
        secret = bytes.fromhex(digits)
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ConfigurationError("a private key is 64 hex digits, with or without 0x before them")
    return SettlementKey(secret)


def read_passphrase(path: Path | str) -> str:
    """The first line of a file.

    Raises:
        ConfigurationError: it cannot be read, is empty, or other users may read it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.readline(4096).decode("utf-8", "strict").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError(f"cannot read the passphrase in {path}: {why}") from error
    if os.name == "posix" and mode & 0o077:
        raise ConfigurationError(
            f"other users may read the passphrase in {path}: run `chmod 600 {path}`"
        )
    if not line:
        raise ConfigurationError(f"{path} is empty: its first line is the passphrase")
    return line


def find_passphrase(
    file: Path | str | None, *, what: str = "Passphrase", twice: bool = False
) -> str:
    """From a file, the variable, or who sits at the terminal; never from an argument, which others
    can see. `twice`: whether it is asked for again, since it opens nothing yet.

    Raises:
        ConfigurationError: the file cannot be used, there is nobody to ask, or the answers differ.
    """
    if file is not None:
        return read_passphrase(Path(file).expanduser())
    if given := os.environ.get(PASSPHRASE_VARIABLE):
        return given
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"no passphrase: give --passphrase-file or ${PASSPHRASE_VARIABLE}, or run this in a "
            "terminal"
        )
    given = getpass.getpass(f"{what}: ")
    if twice and getpass.getpass("The same again: ") != given:
        raise ConfigurationError("the two passphrases differ: run the command again")
    return given


def account_of(data: bytes) -> EvmAddress | None:
    """The address that a keystore file says it holds, unverified; None if it does not say."""
    try:
        file = msgspec.json.decode(data[:_LARGEST].lower(), type=_KeyFile)
    except msgspec.DecodeError:
        return None
    if file.address is None:
        return None
    return checksummed(bytes.fromhex(file.address.removeprefix("0x")))


def _create(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, for its owner only; never replace one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, fails if the file is there
    finally:
        temporary.unlink()
