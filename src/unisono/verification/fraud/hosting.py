"""A dispute between processes: two sides that follow the game, and the arbiter between them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerGone, PeerRefused, ReceiptError, WireError
from unisono.types import PeerAddress, canonical
from unisono.verification.fraud.game import Conviction, Game, Party
from unisono.verification.fraud.moves import Challenge, Subject
from unisono.verification.fraud.transcript import Arbiter, Transcript, from_json, to_json
from unisono.verification.fraud.wire import Dispute, decode_dispute
from unisono.wire.audit_messages import DisputeCall, DisputeHost, DisputeMove, DisputeOver
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Refused
from unisono.wire.transports.base import Stream, Transport

if TYPE_CHECKING:  # a node that hosts a game computes nothing, and loads no torch
    from unisono.verification.fraud.parties import Player

MAX_GAMES = 4
"""That one node hosts at once."""
MAX_IGNORED = 16
"""Frames that are no moves, after which a side is not listened to any more."""


class Side:
    """A party that follows a game from what both sign."""

    def __init__(self, subject: Subject, challenge: Challenge, party: Party) -> None:
        """Raises:
        PeerCheating: the game cannot be played (`Game`).
        """
        # time is the arbiter's matter: nobody is late here
        self.game = Game(subject, challenge, 0)
        self._party = party

    def hear(self, move: bytes) -> None:
        """Take in the other party's move.

        Raises:
            PeerCheating: it is none of now.
        """
        if self.game.turn == self._party or not self.game.receive(move, 0):
            raise PeerCheating("a move that is not the other party's next one")

    def speak(self, player: Player) -> list[bytes]:
        """This party's moves until it is the other's turn, or somebody is convicted."""
        moves: list[bytes] = []
        while self.game.conviction is None and self.game.turn == self._party:
            moves.append(player.move(self.game))
            if not self.game.receive(moves[-1], 0):
                raise PeerGone("this side's own move does not fit the game")
        return moves


class Voice(Protocol):
    """How an arbiter reaches a party."""

    async def hear(self, move: bytes) -> None:
        """Tell it the other party's move.

        Raises:
            WireError: it cannot be told.
        """
        ...

    async def speak(self) -> bytes:
        """What it says next.

        Raises:
            WireError: it will not say anything any more.
        """
        ...


async def host(arbiter: Arbiter, defender: Voice, challenger: Voice, clock: Clock) -> Conviction:
    """Let both speak in turn until somebody is convicted. A party that has gone loses when its
    time is over, as one that is silent does.

    Raises:
        PeerRefused: the defender will not play; `wait_out` holds that against it.
    """
    voices: dict[Party, Voice] = {"defender": defender, "challenger": challenger}
    while True:
        conviction = arbiter.conviction
        if conviction is not None:
            return conviction
        party = arbiter.game.turn
        move = await _next(arbiter, voices[party], clock)
        if move is not None:
            try:
                await voices["challenger" if party == "defender" else "defender"].hear(move)
            except WireError:
                continue  # its turn is next, and its time runs


async def _next(arbiter: Arbiter, voice: Voice, clock: Clock) -> bytes | None:
    """The next move of whoever's turn it is, which the arbiter has taken in; None: it is late."""
    for _ in range(MAX_IGNORED):
        timer = asyncio.ensure_future(clock.sleep(arbiter.seconds_left))
        speaking = asyncio.ensure_future(voice.speak())
        try:
            await asyncio.wait((timer, speaking), return_when=asyncio.FIRST_COMPLETED)
            if not speaking.done():
                break
            data = speaking.result()
            if arbiter.receive(data):
                return data
        except PeerRefused:
            if not arbiter.game.moves:
                raise
            break
        except WireError:
            break
        finally:
            timer.cancel()
            speaking.cancel()
    await wait_out(arbiter, clock)
    return None


async def wait_out(arbiter: Arbiter, clock: Clock) -> Conviction:
    """Let the time of the party in turn pass."""
    while True:
        conviction = arbiter.conviction
        if conviction is not None:
            return conviction
        await clock.sleep(arbiter.seconds_left + 0.001)


class StreamVoice:
    """A party at the other end of a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def hear(self, move: bytes) -> None:
        """See `Voice.hear`."""
        await self._stream.send(encode_frame(DisputeMove(), move))

    async def speak(self) -> bytes:
        """See `Voice.speak`.

        Raises:
            PeerRefused: it will not play.
        """
        message, body = decode_frame(await self._stream.receive())
        if isinstance(message, Refused):
            raise PeerRefused(message.message, message.code)
        if not isinstance(message, DisputeMove):
            raise PeerCheating(f"{type(message).__name__} in a dispute")
        return bytes(body)


class OwnVoice:
    """A party in this process; it computes beside the event loop."""

    def __init__(self, side: Side, player: Player) -> None:
        self._side, self._player = side, player
        self._said: list[bytes] = []

    async def hear(self, move: bytes) -> None:
        """See `Voice.hear`."""
        self._side.hear(move)

    async def speak(self) -> bytes:
        """See `Voice.speak`."""
        if not self._said:
            self._said = await asyncio.to_thread(self._side.speak, self._player)
        if not self._said:
            raise PeerGone("nothing more is to be said")
        return self._said.pop(0)


class GameHost:
    """A node as the arbiter of other nodes' disputes: it computes nothing but the last step."""

    def __init__(self, identity: Identity, transport: Transport, clock: Clock) -> None:
        self._identity, self._transport, self._clock = identity, transport, clock
        self._running = 0

    async def handle(self, stream: Stream, message: DisputeHost, body: memoryview) -> None:
        """Host a game for the challenger at the other end of a stream.

        Raises:
            WireError: the challenger is gone, or broke the protocol.
        """
        if self._running >= MAX_GAMES:
            refusal = Refused("capacity", f"{self._running} games are under way")
            await stream.send(encode_frame(refusal))
            return
        dispute = decode_dispute(bytes(body))
        if dispute.challenge.challenger != stream.peer:
            raise PeerCheating("a challenge of somebody else")
        if message.defender.node != dispute.subject.claim.node:
            raise PeerCheating("the defender's address is of another node than the claim")
        arbiter = Arbiter(dispute.subject, dispute.challenge, self._identity, self._clock)
        self._running += 1
        try:
            await self._host(arbiter, stream, message, bytes(body))
        finally:
            self._running -= 1

    async def _host(
        self, arbiter: Arbiter, stream: Stream, message: DisputeHost, dispute: bytes
    ) -> None:
        called: Stream | None = None
        try:
            try:
                called = await self._transport.dial(message.defender)
                await called.send(encode_frame(DisputeCall(), dispute))
                voices = StreamVoice(called), StreamVoice(stream)
                await host(arbiter, *voices, self._clock)
            except WireError:
                await wait_out(arbiter, self._clock)
            transcript = encode_frame(DisputeOver(), to_json(arbiter.transcript()))
            if called is not None:
                with suppress(WireError):
                    await called.send(transcript)
            await stream.send(transcript)
        finally:
            if called is not None:
                await called.close()


async def play_here(
    dispute: Dispute, player: Player, identity: Identity, stream: Stream, clock: Clock
) -> Transcript:
    """Play as the challenger, and as the arbiter named in the challenge, with the node at the
    other end of a stream.

    Raises:
        PeerRefused: the node will not play.
        PeerCheating: the game cannot be played.
        WireError: the node cannot be told of the game.
    """
    await stream.send(encode_frame(DisputeCall(), canonical(dispute)))
    arbiter = Arbiter(dispute.subject, dispute.challenge, identity, clock)
    own = OwnVoice(Side(dispute.subject, dispute.challenge, "challenger"), player)
    await host(arbiter, StreamVoice(stream), own, clock)
    transcript = arbiter.transcript()
    with suppress(WireError):
        await stream.send(encode_frame(DisputeOver(), to_json(transcript)))
    return transcript


async def play_before(
    dispute: Dispute, player: Player, defender: PeerAddress, stream: Stream
) -> Transcript:
    """Play as the challenger before the arbiter at the other end of a stream.

    Raises:
        PeerRefused: the arbiter will not host the game.
        PeerCheating: it broke the protocol.
        WireError: it is gone.
    """
    await stream.send(encode_frame(DisputeHost(defender), canonical(dispute)))
    side = Side(dispute.subject, dispute.challenge, "challenger")
    while True:
        message, body = decode_frame(await stream.receive())
        if isinstance(message, Refused):
            raise PeerRefused(message.message, message.code)
        if isinstance(message, DisputeOver):
            return _transcript(bytes(body), dispute)
        if not isinstance(message, DisputeMove):
            raise PeerCheating(f"{type(message).__name__} in a dispute")
        side.hear(bytes(body))
        for move in await asyncio.to_thread(side.speak, player):
            await stream.send(encode_frame(DisputeMove(), move))


def _transcript(data: bytes, dispute: Dispute) -> Transcript:
    try:
        transcript = from_json(data)
    except ReceiptError as error:
        raise PeerCheating(f"the arbiter's transcript: {error}") from error
    if transcript.challenge != dispute.challenge:
        raise PeerCheating("the arbiter's transcript is of another game")
    return transcript
