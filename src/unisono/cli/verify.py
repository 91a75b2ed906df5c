"""`unisono verify`: replay a receipt alone and say whether it holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisono.cli import options as o

if TYPE_CHECKING:
    from unisono.verification.unverified import UnverifiedReceipt


def verify(
    receipt: Annotated[
        str | None,
        typer.Argument(
            metavar="RECEIPT",
            help="A file, - for stdin, or a URL such as http://HOST/v1/receipts/ID.",
        ),
    ] = None,
    evidence: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Judge a file of evidence (- for stdin) instead of a receipt: who lied.",
        ),
    ] = None,
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Check a receipt: signatures, then a replay of the whole answer from the weights.

    Prints VALID, or INVALID with what is wrong, at which hop, layers and position, and the node
    that signed it. An answer that a gateway's fallback fetched from outside the network is NOT
    VERIFIABLE. Exit code 0 for VALID, 1 for everything else.

    With --evidence, says which node a file of evidence convicts, or that it proves nothing; no
    weights are needed. Exit code 0 if somebody is convicted, 1 if not.

    [bold]Examples[/]

    [cyan]unisono verify receipt.json[/]

    [cyan]unisono verify http://127.0.0.1:8000/v1/receipts/91ce58843b9a48dd185bd096f0879898[/]

    [cyan]curl -s $URL | unisono verify - --json | jq .verdict[/]

    [cyan]unisono verify --evidence found.json[/]
    """
    del verbose
    if (receipt is None) == (evidence is None):
        raise typer.BadParameter("give a RECEIPT or --evidence FILE", param_hint="RECEIPT")
    if receipt is None:
        assert evidence is not None
        raise typer.Exit(0 if _judge(evidence, as_json=as_json) else 1)
    import msgspec

    from unisono.cli.replay import replay_receipt, show_verdict
    from unisono.cli.terminal import err
    from unisono.errors import ReceiptError
    from unisono.verification.packed import MAGIC, unpack
    from unisono.verification.receipt import read_json, to_json
    from unisono.verification.unverified import UnverifiedReceipt
    from unisono.verification.verdict import Verdict

    try:
        data = _read(receipt, api_key)
        read = unpack(data) if data.startswith(MAGIC) else read_json(data)
    except ReceiptError as error:
        if as_json:
            _print_json({"verdict": "INCONCLUSIVE", "message": str(error), "receipt_id": None})
            raise typer.Exit(1) from error
        raise
    if isinstance(read, UnverifiedReceipt):
        _not_verifiable(read, as_json=as_json)
        raise typer.Exit(1)
    with err.status("Replaying the answer …") as waiting:
        judged = replay_receipt(
            lambda done, total, what: waiting.update(
                f"Replaying the answer: {done}/{total} {what}"
            ),
            to_json(read).decode(),
        )
    judgement = msgspec.json.decode(judged, type=Verdict)
    if as_json:
        _print_json(msgspec.to_builtins(judgement) | {"receipt_id": read.id})
    else:
        show_verdict(judgement)
    raise typer.Exit(0 if judgement.verdict == "VALID" else 1)


def _judge(where: str, *, as_json: bool) -> bool:
    """Print what a file of evidence shows; whether somebody is convicted."""
    import msgspec
    from rich.text import Text

    from unisono.cli.terminal import out, printable
    from unisono.verification import evidence

    found = evidence.judge(evidence.from_json(_read_file(where, evidence.MAX_BYTES, "evidence")))
    convicted = found.verdict == "INVALID"
    if as_json:
        report: dict[str, Any] = {"convicted": convicted, "message": found.message}
        _print_json(report | {"fault": msgspec.to_builtins(found.fault)})
        return convicted
    head = ("CONVICTED", "bold red") if convicted else ("NOBODY CONVICTED", "bold yellow")
    out.print(Text.assemble(head, f": {printable(found.message)}"), soft_wrap=True)
    return convicted


def _not_verifiable(receipt: UnverifiedReceipt, *, as_json: bool) -> None:
    """Say that nobody vouches for the answer, and whether even the receipt was altered."""
    from rich.text import Text

    from unisono.cli.terminal import out, printable

    signed = receipt.signature_is_good()
    message = (
        f"this answer came from {receipt.source} (model '{receipt.source_model}'), outside the "
        "network: no node signed it and nobody can recompute it"
        if signed
        else "the receipt says that the answer came from outside the network, and was altered "
        f"after gateway {receipt.gateway[:16]}… signed it"
    )
    if as_json:
        _print_json(
            {
                "verdict": "INCONCLUSIVE" if signed else "INVALID",
                "message": message,
                "verified": False,
                "source": receipt.source,
                "source_model": receipt.source_model,
                "receipt_id": receipt.id,
            }
        )
        return
    head = ("NOT VERIFIABLE", "bold yellow") if signed else ("INVALID", "bold red")
    out.print(Text.assemble(head, f": {printable(message)}"), soft_wrap=True)


def _print_json(report: dict[str, Any]) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")


def _read(where: str, api_key: str | None) -> bytes:
    from unisono.errors import ReceiptError
    from unisono.verification.receipt import MAX_BYTES

    if where.startswith(("http://", "https://")):
        from unisono.cli.client import GatewayClient

        base, _, name = where.partition("/v1/receipts/")
        if not name:
            raise ReceiptError(f"'{where}' names no receipt: expected http://HOST/v1/receipts/ID")
        with GatewayClient(base, api_key) as client:
            return client.receipt(name)
    return _read_file(where, MAX_BYTES, "receipt")


def _read_file(where: str, limit: int, what: str) -> bytes:
    """At most one byte more than `limit`, so that what reads it sees that it is too large."""
    from unisono.errors import ReceiptError

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
