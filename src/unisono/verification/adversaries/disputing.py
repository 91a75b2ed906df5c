"""Parties of a dispute that play to cost the other side something, and the dispute itself."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from unisono.clock import VirtualClock
from unisono.verification.fraud.game import Conviction, Game
from unisono.verification.fraud.moves import Body, Choose, Move, encode_move
from unisono.verification.fraud.transcript import Arbiter
from unisono.wire.identity import Identity


class Player(Protocol):
    """A party of a dispute."""

    def move(self, game: Game) -> bytes:
        """The signed move; it is this party's turn."""
        ...


@dataclass(frozen=True, slots=True)
class Griefing:
    """A challenger that contradicts a claim without having computed anything, at random places,
    so that the hop must regenerate its trace and answer."""

    identity: Identity
    chance: random.Random

    def move(self, game: Game) -> bytes:
        """See `Player.move`."""
        move = Move(len(game.moves), game.previous, self._body(game))
        return encode_move(move.signed_by(self.identity, game.id))

    def _body(self, game: Game) -> Body:
        if game.phase == "choose":
            depth, first = game.depth + game.shown, game.index << game.shown
            shown = range(1 << game.shown)
            return Choose(self.chance.choice([i for i in shown if game.exists(depth, first + i)]))
        if game.phase == "element":
            return Choose(self.chance.randrange(len(game.block[1])))
        assert game.inquiry is not None
        return Choose(self.chance.randrange(len(game.inquiry.parts)))


@dataclass(frozen=True, slots=True)
class Slow:
    """A party that moves as late as it may, or later."""

    player: Player
    seconds: float
    """Before each of its moves."""

    def move(self, game: Game) -> bytes:
        """See `Player.move`."""
        return self.player.move(game)


async def play(
    arbiter: Arbiter, clock: VirtualClock, defender: Player, challenger: Player
) -> Conviction:
    """Let both sides move in turn before an arbiter, each in its own time, until one loses."""
    while (conviction := arbiter.conviction) is None:
        player = defender if arbiter.game.turn == "defender" else challenger
        move = player.move(arbiter.game)
        await clock.advance(player.seconds if isinstance(player, Slow) else 0.0)
        arbiter.receive(move)
    return conviction
