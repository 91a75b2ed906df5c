"""Who a node is: an ed25519 key pair, its public half the node's id."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from unisono.errors import ConfigurationError
from unisono.types import NodeId, is_hex

SEED_BYTES = 32
SIGNATURE_BYTES = 64


class Identity:
    """An ed25519 key pair. Its text forms never show the private half."""

    __slots__ = ("_key", "_node_id", "_seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ConfigurationError(f"a key seed has {SEED_BYTES} bytes; this one has {len(seed)}")
        self._seed = bytes(seed)
        self._key = Ed25519PrivateKey.from_private_bytes(self._seed)
        self._node_id = NodeId(self._key.public_key().public_bytes_raw().hex())

    @classmethod
    def generate(cls) -> Identity:
        """A new identity from the operating system's randomness."""
        return cls(secrets.token_bytes(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte seed.

        Raises:
            ConfigurationError: the seed has another length.
        """
        return cls(seed)

    @classmethod
    def kept_at(cls, path: Path | str | None) -> Identity:
        """The identity of a key file (`load_or_create`), or without one a new one that ends with
        the process."""
        return cls.load_or_create(path) if path else cls.generate()

    @classmethod
    def load_or_create(cls, path: Path | str) -> Identity:
        """Read the key file at `path`, or make one that only its owner can read.

        The file holds the seed as 64 hex digits. It appears whole or not at all, and of two
        processes that create it at once both end up with the same key.

        Raises:
            ConfigurationError: the file cannot be read or written, is not a key, or is
                readable by other users.
        """
        path = Path(path)
        try:
            try:
                return cls._load(path)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                _create(path, secrets.token_bytes(SEED_BYTES))
                return cls._load(path)
        except OSError as error:
            raise ConfigurationError(f"cannot use the key file {path}: {error.strerror}") from error

    @classmethod
    def _load(cls, path: Path) -> Identity:
        # Mode and contents are taken from one open file, so that they belong together.
        with path.open("rb") as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigurationError(
                    f"other users may read the key file {path}: run `chmod 600 {path}`"
                )
            data = file.read(2 * SEED_BYTES + 2)
        text = data.decode("ascii", "replace").strip()
        if not is_hex(text, SEED_BYTES):
            raise ConfigurationError(
                f"{path} is not a key file: expected {2 * SEED_BYTES} hex digits; "
                "restore it from a backup, or move it away to get a new identity"
            )
        return cls(bytes.fromhex(text))

    @property
    def node_id(self) -> NodeId:
        """64 hex digits: the public key."""
        return self._node_id

    def sign(self, data: bytes) -> bytes:
        """The 64-byte ed25519 signature of `data`."""
        return self._key.sign(data)

    def secret_seed(self) -> bytes:
        """The 32-byte private seed: only for a transport that does its own handshake."""
        return self._seed

    def __repr__(self) -> str:
        return f"Identity({self._node_id[:8]}…)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("an identity does not travel: it holds a private key")


def verify_signature(node_id: str, data: bytes, signature: bytes) -> bool:
    """Whether the node `node_id` signed `data`. Malformed ids and signatures are just False."""
    if not is_hex(node_id, 32) or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(node_id)).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _create(path: Path, seed: bytes) -> None:
    """Write a key file atomically; keep the one that another process made first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(seed.hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        # A hard link, unlike a rename, never replaces a key that exists.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
