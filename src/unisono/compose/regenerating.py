"""The process in which a node computes again what it is asked about; run by `compose.respondent`.

A process of its own: it may load torch, which nodes on a CPU never do, its memory is given back
when the matter is over, and the system lets the node's own work go first. It speaks with its parent
through its pipes, and ends with it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import msgspec

from unisono.errors import PeerCheating, PeerRefused, UnisonoError
from unisono.models.store import ModelStore, StoredModel
from unisono.models.weights import BlockWeights
from unisono.types import LayerRange, ModelId, canonical
from unisono.wire.identity import Identity

if TYPE_CHECKING:  # a process that only audits knows no chain
    from unisono.settlement.advocates import Appeal
    from unisono.settlement.briefs import Brief
    from unisono.verification.fraud.holdings import Holdings
    from unisono.verification.fraud.parties import Target

LENGTH_BYTES = 4
"""Before every message on a pipe: how long it is."""

Party = Literal["defender", "challenger"]
Load = Callable[[StoredModel, LayerRange], BlockWeights]
WEIGHTS = "unisono.models.loading:load_block"
"""What reads a block's weights."""
HOLDINGS = "unisono.verification.fraud.positions:holdings_of"
"""What makes the holdings that a node defends in disputes; tests and demonstrations put liars in
its place."""


class Setup(msgspec.Struct, frozen=True, tag=True):
    """The first message. It holds the node's key, and so travels through a pipe only."""

    seed: bytes
    store: str
    model: ModelId
    weights: str
    """MODULE:NAME of what reads a block's weights."""
    holdings: str
    """MODULE:NAME of what makes holdings (`HOLDINGS`), or MODULE:NAME:WORD of what makes that."""
    threads: int
    nice: int

    def __repr__(self) -> str:
        return "Setup(…)"


class Summon(msgspec.Struct, frozen=True, tag=True):
    """A light audit begins; answered with a `TraceCommitment`."""

    summons: bytes
    widths: bytes
    rows: bytes
    """The rows in, if the node kept them."""


class Open(msgspec.Struct, frozen=True, tag=True):
    """A `Challenge`; answered with an `Opening`."""

    challenge: bytes


class Defend(msgspec.Struct, frozen=True, tag=True):
    """A dispute begins; answered with the first moves, as an array."""

    dispute: bytes
    widths: bytes
    rows: bytes


class Hear(msgspec.Struct, frozen=True, tag=True):
    """The challenger's move; answered with what follows from this side, as an array."""

    move: bytes


class Plead(msgspec.Struct, frozen=True, tag=True):
    """A dispute on a chain begins; answered with nothing."""

    brief: bytes
    state: bytes
    """As the court logged it first, in the form of `settlement.briefs`."""
    party: Party = "defender"


class Logged(msgspec.Struct, frozen=True, tag=True):
    """The court logged a move; answered with nothing."""

    state: bytes
    shown: bytes


class Speak(msgspec.Struct, frozen=True, tag=True):
    """What this side sends to the court now; answered with a `Spoken`, or with nothing."""


class Spoken(msgspec.Struct, frozen=True):
    """A call of the court or its judge."""

    function: str
    contract: Literal["court", "judge"]
    data: bytes


class Told(msgspec.Struct, frozen=True, tag=True):
    """What was asked for."""

    data: bytes


class Declined(msgspec.Struct, frozen=True, tag=True):
    """Why there is no answer. Without a code the peer broke the protocol."""

    code: str
    message: str


Ask = Summon | Open | Defend | Hear | Plead | Logged | Speak
Reply = Told | Declined


def encode(message: msgspec.Struct) -> bytes:
    """A message with its length before it."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


class Work:
    """One audit or one dispute."""

    def __init__(self, setup: Setup) -> None:
        """Raises:
        UnisonoError: the model is not in the store.
        """
        self._load = cast(Load, _named(setup.weights))
        self._holdings = setup.holdings
        self._identity = Identity.from_seed(setup.seed)
        self._model = ModelStore(Path(setup.store)).get(setup.model)
        self._answer: Callable[[Ask], bytes] | None = None

    def answer(self, ask: Ask) -> bytes:
        """Answer one message.

        Raises:
            PeerRefused: what is needed is not known any more, or not held.
            PeerCheating: the peer asks what no honest peer asks.
        """
        if isinstance(ask, Summon):
            return self._summoned(ask)
        if isinstance(ask, Defend):
            return self._defend(ask)
        if isinstance(ask, Plead):
            return self._plead(ask)
        if self._answer is None:
            raise PeerCheating("nothing was begun")
        return self._answer(ask)

    def _summoned(self, ask: Summon) -> bytes:
        from unisono.verification.light.messages import Challenge, Summons, decode
        from unisono.verification.light.responder import Responder
        from unisono.wire.rows import decode_rows

        summons, config = decode(ask.summons, Summons), self._model.manifest.config
        rows = None
        if ask.widths:
            rows = decode_rows(ask.widths, ask.rows, config.hidden_size)
        weights = self._load(self._model, summons.claim.layers)
        responder = Responder.summoned(
            summons, self._identity, self._model.id, config, weights, rows
        )

        def respond(challenged: Ask) -> bytes:
            if not isinstance(challenged, Open):
                raise PeerCheating("no challenge of a light audit")
            return responder.respond(decode(challenged.challenge, Challenge))

        self._answer = respond
        return canonical(responder.commit())

    def _defend(self, ask: Defend) -> bytes:
        from unisono.verification.fraud.hosting import Side
        from unisono.verification.fraud.parties import Defender
        from unisono.verification.fraud.wire import checked_rows, decode_dispute

        dispute = decode_dispute(ask.dispute)
        subject = dispute.subject
        side = Side(subject, dispute.challenge, "defender")
        rows = dispute.rows_in()
        if rows is None and ask.widths:
            rows = checked_rows(subject, ask.widths, ask.rows)
        weights = self._load(self._model, subject.claim.layers)
        make = _named(self._holdings)
        player = Defender(self._identity, make(subject, weights, dispute.answer, rows))

        def move(heard: Ask) -> bytes:
            if not isinstance(heard, Hear):
                raise PeerCheating("no move of a dispute")
            side.hear(heard.move)
            return msgspec.msgpack.encode(side.speak(player))

        self._answer = move
        return msgspec.msgpack.encode(side.speak(player))

    def _plead(self, ask: Plead) -> bytes:
        from unisono.settlement.advocates import Case, Defence, Prosecution
        from unisono.settlement.briefs import decode_brief, decode_state
        from unisono.verification.fraud.descriptors import descriptors
        from unisono.verification.fraud.parties import Challenger, Defender
        from unisono.verification.fraud.wire import checked_rows

        brief = decode_brief(ask.brief)
        subject = brief.subject
        if brief.claim is None:
            raise PeerCheating("a brief without a claim for the chain")
        rows = checked_rows(subject, brief.widths, brief.rows) if brief.widths else None
        weights = self._load(self._model, subject.claim.layers)
        holdings = _named(self._holdings)(subject, weights, brief.answer, rows)
        case, state = Case(subject, brief.claim, descriptors(subject.manifest)), ask.state
        if ask.party == "defender":
            advocate = Defence(case, decode_state(state), Defender(self._identity, holdings))
        else:
            target = self._target(brief, weights, holdings)
            advocate = Prosecution(
                case, decode_state(state), Challenger(self._identity, holdings, target)
            )

        def speak(asked: Ask) -> bytes:
            if isinstance(asked, Logged):
                advocate.hear(decode_state(asked.state), asked.shown)
                return b""
            if not isinstance(asked, Speak):
                raise PeerCheating("no part of a dispute on a chain")
            appeal = advocate.appeal()
            return b"" if appeal is None else msgspec.msgpack.encode(_spoken(appeal))

        self._answer = speak
        return b""

    def _target(self, brief: Brief, weights: BlockWeights, holdings: Holdings) -> Target | None:
        """What cannot be true of what a claim signs, where its node defends honest numbers."""
        from unisono.models.decoder import make_decoder
        from unisono.settlement.jury_work import work_of
        from unisono.verification.fraud.parties import first_other_row, first_other_token
        from unisono.verification.stakes.work import recompute

        subject, config = brief.subject, self._model.manifest.config
        found = first_other_row(subject.claim, holdings)
        if found is None and subject.tokens:
            decoder = make_decoder(config, weights)
            try:
                drawn = recompute(decoder, work_of(brief, config.hidden_size)).tokens
            finally:
                decoder.close()
            found = first_other_token(subject, holdings.hop, drawn)
        return found


def _spoken(appeal: Appeal) -> Spoken:
    from unisono.settlement.artifacts import artifact
    from unisono.settlement.claims import NO_PAYER
    from unisono.settlement.ledger.contract import Contract

    interface = Contract(NO_PAYER, artifact(appeal.contract).abi)
    data = interface.encode(appeal.function, *appeal.arguments)
    return Spoken(appeal.function, appeal.contract, data)


def _named(path: str) -> Callable[..., Any]:
    module, name, *word = path.split(":")
    found = cast("Callable[..., Any]", getattr(importlib.import_module(module), name))
    return found(*word) if word else found


def main() -> None:
    """Answer until the parent closes the pipe."""
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no message
    data = _read(incoming)
    if data is None:
        return
    setup = msgspec.msgpack.decode(data, type=Setup)
    if hasattr(os, "nice"):
        os.nice(setup.nice)
    import torch

    torch.set_num_threads(setup.threads)
    work: Work | None = None
    failure: Reply = Declined("not_held", "")
    try:
        work = Work(setup)
    except UnisonoError as error:
        failure = Declined("not_held", str(error)[:1000])
    while (data := _read(incoming)) is not None:
        ask = msgspec.msgpack.decode(data, type=Ask)
        reply = failure if work is None else _reply(work, ask)
        outgoing.write(encode(reply))
        outgoing.flush()


def _reply(work: Work, ask: Ask) -> Reply:
    try:
        return Told(work.answer(ask))
    except PeerRefused as refusal:
        return Declined(refusal.code, str(refusal)[:1000])
    except PeerCheating as error:
        return Declined("", str(error)[:1000])
    except UnisonoError as error:
        return Declined("not_held", str(error)[:1000])


def _read(pipe: BinaryIO) -> bytes | None:
    head = pipe.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    data = pipe.read(int.from_bytes(head, "little"))
    return data if len(data) == int.from_bytes(head, "little") else None


if __name__ == "__main__":
    main()
