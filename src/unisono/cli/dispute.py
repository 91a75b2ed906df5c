"""`unisono dispute`: play the bisection game with a node whose claim is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisono.cli import court, demonstration, money
from unisono.cli import options as o
from unisono.cli.keys import AccountAddress, KeystoreFolder, PassphraseFile
from unisono.cli.visits import UNDECIDED
from unisono.errors import ConfigurationError

if TYPE_CHECKING:
    from unisono.models.store import StoredModel
    from unisono.types import NodeId, PeerAddress
    from unisono.verification.fraud.parties import Challenger
    from unisono.verification.fraud.transcript import Transcript
    from unisono.verification.fraud.wire import Dispute
    from unisono.verification.receipt import Receipt
    from unisono.verification.verdict import Fault, Verdict
    from unisono.wire.identity import Identity

_PLAYABLE = ("rows_out", "sampling")
"""Faults of a replay that a game narrows down; others show in the receipt itself."""


def dispute(
    receipt: Annotated[
        str,
        typer.Argument(
            metavar="RECEIPT",
            help="A file, - for stdin, or a URL such as http://HOST/v1/receipts/ID; or the word "
            "demo, which shows disputes on a chain of this machine.",
        ),
    ],
    hop: Annotated[
        int | None,
        typer.Option(
            min=0, help="Contradict this hop whatever a replay says, and lose if it is right."
        ),
    ] = None,
    join: o.Join = None,
    base_url: o.BaseUrl = None,
    arbiter: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="A node that hosts the game and keeps the time; else this side."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The challenger's key; else a new one. On a chain: that of the gateway which "
            "asked, since the node signs for no other.",
        ),
    ] = None,
    transcript: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the game is written; else ID.dispute.json here."),
    ] = None,
    on_chain: Annotated[
        bool,
        typer.Option(
            "--on-chain", help="Before the court, with a bond; needs --chain-rpc and --key."
        ),
    ] = False,
    chain_rpc: money.ChainRpc = None,
    deployment: money.DeploymentFile = None,
    account: AccountAddress = None,
    keystore: KeystoreFolder = None,
    passphrase_file: PassphraseFile = None,
    payer: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Who paid, and is refunded; else this account."),
    ] = None,
    claim: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The node's claim for the chain: read if it is there, else asked for and written.",
        ),
    ] = None,
    operator: Annotated[
        str,
        typer.Option(
            help="Of a demo: an operator or step in which a node lies, such as softmax; weights; "
            "or all."
        ),
    ] = "softmax",
    ledger: Annotated[str, typer.Option(help="Of a demo: embedded or anvil.")] = "embedded",
    model: Annotated[
        str, typer.Option("--model", "-m", help="Of a demo: a small one of its own without it.")
    ] = "trial",
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Replay an answer, and contradict the node that computed something else: both sides narrow
    it down to one arithmetic step, which anyone checks from the file without weights.

    The model must be on this machine. Every move is signed; the file holds all of them.

    With --on-chain the court of a chain hosts the game: this side puts up a bond, the node answers
    from its own process, and the stake of a node that was wrong is slashed and paid out. The bond
    is that of --account, or of the key that follows from --key; while the gateway runs, which
    works with that one, give an account of its own. What was interrupted goes on with the same
    command, and is lost if that comes later than a move may.

    Exit code 0 if the replay finds nothing to contradict; 1 if a party is convicted, the node or
    this side; 2 if the game has no end, such as a node that refuses, or that was late before an
    arbiter whom others need not trust.

    [bold]Examples[/]

    [cyan]unisono dispute http://127.0.0.1:8000/v1/receipts/91ce58843b9a48dd185bd096f0879898[/]

    [cyan]unisono dispute receipt.json --base-url http://127.0.0.1:8000 --arbiter ADDRESS[/]

    [cyan]unisono dispute receipt.json --on-chain --chain-rpc URL --deployment FILE --key FILE[/]

    [cyan]unisono dispute demo --operator softmax[/]

    [cyan]unisono verify --evidence 91ce58843b9a48dd185bd096f0879898.dispute.json[/]
    """
    del verbose
    from unisono.cli.visits import known_addresses, read_receipt, undecided, write_file
    from unisono.verification.fraud.transcript import judge, to_json

    with undecided():
        if receipt == demonstration.DEMO:
            demonstration.demonstrate(operator, ledger, model, as_json=as_json)
        chain = None
        if on_chain:
            chain = money.chain_settings(
                chain_rpc,
                deployment,
                account=account,
                keystore=keystore,
                passphrase_file=passphrase_file,
                key=key,
            )
            if chain is None:
                raise ConfigurationError("--on-chain needs --chain-rpc, --deployment and --key")

        def nodes() -> tuple[PeerAddress, ...]:
            return known_addresses(receipt, base_url, api_key, join)

        read = read_receipt(receipt, api_key)
        plaint = court.Plaint(chain, key, claim, payer, nodes, join) if chain else None
        if plaint is not None:
            court.check_account(plaint, as_json=as_json)
        fault = _fault(read, hop, as_json=as_json)
        if fault is None:
            raise typer.Exit(0)
        if plaint is not None:
            court.play_on_chain(read, fault, plaint, as_json=as_json)
            raise typer.Exit(1)
        played = _play(read, fault, nodes(), join, arbiter, key)
        path = transcript or Path(f"{read.id}.dispute.json")
        write_file(path, to_json(played))
        found = judge(played)
    _show(found, path, len(played.moves), as_json=as_json)
    raise typer.Exit(1 if found.verdict == "INVALID" else UNDECIDED)


def _fault(receipt: Receipt, hop: int | None, *, as_json: bool) -> Fault | None:
    """What a replay finds to contradict, or what the user insists on; None: nothing.

    Ends the verb where the receipt itself shows who is at fault.
    """
    import msgspec

    from unisono.cli.replay import show_verdict
    from unisono.errors import ReceiptError
    from unisono.models.store import ModelStore
    from unisono.verification.replay import verify
    from unisono.verification.verdict import fault_of

    verdict = verify(receipt, ModelStore())
    fault = verdict.fault
    if hop is not None and (fault is None or fault.hop != hop):
        if hop >= len(receipt.hops):
            raise ReceiptError(f"the receipt has {len(receipt.hops)} hops; there is no hop {hop}")
        return fault_of(receipt.hops[hop], "rows_out", "")
    if verdict.verdict == "INVALID" and fault is not None and fault.kind in _PLAYABLE:
        return fault
    if as_json:
        _print(msgspec.to_builtins(verdict) | {"transcript": None})
    else:
        show_verdict(verdict)
    if verdict.verdict == "INCONCLUSIVE":
        raise typer.Exit(UNDECIDED)
    if verdict.verdict == "INVALID":
        raise typer.Exit(1)  # no game is needed: the receipt itself shows it
    return None


def _play(
    receipt: Receipt,
    fault: Fault,
    addresses: tuple[PeerAddress, ...],
    join: list[str] | None,
    arbiter: str | None,
    key: str | None,
) -> Transcript:
    import asyncio

    from unisono.cli.terminal import err
    from unisono.cli.visits import visiting
    from unisono.clock import SystemClock
    from unisono.models.store import ModelStore
    from unisono.types import PeerAddress
    from unisono.verification.fraud.hosting import play_before, play_here
    from unisono.wire.identity import Identity

    identity = Identity.kept_at(key)
    referee = None if arbiter is None else PeerAddress.parse(arbiter)
    model = ModelStore().get(receipt.request.model)
    with err.status("Computing the hop …") as waiting:
        prepared, player = _prepared(receipt, fault, model, identity, referee)
        waiting.update("Playing …")
        node = prepared.subject.claim.node

        async def play() -> Transcript:
            known = addresses if referee is None else (*addresses, referee)
            async with visiting(identity, known, join) as visitor:
                called: NodeId = node if referee is None else referee.node
                stream = await visitor.call(called)
                try:
                    if referee is None:
                        return await play_here(prepared, player, identity, stream, SystemClock())
                    return await play_before(prepared, player, visitor.address(node), stream)
                finally:
                    await stream.close()

        return asyncio.run(play())


def _prepared(
    receipt: Receipt,
    fault: Fault,
    model: StoredModel,
    identity: Identity,
    arbiter: PeerAddress | None,
) -> tuple[Dispute, Challenger]:
    """The game, and the player with everything that it can show."""
    import secrets

    from unisono.models.loading import load_block
    from unisono.verification.fraud.moves import SALT_BYTES, Challenge
    from unisono.verification.fraud.parties import Challenger, target_of
    from unisono.verification.fraud.positions import (
        holdings_of,
        program_of,
        rows_before,
        subject_of,
    )
    from unisono.verification.fraud.wire import Dispute

    assert fault.hop is not None
    subject = subject_of(receipt, fault.hop, model)
    rows = rows_before(receipt, fault.hop, model)
    challenge = Challenge(
        subject.claim.signed_bytes(),
        identity.node_id,
        identity.node_id if arbiter is None else arbiter.node,
        secrets.token_bytes(SALT_BYTES),
    ).signed_by(identity)
    weights = load_block(model, subject.claim.layers)
    holdings = holdings_of(subject, weights, receipt.tokens, rows)
    player = Challenger(identity, holdings, target_of(fault, program_of(subject)))
    return Dispute.of(subject, challenge, receipt.tokens, rows), player


def _show(found: Verdict, path: Path, moves: int, *, as_json: bool) -> None:
    import msgspec
    from rich.text import Text

    from unisono.cli.terminal import note, out, printable

    convicted = found.verdict == "INVALID"
    if as_json:
        report = msgspec.to_builtins(found) | {"transcript": str(path), "moves": moves}
        _print(report | {"convicted": convicted})
        return
    head = ("CONVICTED", "bold red") if convicted else ("NOBODY CONVICTED", "bold yellow")
    out.print(Text.assemble(head, f": {printable(found.message)}"), soft_wrap=True)
    note(f"{moves} moves: {path}")


def _print(report: dict[str, Any]) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
