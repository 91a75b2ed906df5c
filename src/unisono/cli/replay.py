"""The replay of a receipt, and how its verdict is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from rich.table import Table
from rich.text import Text

from unisono.cli.child import Report, in_child
from unisono.cli.terminal import out, printable

if TYPE_CHECKING:
    from unisono.verification.receipt import Receipt
    from unisono.verification.verdict import Verdict

_SHORT = 16


def replayed(receipt: Receipt, report: Report) -> Verdict:
    """Check a receipt in a process of its own, from nothing but the stored weights.

    Raises:
        UnisonoError: the replay could not run.
    """
    from unisono.verification.receipt import to_json
    from unisono.verification.verdict import Verdict

    text = in_child(replay_receipt, to_json(receipt).decode(), report)
    return msgspec.json.decode(text, type=Verdict)


def replay_receipt(report: Report, text: str) -> str:
    """Runs in a child: a receipt's verdict, both as JSON."""
    from unisono.models.store import ModelStore
    from unisono.verification.receipt import from_json
    from unisono.verification.replay import verify

    receipt = from_json(text.encode())
    verdict = verify(receipt, ModelStore(), lambda done, total: report(done, total, "hops"))
    return msgspec.json.encode(verdict).decode()


def show_receipt(receipt: Receipt, model: str) -> None:
    """A receipt as tables."""
    from unisono.types import request_hash
    from unisono.verification.ensemble import parts

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    rate, first = receipt.tokens_per_second, receipt.first_token_us / 1e6
    for name, value in (
        ("receipt", receipt.id),
        ("request", request_hash(receipt.request)),
        ("model", f"{printable(model)}  {receipt.request.model}"),
        (
            "answer",
            f"{len(receipt.tokens)} tokens after {len(receipt.request.prompt)} of the prompt, "
            f"ended by {receipt.finish_reason}",
        ),
        ("speed", f"{rate:.1f} tokens per second, first token after {first:.2f} s"),
        ("attempts", str(receipt.attempts)),
    ):
        facts.add_row(name, Text(value))
    if receipt.quorum is not msgspec.UNSET:
        facts.add_row("quorum", Text(printable(receipt.quorum.summary)))
    together = parts(receipt)
    if receipt.ensemble is not msgspec.UNSET:
        for part in together[1:]:
            facts.add_row("and model", Text(part.request.model))
    hops = Table(title=None, header_style="bold", pad_edge=False)
    for name in ("hop", "node", "layers", "positions", "rows out"):
        hops.add_column(name, justify="left" if name in ("node", "rows out") else "right")
    for claim in (claim for part in together for claim in part.hops):
        hops.add_row(
            str(claim.hop),
            f"{claim.node[:_SHORT]}…",
            str(claim.layers),
            str(claim.positions),
            f"{claim.rows_out[:_SHORT]}…",
        )
    out.print(facts)
    out.print(hops)


def show_verdict(judgement: Verdict) -> None:
    """A verdict as one or two lines; the fault names hop, layers, position and node."""
    style = {"VALID": "bold green", "INVALID": "bold red"}.get(judgement.verdict, "bold yellow")
    line = Text.assemble((judgement.verdict, style), f": {printable(judgement.message)}")
    if judgement.verdict == "VALID":
        line.append(f" ({judgement.positions} positions replayed in {judgement.seconds:.1f} s)")
    out.print(line, soft_wrap=True)
    fault = judgement.fault
    if fault is None:
        return
    facts = {
        "kind": fault.kind,
        "hop": fault.hop,
        "layers": fault.layers,
        "position": fault.position,
        "node": fault.node,
    }
    details = [f"{name} {value}" for name, value in facts.items() if value is not None]
    out.print(Text("  " + ", ".join(details), style="dim"), soft_wrap=True)
