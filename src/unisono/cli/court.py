"""`unisono dispute` before the court of a chain, and its demonstration."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unisono.cli.money import coins

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from unisono.compose.chain_settings import ChainSettings
    from unisono.compose.dispute_demo import Shown
    from unisono.compose.prosecution import Outcome
    from unisono.models.store import StoredModel
    from unisono.settlement.claims import SettlementClaim
    from unisono.types import PeerAddress
    from unisono.verification.receipt import Receipt
    from unisono.verification.verdict import Fault
    from unisono.wire.identity import Identity

DEMO = "demo"
TRIAL = "trial"
"""The demonstration's own model."""
LARGE_MOVE_SECONDS = 180
"""For a move about a model that is not the demonstration's own."""
MAX_CLAIM = 1 << 16


def play_on_chain(
    receipt: Receipt,
    fault: Fault,
    addresses: tuple[PeerAddress, ...],
    join: Sequence[str] | None,
    key: str,
    settings: ChainSettings,
    payer: str | None,
    claim_file: Path,
    *,
    as_json: bool,
) -> bool:
    """Contradict a hop before the court; whether the challenger won.

    Raises:
        UnisonoError: the node does not sign, the court does not hear it, or the chain is away.
    """
    import asyncio

    from unisono.models.store import ModelStore
    from unisono.wire.identity import Identity

    identity = Identity.load_or_create(key)
    model = ModelStore().get(receipt.request.model)
    with _status(as_json) as told:
        outcome = asyncio.run(
            _on_chain(
                *(receipt, fault, addresses, join, identity, model, settings, payer),
                claim_file,
                told,
            )
        )
    _show_outcome(outcome, as_json=as_json)
    return outcome.challenger_won


async def _on_chain(
    receipt: Receipt,
    fault: Fault,
    addresses: tuple[PeerAddress, ...],
    join: Sequence[str] | None,
    identity: Identity,
    model: StoredModel,
    settings: ChainSettings,
    payer: str | None,
    claim_file: Path,
    told: Callable[[str], None],
) -> Outcome:
    import asyncio

    from unisono.cli.visits import visiting
    from unisono.clock import SystemClock
    from unisono.compose.prosecution import Plaintiff, ask_for_claim
    from unisono.compose.wallet import PRIVATE_POLL, PUBLIC_POLL, Wallet
    from unisono.models.loading import load_block
    from unisono.settlement.advocates import Case
    from unisono.settlement.eip712 import parse_address
    from unisono.verification.fraud.descriptors import descriptors
    from unisono.verification.fraud.parties import Challenger, target_of
    from unisono.verification.fraud.positions import (
        holdings_of,
        program_of,
        rows_before,
        subject_of,
    )

    assert fault.hop is not None
    clock, hop = SystemClock(), fault.hop
    subject = subject_of(receipt, hop, model)
    told("compiling the model's program")
    program = await asyncio.to_thread(descriptors, model.manifest)
    async with AsyncExitStack() as stack:
        wallet = await Wallet.open(settings, identity, clock)
        stack.push_async_callback(wallet.close)
        if claim_file.exists():
            claim = _read_claim(claim_file)
        else:
            told("asking the node to sign for the chain")
            visitor = await stack.enter_async_context(visiting(identity, addresses, join))
            stream = await visitor.call(subject.claim.node)
            address = wallet.key.address if payer is None else parse_address(payer)
            claim = await ask_for_claim(
                stream, subject, receipt.tokens, program, wallet.deployment, address
            )
            await stream.close()
            _write_claim(claim_file, claim)

        def player() -> Challenger:
            rows = rows_before(receipt, hop, model)
            weights = load_block(model, subject.claim.layers)
            holdings = holdings_of(subject, weights, receipt.tokens, rows)
            return Challenger(identity, holdings, target_of(fault, program_of(subject)))

        told("computing the hop again")
        challenger = await asyncio.to_thread(player)
        plaintiff = Plaintiff(wallet.ledger, wallet.outbox, wallet.deployment, clock)
        poll = PRIVATE_POLL if await wallet.ledger.is_private() else PUBLIC_POLL
        return await plaintiff.challenge(Case(subject, claim, program), challenger, poll, told)


def _read_claim(path: Path) -> SettlementClaim:
    import msgspec

    from unisono.errors import ReceiptError
    from unisono.settlement.claims import SettlementClaim

    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_CLAIM), type=SettlementClaim)
    except (OSError, msgspec.DecodeError) as error:
        raise ReceiptError(f"cannot read the claim for the chain, {path}: {error}") from error


def _write_claim(path: Path, claim: SettlementClaim) -> None:
    import msgspec

    from unisono.cli.visits import write_file

    write_file(path, msgspec.json.encode(claim))


def _show_outcome(outcome: Outcome, *, as_json: bool) -> None:
    from unisono.cli.terminal import note, out

    if as_json:
        return _print(_outcome(outcome))
    for number, play in enumerate(outcome.plays):
        out.print(f"{number:3}  {play.party:10}  {play.what:12}  {play.gas:>9,} gas")
    note(f"{len(outcome.plays)} transactions, {outcome.gas:,} gas; game {outcome.game[:16]}…")
    if outcome.challenger_won:
        out.print(
            f"WON: the node lost {coins(outcome.amount)} of its stake; the challenger got "
            f"{coins(outcome.collected)} with its bond, the payer {coins(outcome.refunded)}"
        )
    else:
        out.print(f"LOST: the bond of {coins(outcome.amount)} is gone, the node was right")
    return None


def demonstrate(operator: str, ledger: str, model: str, *, as_json: bool) -> None:
    """Show disputes about a node that lies in each of an operator's steps, then about an honest
    one. Ends the verb: 0 if all end as they should, else 1.

    Raises:
        UnisonoError: the operator is none, or something does not start.
    """
    import asyncio

    from unisono.compose.crooked import WEIGHTS
    from unisono.errors import ConfigurationError
    from unisono.verification.adversaries.lying import kinds_of

    if ledger not in ("embedded", "anvil"):
        raise ConfigurationError(f"--ledger {ledger[:40]}: expected embedded or anvil")
    conducts = (WEIGHTS,) if operator == WEIGHTS else kinds_of(operator)
    if operator == "all":
        conducts = (*conducts, WEIGHTS)
    shown = asyncio.run(_demonstrate(conducts, ledger, model, as_json=as_json))
    if as_json:
        right = all(x.is_right for x in shown)
        _print({"ledger": ledger, "right": right, "disputes": [_shown(x) for x in shown]})
    told = bool(shown) and all(x.is_right for x in shown)
    raise typer.Exit(0 if told else 1)


async def _demonstrate(
    conducts: tuple[str, ...], ledger: str, name: str, *, as_json: bool
) -> list[Shown]:
    import tempfile

    from unisono.cli.terminal import note
    from unisono.compose.dispute_demo import HONEST, MOVE_SECONDS, demonstration

    found: list[Shown] = []
    with tempfile.TemporaryDirectory(prefix="unisono-demo-") as folder:
        seconds = MOVE_SECONDS if name == TRIAL else LARGE_MOVE_SECONDS
        with _status(as_json) as told:
            told("preparing the model")
            model = _model(name, Path(folder))
            async with demonstration(model, ledger, seconds, told) as demo:
                for conduct in (*conducts, HONEST):
                    shown = await demo.show(conduct, told)
                    if shown is None:
                        if not as_json:
                            note(f"{conduct}: the model has no such step")
                        continue
                    found.append(shown)
                    if not as_json:
                        _show(shown)
    return found


def _model(name: str, folder: Path) -> StoredModel:
    if name == TRIAL:
        from unisono.compose.trial_model import trial_model

        return trial_model(folder)
    from unisono.models.store import ModelStore

    return ModelStore().ensure(name)


def _show(shown: Shown) -> None:
    from unisono.cli.terminal import out

    outcome = shown.outcome
    who = f"A node that lies in '{shown.conduct}'" if shown.conduct else "An honest node"
    out.print(f"{who}: {'as it should' if shown.is_right else 'NOT AS IT SHOULD'}", soft_wrap=True)
    step = f", judged: one step of '{shown.judged}'" if shown.judged else ""
    ended = "the node lost" if outcome.challenger_won else "the challenger lost"
    moves = len(outcome.plays) - 2
    out.print(
        f"  {ended} after {moves} moves, {outcome.gas:,} gas, {shown.seconds:.0f} s{step}",
        soft_wrap=True,
    )
    out.print(
        f"  stake       {coins(shown.stake_before)} → {coins(shown.stake_after)}", soft_wrap=True
    )
    for name, gain in (
        ("challenger", shown.challenger_gain),
        ("payer", shown.payer_gain),
        ("node", shown.node_gain),
    ):
        out.print(f"  {name:10}  {'+' if gain > 0 else ''}{coins(gain)}", soft_wrap=True)


def _shown(shown: Shown) -> dict[str, Any]:
    return {
        "conduct": shown.conduct or "honest",
        "right": shown.is_right,
        "judged": shown.judged,
        "seconds": round(shown.seconds, 1),
        "stake_before": shown.stake_before,
        "stake_after": shown.stake_after,
        "challenger": shown.challenger_gain,
        "payer": shown.payer_gain,
        "node": shown.node_gain,
        **_outcome(shown.outcome),
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "game": outcome.game,
        "challenger_won": outcome.challenger_won,
        "gas": outcome.gas,
        "amount": outcome.amount,
        "collected": outcome.collected,
        "refunded": outcome.refunded,
        "moves": [{"party": x.party, "what": x.what, "gas": x.gas} for x in outcome.plays],
    }


def _print(report: dict[str, Any]) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")


@contextmanager
def _status(as_json: bool) -> Generator[Callable[[str], None]]:
    """What says how far it is, on stderr."""
    from unisono.cli.terminal import err

    if as_json:
        yield lambda text: None
        return
    with err.status("…") as waiting:
        yield lambda text: waiting.update(f"{text[:1].upper()}{text[1:]} …")
