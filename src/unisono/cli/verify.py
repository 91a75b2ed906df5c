"""`unisono verify`: replay a receipt alone and say whether it holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisono.cli import options as o
from unisono.cli.visits import UNDECIDED, read_bytes, undecided

if TYPE_CHECKING:
    from unisono.verification.unverified import UnverifiedReceipt


def verify(
    receipt: o.Receipt = None,
    evidence: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Judge a file of evidence (- for stdin) instead of a receipt: who lied.",
        ),
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE_ID",
            help="With --evidence: believe this arbiter about time, or this auditor about who sat "
            "in its committee; repeat it for several.",
        ),
    ] = None,
    secrets: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --evidence: your secrets of the model, to check what an audit opened; "
            "'unisono audit --prepare' makes them.",
        ),
    ] = None,
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Check a receipt: signatures, then a replay of the whole answer from the weights.

    Prints VALID, or INVALID with what is wrong, at which hop, layers and position, and the node
    that signed it. An answer that a gateway's fallback fetched from outside the network is NOT
    VERIFIABLE. Exit code 0 for VALID, 1 for INVALID or NOT VERIFIABLE, 2 if it cannot be judged,
    such as a file that is no receipt, or a model that is not here.

    With --evidence, says which node a file of evidence convicts (claims, a dispute, a committee's
    audit or misconduct, an opening), or that it proves nothing; no weights are needed. Exit code
    0 if somebody is convicted, 1 if not, 2 if the file cannot be read.

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
        with undecided():
            convicted = _judge(evidence, trust or (), secrets, as_json=as_json)
        raise typer.Exit(0 if convicted else 1)
    if trust or secrets:
        raise typer.BadParameter("goes with --evidence", param_hint="--trust, --secrets")
    import msgspec

    from unisono.cli.replay import replay_receipt, show_verdict
    from unisono.cli.terminal import err
    from unisono.errors import ReceiptError
    from unisono.verification.packed import MAGIC, unpack
    from unisono.verification.receipt import MAX_BYTES, read_json, to_json
    from unisono.verification.unverified import UnverifiedReceipt
    from unisono.verification.verdict import Verdict

    with undecided():
        try:
            data = read_bytes(receipt, MAX_BYTES, "receipt", api_key)
            read = unpack(data) if data.startswith(MAGIC) else read_json(data)
        except ReceiptError as error:
            if as_json:
                _print_json({"verdict": "INCONCLUSIVE", "message": str(error), "receipt_id": None})
                raise typer.Exit(UNDECIDED) from error
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
    raise typer.Exit({"VALID": 0, "INVALID": 1}.get(judgement.verdict, UNDECIDED))


def _judge(where: str, trust: Sequence[str], secrets: Path | None, *, as_json: bool) -> bool:
    """Print what a file of evidence shows; whether somebody is convicted."""
    import msgspec
    from rich.text import Text

    from unisono.cli.terminal import out, printable
    from unisono.types import NodeId
    from unisono.verification import cases

    case = cases.from_json(read_bytes(where, cases.MAX_BYTES, "evidence"))
    found = cases.judge(case, {NodeId(node) for node in trust}, secrets)
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
