"""What verbs share that question nodes: the receipt, the nodes' addresses, and exit codes."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from unisono.cli.terminal import fail
from unisono.errors import ReceiptError, UnisonoError, WireError

if TYPE_CHECKING:
    from unisono.compose.visitor import Visitor
    from unisono.types import PeerAddress
    from unisono.verification.receipt import Receipt
    from unisono.wire.identity import Identity

UNDECIDED = 2
"""Exit code where nothing could be judged: 0 and 1 are verdicts."""


@contextmanager
def undecided() -> Generator[None]:
    """End what goes wrong inside with one line and `UNDECIDED`."""
    try:
        yield
    except UnisonoError as error:
        fail(str(error))
        raise typer.Exit(UNDECIDED) from error


def read_bytes(where: str, limit: int, what: str, api_key: str | None = None) -> bytes:
    """A file, standard input (`-`), or a receipt's URL; at most one byte more than `limit`, so that
    what reads it sees that it is too large.

    Raises:
        UnisonoError: it cannot be read.
    """
    if what == "receipt" and where.startswith(("http://", "https://")):
        from unisono.cli.client import GatewayClient

        base, _, name = where.partition("/v1/receipts/")
        if not name:
            raise ReceiptError(f"'{where}' names no receipt: expected http://HOST/v1/receipts/ID")
        with GatewayClient(base, api_key) as client:
            return client.receipt(name)
    try:
        if where == "-":
            return sys.stdin.buffer.read(limit + 1)
        with Path(where).open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ReceiptError(
            f"cannot read the {what} {where}: {error.strerror}; give a file"
            + (", a URL or -" if what == "receipt" else " or -")
        ) from error


def read_receipt(where: str, api_key: str | None) -> Receipt:
    """A receipt of the network, in either form.

    Raises:
        UnisonoError: it cannot be read, or its answer came from outside the network.
    """
    from unisono.verification.packed import MAGIC, unpack
    from unisono.verification.receipt import MAX_BYTES, from_json

    data = read_bytes(where, MAX_BYTES, "receipt", api_key)
    return unpack(data) if data.startswith(MAGIC) else from_json(data)


def known_addresses(
    receipt: str, base_url: str | None, api_key: str | None, join: Sequence[str] | None
) -> tuple[PeerAddress, ...]:
    """The nodes that a gateway knows: the one of `--base-url`, or the one that gave the receipt.

    Raises:
        UnisonoError: it cannot be reached, or does not answer like a gateway.
    """
    from unisono.types import PeerAddress

    if base_url is None and receipt.startswith(("http://", "https://")):
        base_url = receipt.partition("/v1/receipts/")[0]
    if base_url is None:
        if join:
            return ()
        from unisono.cli.status import DEFAULT_URL

        base_url = DEFAULT_URL
    from unisono.cli.client import GatewayClient

    with GatewayClient(base_url, api_key) as client:
        page = client.get("/v1/network")
        try:
            nodes = cast("list[dict[str, Any]]", page.json()["data"])
            return tuple(PeerAddress.parse(str(node["address"])) for node in nodes)
        except (ValueError, KeyError, TypeError) as error:
            raise WireError(f"{client.url} does not answer like a gateway: {error!r}") from error


@asynccontextmanager
async def visiting(
    identity: Identity, addresses: Sequence[PeerAddress], join: Sequence[str] | None
) -> AsyncGenerator[Visitor]:
    """A visitor of the network.

    Raises:
        UnisonoError: no address is known, or none answers.
    """
    from unisono.clock import SystemClock
    from unisono.compose.node_settings import join_addresses
    from unisono.compose.visitor import Visitor

    visitor = Visitor(identity, SystemClock(), addresses, join_addresses(join))
    try:
        await visitor.start()
        yield visitor
    finally:
        await visitor.close()


def write_file(path: Path, data: bytes) -> None:
    """Write what was found.

    Raises:
        ReceiptError: the file cannot be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ReceiptError(f"cannot write {path}: {error.strerror}") from error
