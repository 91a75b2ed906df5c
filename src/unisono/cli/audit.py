"""`unisono audit`: check layers of an answer without holding the model's weights."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisono.cli import options as o
from unisono.cli.visits import UNDECIDED

if TYPE_CHECKING:
    from unisono.compose.visitor import Visitor
    from unisono.verification.light.client import Checked
    from unisono.verification.light.draw import Budget
    from unisono.verification.light.secrets import Secrets
    from unisono.verification.receipt import Receipt
    from unisono.verification.verdict import Verdict


def audit(
    receipt: o.Receipt = None,
    prepare: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Make secrets of a model (as --model of other verbs) from its weights, once.",
        ),
    ] = None,
    secrets: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where secrets are; else in the state folder, by the model's id."
        ),
    ] = None,
    columns: Annotated[
        int,
        typer.Option(min=0, help="Positions at which every layer of every hop is checked."),
    ] = 1,
    cells: Annotated[
        int, typer.Option(min=0, help="Single cells (layer, position) of every hop beside them.")
    ] = 0,
    samples: Annotated[
        int, typer.Option(min=0, help="Earlier positions of a cell whose keys are checked.")
    ] = 4,
    tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of the answer that are drawn again.")
    ] = 1,
    join: o.Join = None,
    base_url: o.BaseUrl = None,
    evidence: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write what shows a fault; else ID.evidence.json here."
        ),
    ] = None,
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Ask the nodes that signed a receipt to open random layers of their work, and check them.

    Takes secrets of the model, a few KB per matrix, that --prepare makes once from its weights; the
    audit itself never loads weights. Cells are drawn here, after each node has committed to all of
    them. Nodes are found through the gateway that the receipt came from, --base-url, or --join.

    Exit code 0 if all that was opened is what the model computes; 1 if a node is at fault, with
    a file of evidence; 2 if a node did not answer, or nothing could be checked.

    [bold]Examples[/]

    [cyan]unisono audit --prepare gemma-3-270m[/]

    [cyan]unisono audit http://127.0.0.1:8000/v1/receipts/91ce58843b9a48dd185bd096f0879898[/]

    [cyan]unisono audit receipt.json --cells 8 --base-url http://127.0.0.1:8000[/]

    [cyan]unisono verify --evidence 91ce58843b9a48dd185bd096f0879898.evidence.json[/]
    """
    del verbose
    from unisono.cli.visits import undecided

    if (receipt is None) == (prepare is None):
        raise typer.BadParameter("give a RECEIPT or --prepare MODEL", param_hint="RECEIPT")
    with undecided():
        if prepare is not None:
            _prepare(prepare, secrets, as_json=as_json)
            return
        assert receipt is not None
        from unisono.verification.light.draw import Budget

        budget = Budget(columns, cells, samples, tokens, apart=True)
        code = _run(receipt, secrets, budget, join, base_url, api_key, evidence, as_json)
    raise typer.Exit(code)


def secrets_path(model: str) -> Path:
    """Where the secrets of a model are unless a flag says otherwise."""
    from unisono.config import state_directory

    return state_directory() / "secrets" / f"{model}.secrets"


def _prepare(model: str, path: Path | None, *, as_json: bool) -> None:
    from unisono.cli.preparation import prepared
    from unisono.cli.terminal import out, progress_bar
    from unisono.errors import ConfigurationError
    from unisono.verification.light.making import build

    stored = prepared(model)
    path = path or secrets_path(stored.id)
    started = time.perf_counter()
    with progress_bar("Reading the weights") as report:
        made = build(stored, lambda done, total: report(done, total, "layers"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    size, seconds = path.stat().st_size, time.perf_counter() - started
    if as_json:
        _print({"model": stored.id, "path": str(path), "bytes": size, "seconds": seconds})
        return
    out.print(
        f"secrets of {stored.name}: {path} ({size / 1e6:.1f} MB, {seconds:.1f} s)",
        soft_wrap=True,
        markup=False,
    )


def _run(
    where: str,
    path: Path | None,
    budget: Budget,
    join: list[str] | None,
    base_url: str | None,
    api_key: str | None,
    evidence: Path | None,
    as_json: bool,
) -> int:
    """Returns the exit code."""
    import asyncio

    from unisono.cli.visits import known_addresses, read_receipt, visiting
    from unisono.verification.form import check_form
    from unisono.wire.identity import Identity

    receipt = read_receipt(where, api_key)
    fault = check_form(receipt)
    if fault is not None:
        from unisono.verification.verdict import Verdict

        _show_form(Verdict("INVALID", fault, fault.message), as_json=as_json)
        return 1
    secrets = _secrets(path, receipt)
    addresses = known_addresses(where, base_url, api_key, join)

    async def play() -> _Audited:
        audited = _Audited(receipt, secrets, budget, quiet=as_json)
        async with visiting(Identity.generate(), addresses, join) as visitor:
            for hop in range(len(receipt.hops)):
                await audited.hop(visitor, hop)
        return audited

    audited = asyncio.run(play())
    audited.finish(evidence or Path(f"{receipt.id}.evidence.json"), as_json=as_json)
    return audited.code


def _secrets(path: Path | None, receipt: Receipt) -> Secrets:
    from unisono.errors import ConfigurationError
    from unisono.verification.light.secrets import Secrets

    model = receipt.request.model
    path = path or secrets_path(model)
    if not path.exists():
        raise ConfigurationError(
            f"there are no secrets of model {model[:12]}… in {path}: make them once with "
            f"'unisono audit --prepare {model}', or name the file with --secrets"
        )
    return Secrets.load(path, model)


class _Audited:
    """What was found so far."""

    def __init__(self, receipt: Receipt, secrets: Secrets, budget: Budget, *, quiet: bool) -> None:
        from rich.table import Table

        self._receipt, self._secrets, self._budget = receipt, secrets, budget
        self._quiet = quiet
        self._table = Table(header_style="bold", pad_edge=False)
        for name in ("hop", "layer", "position", "what", "bytes", "ms", "verdict"):
            left = name in ("what", "verdict")
            self._table.add_column(name, justify="left" if left else "right")
        self._hops: list[dict[str, Any]] = []
        self._found: tuple[Verdict, Any] | None = None
        self._open: list[str] = []
        """Hops of which nothing can be said, and why."""

    @property
    def code(self) -> int:
        if self._found is not None:
            return 1
        return UNDECIDED if self._open else 0

    async def hop(self, visitor: Visitor, hop: int) -> None:
        """Audit one hop. What goes wrong with its node is its own."""
        from unisono.errors import PeerCheating, WireError
        from unisono.verification.light.audit import LightAudit
        from unisono.verification.light.client import checks

        claim = self._receipt.hops[hop]
        audit = LightAudit(self._secrets, self._receipt, hop, self._budget)
        report: dict[str, Any] = {"hop": hop, "node": claim.node, "checks": []}
        self._hops.append(report)
        started = time.perf_counter()
        try:
            stream = await visitor.call(claim.node)
            try:
                async for checked in checks(audit, stream):
                    report["checks"].append(self._row(hop, checked))
                    if checked.verdict.verdict != "VALID":
                        opened = audit.evidence(checked.challenge, checked.opening)
                        self._found = self._found or (checked.verdict, opened)
            finally:
                await stream.close()
        except PeerCheating as error:
            self._unanswered(report, f"hop {hop} (node {claim.node}) broke the protocol: {error}")
        except WireError as error:
            self._unanswered(report, f"hop {hop} (node {claim.node}) did not answer: {error}")
        report["seconds"] = time.perf_counter() - started

    def _unanswered(self, report: dict[str, Any], why: str) -> None:
        report["message"] = why
        self._open.append(why)

    def _row(self, hop: int, checked: Checked) -> dict[str, Any]:
        from unisono.cli.terminal import printable

        challenge, verdict = checked.challenge, checked.verdict
        if challenge.cells:
            cell, what = challenge.cells[0], "cell"
            if challenge.samples:
                what += f", {len(challenge.samples)} samples"
            layer, position = cell.layer, cell.position
        elif challenge.heads:
            layer, position, what = None, challenge.heads[0], "token"
        else:
            cell, what = challenge.samples[0], "samples"
            layer, position = cell.layer, cell.position
        good = verdict.verdict == "VALID"
        self._table.add_row(
            str(hop),
            "" if layer is None else str(layer),
            str(position),
            what,
            f"{len(checked.opening):,}",
            f"{1e3 * checked.seconds:.1f}",
            "VALID" if good else printable(f"INVALID: {verdict.operator or 'malformed'}"),
        )
        return {
            "layer": layer,
            "position": position,
            "what": what,
            "bytes": len(checked.opening),
            "ms": 1e3 * checked.seconds,
            "verdict": verdict.verdict,
            "message": verdict.message,
        }

    def finish(self, path: Path, *, as_json: bool) -> None:
        """Print what was found, and write what shows it."""
        import msgspec

        written = self._write(path)
        word = {0: "VALID", 1: "INVALID", UNDECIDED: "INCONCLUSIVE"}[self.code]
        if self._found is not None:
            message = self._found[0].message
        elif self._open:
            message = "; ".join(self._open)
        else:
            message = "all that the nodes opened is what the model computes"
        if as_json:
            fault = None if self._found is None else msgspec.to_builtins(self._found[0].fault)
            _print(
                {
                    "verdict": word,
                    "message": message,
                    "fault": fault,
                    "evidence": None if written is None else str(written),
                    "hops": self._hops,
                    "receipt_id": self._receipt.id,
                }
            )
            return
        from rich.text import Text

        from unisono.cli.terminal import note, out, printable

        if self._table.row_count:
            out.print(self._table)
        style = {0: "bold green", 1: "bold red"}.get(self.code, "bold yellow")
        out.print(Text.assemble((word, style), f": {printable(message)}"), soft_wrap=True)
        if written is not None:
            note(f"evidence: {written}")

    def _write(self, path: Path) -> Path | None:
        """The file of evidence, if there is something to show."""
        from unisono.cli.visits import write_file
        from unisono.verification.cases import MAX_BYTES, Opening, to_json
        from unisono.verification.evidence import VERSION

        if self._found is None:
            return None
        data = to_json(Opening(VERSION, self._found[1]))
        if len(data) > MAX_BYTES:
            return None
        write_file(path, data)
        return path


def _show_form(verdict: Verdict, *, as_json: bool) -> None:
    import msgspec

    from unisono.cli.replay import show_verdict

    if as_json:
        _print(msgspec.to_builtins(verdict))
    else:
        show_verdict(verdict)


def _print(report: dict[str, Any]) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
