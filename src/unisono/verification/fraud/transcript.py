"""A dispute in a file: everything that was signed, for anyone to judge again.

What the parties signed convicts without trust in anybody. Only lateness rests on the word of the
arbiter before whom they played, whose signature covers the times. A challenger names the arbiter,
and may name itself: so lateness convicts only for those who say that they trust this arbiter. On a
chain the arbiter is the contract, and block times are the clock.
"""

from __future__ import annotations

import binascii
from collections.abc import Collection
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.clock import Clock
from unisono.errors import ModelError, PeerCheating, ReceiptError
from unisono.types import NodeId, canonical, digest
from unisono.verification.fraud.game import Conviction, Game
from unisono.verification.fraud.moves import MAX_MOVE, Challenge, Subject
from unisono.verification.verdict import Fault, FaultKind, Verdict
from unisono.wire.identity import Identity, verify_signature

VERSION = 2
MAX_BYTES = 8 << 20
"""Of a file: the manifest, prompt and answer are most of it."""
MAX_MOVES = 256

_KINDS: dict[str, FaultKind] = {
    "timeout": "timeout",
    "equivocation": "equivocation",
    "malformed": "malformed",
    "contradiction": "contradiction",
    "false_step": "false_step",
    "false_challenge": "false_challenge",
}
_UNPLAYABLE = (PeerCheating, ModelError, ArithmeticError, LookupError, TypeError, ValueError)
"""What a subject raises whose hop signed a claim about a model that cannot be."""


class Transcript(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="evidence",
    tag="dispute",
):
    """A game from its challenge to its last move."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    subject: Subject
    challenge: Challenge
    moves: Annotated[
        tuple[Annotated[bytes, Meta(max_length=MAX_MOVE)], ...], Meta(max_length=MAX_MOVES)
    ]
    times_ms: Annotated[tuple[int, ...], Meta(max_length=MAX_MOVES + 2)]
    """When the game began, when each move came, and when the arbiter closed the file."""
    conflict: Annotated[bytes, Meta(max_length=MAX_MOVE)] = b""
    """A second move of a number that is among `moves`, if somebody signed two."""
    signature: bytes = b""
    """The arbiter's, over all of it."""

    def signed_bytes(self) -> bytes:
        """What the arbiter's signature covers: everything else."""
        return digest("fraud-transcript/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def times_are_vouched_for(self) -> bool:
        """Whether the arbiter of the challenge signed times that can be."""
        times = self.times_ms
        return (
            len(times) == len(self.moves) + 2
            and all(0 <= a <= b < 1 << 62 for a, b in pairwise(times))
            and verify_signature(self.challenge.arbiter, self.signed_bytes(), self.signature)
        )


class Arbiter:
    """Whoever hosts a game: a third node that lets parties speak in turn and keeps the time.

    It computes no model, and cannot change what the parties sign.
    """

    def __init__(
        self, subject: Subject, challenge: Challenge, identity: Identity, clock: Clock
    ) -> None:
        """Raises:
        PeerCheating: the game cannot be played (`Game`), or names another arbiter.
        """
        if challenge.arbiter != identity.node_id:
            raise PeerCheating("the challenge names another arbiter")
        self._clock, self._identity = clock, identity
        self._started = self._now()
        self.game = Game(subject, challenge, self._started)
        self._moves: list[bytes] = []
        self._times: list[int] = []
        self._conflict = b""

    def _now(self) -> int:
        return int(self._clock.now() * 1000)

    def receive(self, data: bytes) -> bool:
        """Take a move in. False: no move of now, to be ignored."""
        now, count = self._now(), len(self.game.moves)
        taken = self.game.receive(data, now)
        if len(self.game.moves) > count:
            self._moves.append(data)
            self._times.append(now)
        elif taken:
            self._conflict = data
        return taken

    @property
    def conviction(self) -> Conviction | None:
        """How the game ended, as of now; None while it goes on."""
        self.game.expire(self._now())
        return self.game.conviction

    @property
    def seconds_left(self) -> float:
        """Until the party whose turn it is loses."""
        return max(0.0, (self.game.deadline_ms - self._now()) / 1000)

    def transcript(self) -> Transcript:
        """The game so far, signed."""
        transcript = Transcript(
            VERSION,
            self.game.subject,
            self.game.challenge,
            tuple(self._moves),
            (self._started, *self._times, self._now()),
            self._conflict,
        )
        signature = self._identity.sign(transcript.signed_bytes())
        return msgspec.structs.replace(transcript, signature=signature)


def to_json(transcript: Transcript) -> bytes:
    """The form that is stored: JSON, bytes as base64."""
    return msgspec.json.encode(transcript)


def from_json(data: bytes) -> Transcript:
    """Read a file strictly.

    Raises:
        ReceiptError: too large, or not the transcript of a dispute.
    """
    if len(data) > MAX_BYTES:
        raise ReceiptError(f"the transcript is larger than {MAX_BYTES >> 20} MiB")
    try:
        return msgspec.json.decode(data, type=Transcript)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ModelError) as error:
        raise ReceiptError(f"not the transcript of a dispute: {error}") from error


def check_transcript(data: bytes, trusted: Collection[NodeId] = ()) -> Verdict:
    """Judge a dispute from its file, without weights: INVALID with the party that is convicted,
    or INCONCLUSIVE with what is not shown. `trusted`: arbiters whose clock the reader believes.

    Raises:
        ReceiptError: the file is no transcript.
    """
    return judge(from_json(data), trusted)


def judge(transcript: Transcript, trusted: Collection[NodeId] = ()) -> Verdict:
    """`check_transcript` of a transcript that was read."""
    vouched, arbiter = transcript.times_are_vouched_for(), transcript.challenge.arbiter
    try:
        game = _replayed(transcript, vouched and arbiter in trusted)
        if game.conviction is None and vouched:
            game = _replayed(transcript, vouched)
    except _UNPLAYABLE as error:
        return Verdict("INCONCLUSIVE", message=f"no dispute: {error}")
    if game.conviction is None:
        missing = "" if vouched else ", and no arbiter vouches for its times"
        return Verdict("INCONCLUSIVE", message=f"the dispute is not decided{missing}")
    fault = _fault(game, game.conviction)
    if fault.kind == "timeout" and arbiter not in trusted:
        message = (
            f"arbiter {arbiter} says that node {fault.node} was late: that convicts it for those "
            "who trust this arbiter"
        )
        return Verdict("INCONCLUSIVE", fault, message)
    return Verdict("INVALID", fault, fault.message)


def _replayed(transcript: Transcript, vouched: bool) -> Game:
    """The game as far as the file goes; `vouched`: by the times that it gives."""
    times = transcript.times_ms
    game = Game(transcript.subject, transcript.challenge, times[0] if vouched else 0)
    for number, move in enumerate(transcript.moves):
        if not game.receive(move, times[number + 1] if vouched else 0):
            break
    if transcript.conflict:
        game.receive(transcript.conflict, times[-2] if vouched else 0)
    if vouched:
        game.expire(times[-1])
    return game


def _fault(game: Game, conviction: Conviction) -> Fault:
    claim = game.subject.claim
    cell = conviction.cell
    where = ""
    if cell is not None:
        stage = "exit"
        if cell.stage == 0:
            stage = "entry"
        elif cell.stage < game.hop.stages - 1:
            stage = f"layer {game.hop.layer_of(cell.stage)}"
        where = f" ({stage}, position {cell.position}"
        where += f", '{conviction.tensor}')" if conviction.tensor else ")"
    who = "the hop" if conviction.party == "defender" else "the challenger"
    message = f"{who}, node {conviction.node}, is convicted: {conviction.message}{where}"
    kind = _KINDS[conviction.reason]
    if conviction.party == "challenger":
        return Fault(kind, message, node=conviction.node)
    position = None if cell is None else cell.position
    return Fault(kind, message, claim.hop, claim.node, claim.layers, position)
