"""`unisono dispute --on-chain`: a hop is contradicted before the court of a chain."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unisono.cli import INTERRUPTED
from unisono.cli.money import coins

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from unisono.compose.chain_settings import ChainSettings
    from unisono.compose.prosecution import Outcome
    from unisono.compose.wallet import Wallet
    from unisono.settlement.claims import SettlementClaim
    from unisono.types import PeerAddress
    from unisono.verification.fraud.descriptors import Descriptors
    from unisono.verification.fraud.moves import Subject
    from unisono.verification.receipt import Receipt
    from unisono.verification.verdict import Fault
    from unisono.wire.identity import Identity

MAX_CLAIM = 1 << 16

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plaint:
    """What a challenger is told, beside what it contradicts."""

    settings: ChainSettings
    key: str | None
    """File of the network key for which the node signs; None: its claim is at hand."""
    claim_file: Path | None
    """The node's claim for the chain; None: a file of the receipt's name."""
    payer: str | None
    nodes: Callable[[], tuple[PeerAddress, ...]]
    """Asks where nodes are."""
    join: Sequence[str] | None

    def identity(self) -> Identity:
        """The network key.

        Raises:
            ConfigurationError: there is no such file, and a new key would be nobody's.
        """
        from unisono.errors import ConfigurationError
        from unisono.wire.identity import Identity

        if self.key is None:
            return Identity.generate()
        path = Path(self.key).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"there is no key in {path}: name the gateway's with --key")
        return Identity.load_or_create(str(path))

    def path(self, receipt: Receipt, hop: int) -> Path:
        """Where the node's claim for the chain is kept."""
        return self.claim_file or Path(f"{receipt.id}.hop{hop}.claim.json")


def check_account(plaint: Plaint, *, as_json: bool) -> None:
    """Open the challenger's account and close it again, before anything that takes long.

    Raises:
        UnisonoError: key, account, deployment or chain are not what they should be.
    """
    import asyncio

    from unisono.clock import SystemClock
    from unisono.compose.wallet import Wallet
    from unisono.settlement.eip712 import parse_address

    if plaint.payer is not None:
        parse_address(plaint.payer)
    if plaint.claim_file is not None and plaint.claim_file.exists():
        _read_claim(plaint.claim_file)

    async def look() -> None:
        await (await Wallet.open(plaint.settings, plaint.identity(), SystemClock())).close()

    with status(as_json) as told:
        told("opening the account")
        asyncio.run(look())


def play_on_chain(receipt: Receipt, fault: Fault, plaint: Plaint, *, as_json: bool) -> None:
    """Contradict a hop before the court, and say how it ended.

    Raises:
        UnisonoError: the node does not sign, the court does not hear it, or the chain is away.
    """
    import asyncio

    from unisono.cli.terminal import fail

    try:
        with status(as_json) as told:
            outcome, own = asyncio.run(_play(receipt, fault, plaint, told))
    except KeyboardInterrupt as error:
        fail("stopped: a game that is open goes on, and the bond is lost unless this is run again")
        raise typer.Exit(INTERRUPTED) from error
    _show(outcome, own, as_json=as_json)


async def _play(receipt: Receipt, fault: Fault, plaint: Plaint, told: Told) -> tuple[Outcome, bool]:
    """How it ended, and whether the challenger is the one who is refunded, too."""
    import asyncio

    from unisono.clock import SystemClock
    from unisono.compose.prosecution import Plaintiff
    from unisono.compose.wallet import PRIVATE_POLL, PUBLIC_POLL, Wallet
    from unisono.models.loading import load_block
    from unisono.models.store import ModelStore
    from unisono.settlement.advocates import Case
    from unisono.verification.fraud.descriptors import descriptors
    from unisono.verification.fraud.parties import Challenger, target_of
    from unisono.verification.fraud.positions import (
        holdings_of,
        program_of,
        rows_before,
        subject_of,
    )

    assert fault.hop is not None
    clock, hop, identity = SystemClock(), fault.hop, plaint.identity()
    model = ModelStore().get(receipt.request.model)
    subject = subject_of(receipt, hop, model)
    told("compiling the model's program")
    program = await asyncio.to_thread(descriptors, model.manifest)
    async with AsyncExitStack() as stack:
        wallet = await Wallet.open(plaint.settings, identity, clock)
        stack.push_async_callback(wallet.close)
        plaintiff = Plaintiff(wallet.ledger, wallet.outbox, wallet.deployment, clock)
        claim = _kept(receipt, hop, subject, program, plaint)
        if claim is None:
            told("asking the node to sign for the chain")
            claim = await _asked(receipt, subject, program, plaint, identity, wallet)
            await plaintiff.check_stake(claim)
            _write_claim(plaint.path(receipt, hop), claim)

        def player() -> Challenger:
            rows = rows_before(receipt, hop, model)
            weights = load_block(model, subject.claim.layers)
            holdings = holdings_of(subject, weights, receipt.tokens, rows)
            return Challenger(identity, holdings, target_of(fault, program_of(subject)))

        told("computing the hop again")
        challenger = await asyncio.to_thread(player)
        poll = PRIVATE_POLL if await wallet.ledger.is_private() else PUBLIC_POLL
        case = Case(subject, claim, program)
        outcome = await plaintiff.challenge(case, challenger, poll, told)
        return outcome, claim.payer == wallet.key.address


def _kept(
    receipt: Receipt, hop: int, subject: Subject, program: Descriptors, plaint: Plaint
) -> SettlementClaim | None:
    """The node's claim for the chain, out of its file; None if there is no file.

    Raises:
        ReceiptError: the file holds something else.
    """
    from dataclasses import replace

    from unisono.errors import ReceiptError
    from unisono.settlement.claims import settlement_claim
    from unisono.settlement.eip712 import parse_address

    path = plaint.path(receipt, hop)
    if not path.exists():
        return None
    claim = _read_claim(path)
    payer = claim.payer if plaint.payer is None else parse_address(plaint.payer)
    size = subject.manifest.config.vocabulary_size
    tokens = subject.tokens or receipt.tokens
    expected = settlement_claim(subject.claim, subject.request, tokens, program.root, size, payer)
    if replace(claim, signature=b"") != expected:
        raise ReceiptError(
            f"{path} holds a claim of another answer, hop or payer: name another file with "
            "--claim, or move it away"
        )
    return claim


async def _asked(
    receipt: Receipt,
    subject: Subject,
    program: Descriptors,
    plaint: Plaint,
    identity: Identity,
    wallet: Wallet,
) -> SettlementClaim:
    """The node's claim for the chain, from itself.

    Raises:
        UnisonoError: it does not sign, or cannot be reached.
    """
    from unisono.cli.visits import visiting
    from unisono.compose.prosecution import ask_for_claim
    from unisono.errors import ConfigurationError, PeerRefused
    from unisono.settlement.eip712 import parse_address

    gateway, node = subject.claim.gateway, subject.claim.node
    if identity.node_id != gateway:
        raise ConfigurationError(
            f"the node signs for the gateway of its claim alone, {gateway[:16]}…, and the key of "
            f"{plaint.key or 'this side'} is {identity.node_id[:16]}…: give that gateway's key "
            "with --key, or the claim that it has with --claim"
        )
    payer = wallet.key.address if plaint.payer is None else parse_address(plaint.payer)
    async with visiting(identity, plaint.nodes(), plaint.join) as visitor:
        stream = await visitor.call(node)
        try:
            return await ask_for_claim(
                stream, subject, receipt.tokens, program, wallet.deployment, payer
            )
        except PeerRefused as refusal:
            raise PeerRefused(
                f"node {node[:16]}… does not sign its claim for a chain: {refusal}", refusal.code
            ) from refusal
        finally:
            await stream.close()


def _read_claim(path: Path) -> SettlementClaim:
    import msgspec

    from unisono.errors import ConfigurationError, ReceiptError
    from unisono.settlement.claims import SettlementClaim
    from unisono.settlement.eip712 import parse_address

    try:
        with path.open("rb") as file:
            claim = msgspec.json.decode(file.read(MAX_CLAIM), type=SettlementClaim)
        parse_address(claim.payer)
        return claim
    except OSError as error:
        raise ReceiptError(f"cannot read the claim in {path}: {error.strerror}") from error
    except (msgspec.DecodeError, ConfigurationError) as error:
        raise ReceiptError(f"{path} holds no claim for a chain: {error}") from error


def _write_claim(path: Path, claim: SettlementClaim) -> None:
    import msgspec

    from unisono.cli.visits import write_file

    write_file(path, msgspec.json.encode(claim))


def _show(outcome: Outcome, own: bool, *, as_json: bool) -> None:
    from unisono.cli.terminal import note, out

    if as_json:
        return print_report(outcome_report(outcome))
    for number, play in enumerate(outcome.plays):
        out.print(f"{number:3}  {play.party:10}  {play.what:12}  {play.gas:>9,} gas")
    note(f"{len(outcome.plays)} transactions, {outcome.gas:,} gas; game {outcome.game[:16]}…")
    if outcome.was_over:
        note("the game was over before: an account can contradict a claim once")
    out.print(verdict(outcome, own), soft_wrap=True)
    return None


def verdict(outcome: Outcome, own: bool) -> str:
    """How a game ended, in words. `own`: the challenger is who is refunded, too."""
    lost = coins(outcome.amount)
    if not outcome.challenger_won:
        why = "the node was right" if outcome.on_time else "this side did not move in time"
        return f"LOST: the bond of {lost} is gone; {why}"
    told = "WON: the node was convicted in another game, or nothing was left of its stake"
    if outcome.amount:
        why = "was wrong" if outcome.on_time else "did not move in time"
        told = f"WON: the node {why}, and lost {lost} of its stake"
    told += f"; the challenger collected {coins(outcome.collected)}"
    if outcome.was_over:
        return told + " now"
    if own:
        return told + " with its bond and as the one who paid"
    return told + f" with its bond, the payer {coins(outcome.refunded)}"


def outcome_report(outcome: Outcome) -> dict[str, Any]:
    """As `--json` shows it."""
    return {
        "game": outcome.game,
        "challenger_won": outcome.challenger_won,
        "on_time": outcome.on_time,
        "was_over": outcome.was_over,
        "gas": outcome.gas,
        "amount": outcome.amount,
        "collected": outcome.collected,
        "refunded": outcome.refunded,
        "moves": [{"party": x.party, "what": x.what, "gas": x.gas} for x in outcome.plays],
    }


def print_report(report: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")


@contextmanager
def status(as_json: bool) -> Generator[Told]:
    """What says how far it is, on stderr."""
    from unisono.cli.terminal import err

    if as_json:
        yield lambda text: None
        return
    with err.status("…") as waiting:
        yield lambda text: waiting.update(f"{text[:1].upper()}{text[1:]} …")
