"""What a dispute is about, and what its parties sign: the challenge, and each move.

All of it is MessagePack in its canonical form, moves as arrays. A move names the game, its own
number and the hash of the move before it, so that two moves of one number are a proof against
whoever signed both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

import msgspec
from msgspec import UNSET

from unisono.errors import CorruptModel, PeerCheating
from unisono.models.config import DecoderConfig
from unisono.models.manifest import Manifest
from unisono.types import (
    GenerationRequest,
    NodeId,
    canonical,
    digest,
    is_hex,
    request_hash,
)
from unisono.verification.fraud.tree import HASH
from unisono.wire.bounds import MAX_POSITIONS
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.identity import Identity, verify_signature

MAX_MOVE = 1023
"""Bytes of a move with its signature: under 1 KB."""
MAX_PATH = 32
"""Levels of an opening's path."""
LEVELS = 4
"""Levels of a tree that one move reveals."""
SALT_BYTES = 16
MOVE_SECONDS = 60
"""How long a party may take for a move."""

_DECIMAL = re.compile(r"-?[0-9]{1,24}(\.[0-9]{1,24})?(e[+-]?[0-9]{1,2})?")
_SCALINGS = frozenset(("none", "linear", "llama3", "yarn", "factors"))


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a dispute is about: one hop's claim, with what its hashes stand for."""

    claim: HopClaim
    request: GenerationRequest
    tokens: tuple[int, ...]
    """The answer; empty unless the hop ends the model."""
    manifest: Manifest

    def problem(self) -> str | None:
        """Why these do not belong together or cannot be played about, or None."""
        claim, config = self.claim, self.manifest.config
        if not claim.signature_is_good():
            return "the claim is not signed by the node that it names"
        if claim.distributions is not UNSET:
            return "an ensemble chose the tokens, which no step of the game shows; replay the claim"
        if not all(_DECIMAL.fullmatch(x) for x in _decimals(config)):
            return "the configuration holds a number that no model has"
        try:
            self.manifest.check()
            if self.manifest.model_id != claim.model:
                return "the manifest is another model's than the claim's"
        except (CorruptModel, OverflowError, ValueError) as error:
            return f"the manifest is unusable: {error}"
        if not 0 <= claim.layers.start < claim.layers.stop <= config.layer_count:
            return f"the model has no layers {claim.layers}"
        if not 0 < claim.positions <= MAX_POSITIONS:
            return f"a claim over {claim.positions} positions"
        if not all(is_hex(root, HASH) for root in (claim.rows_in, claim.rows_out)):
            return "a root in the claim is not 64 hex digits"
        sequence = (*self.request.prompt, *self.tokens)
        if not all(0 <= token < 1 << 31 for token in sequence):
            return "a token is out of range"
        if request_hash(self.request) != claim.request:
            return "the request is another than the claim's"
        last = claim.layers.stop == config.layer_count
        if last and claim.tokens != tokens_root(self.tokens):
            return "the answer is another than the claim's"
        if last and not 0 < len(self.request.prompt) <= claim.positions == len(sequence) - 1:
            return "the claim covers another number of positions than prompt and answer have"
        return self.request.sampling.problem(config.vocabulary_size)


def _decimals(config: DecoderConfig) -> Iterator[str]:
    """Every decimal string of a configuration: exact arithmetic with them must stay short."""
    yield config.norm_epsilon
    for rope in (config.rope, config.local_rope):
        for value in msgspec.structs.astuple(rope):
            if isinstance(value, tuple):
                yield from cast("tuple[str, ...]", value)
            elif isinstance(value, str):
                yield value if value not in _SCALINGS else "0"


class Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The move that opens a game: somebody contradicts a claim, before an arbiter whose clock
    counts."""

    claim: bytes
    """`HopClaim.signed_bytes` of what is contradicted."""
    challenger: NodeId
    arbiter: NodeId
    salt: bytes
    """16 bytes: a second game about the same claim is another game."""
    signature: bytes = b""

    def game(self) -> bytes:
        """The game's id, 32 bytes."""
        blank = msgspec.structs.replace(self, signature=b"")
        return digest("fraud-challenge/1", canonical(blank))

    def signed_by(self, identity: Identity) -> Challenge:
        """The same challenge with the challenger's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.game()))

    def signature_is_good(self) -> bool:
        """Whether the challenger signed it."""
        return verify_signature(self.challenger, self.game(), self.signature)


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """One kind of move."""


class Commit(_Body, frozen=True, array_like=True, tag=0):
    """The defender's first move: the root of its grid."""

    root: bytes


class Reveal(_Body, frozen=True, array_like=True, tag=1):
    """The defender shows the nodes up to four levels below the node in dispute, joined."""

    hashes: bytes


class Choose(_Body, frozen=True, array_like=True, tag=2):
    """The challenger says which of what was shown it contradicts."""

    index: int


class OpenCell(_Body, frozen=True, array_like=True, tag=3):
    """The defender shows the kept tensors' roots of the cell in dispute, joined, and commits to
    the cell's trace."""

    kept: bytes
    trace: bytes


class Block(_Body, frozen=True, array_like=True, tag=4):
    """The defender shows the leaf in dispute."""

    payload: bytes


class Opening(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A leaf that the step needs, or with `skip` > 0 the node that many levels above it, and
    the siblings from there up to a node that is known already."""

    slot: int
    skip: int
    payload: bytes
    path: bytes


class Open(_Body, frozen=True, array_like=True, tag=5):
    """The defender shows leaves that the step needs."""

    openings: tuple[Opening, ...]


class Split(_Body, frozen=True, array_like=True, tag=6):
    """The defender cuts the sum or maximum in dispute into parts."""

    parts: tuple[tuple[int, ...], ...]


Body = Commit | Reveal | Choose | OpenCell | Block | Open | Split


class Move(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A body with its place in the game, signed."""

    number: int
    previous: bytes
    """`Move.digest` of the move before it; of the first, the game's id."""
    body: Body
    signature: bytes = b""

    def signed_bytes(self, game: bytes) -> bytes:
        """What the signature covers."""
        number = self.number.to_bytes(2, "little")
        return digest("fraud-move/1", game, number, self.previous, canonical(self.body))

    def digest(self, game: bytes) -> bytes:
        """The hash that the next move names."""
        return self.signed_bytes(game)

    def signed_by(self, identity: Identity, game: bytes) -> Move:
        """The same move with a party's signature."""
        signature = identity.sign(self.signed_bytes(game))
        return msgspec.structs.replace(self, signature=signature)

    def is_signed_by(self, node: NodeId, game: bytes) -> bool:
        """Whether a party signed this move of this game."""
        return verify_signature(node, self.signed_bytes(game), self.signature)


def room() -> int:
    """Bytes that a body may have, so that the move stays below `MAX_MOVE`."""
    empty = Move(255, bytes(HASH), Choose(0), bytes(64))
    return MAX_MOVE - len(canonical(empty)) + len(canonical(Choose(0)))


def encode_move(move: Move) -> bytes:
    """The bytes of a move."""
    return canonical(move)


def decode_move(data: bytes) -> Move:
    """Read a move strictly.

    Raises:
        PeerCheating: too long, not a move, not in canonical form, or a part out of bounds.
    """
    if len(data) > MAX_MOVE:
        raise PeerCheating(f"a move has at most {MAX_MOVE} bytes; got {len(data)}")
    try:
        move = msgspec.msgpack.decode(data, type=Move)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerCheating(f"not a move: {error}") from error
    if canonical(move) != data:
        raise PeerCheating("a move that is not in canonical form")
    if not 0 <= move.number < 1 << 16 or len(move.previous) != HASH:
        raise PeerCheating("a move with a number or a predecessor out of bounds")
    return move


def body_problem(body: Body) -> str | None:
    """What is out of bounds whatever the game's state, or None."""
    if isinstance(body, Open):
        for opening in body.openings:
            if len(opening.payload) > MAX_MOVE or len(opening.path) > MAX_PATH * HASH:
                return "an opening is too long"
            if len(opening.path) % HASH or opening.skip < 0 or opening.slot < 0:
                return "an opening is malformed"
    return None
