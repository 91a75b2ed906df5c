"""Whom a stream is for: its first message says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from unisono.errors import PeerCheating, PeerGone
from unisono.routing.gossip import Gossip
from unisono.routing.notices import NoticeBoard
from unisono.types import NodeId
from unisono.wire.audit_messages import (
    AuditSummons,
    DisputeCall,
    DisputeHost,
    SettlementAsked,
)
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.gossip_messages import Beat, Exchange
from unisono.wire.jury_messages import JuryTask
from unisono.wire.messages import Ping, Pong, Refused
from unisono.wire.notices import NoticesAsked, NoticesTold
from unisono.wire.payment_messages import CreditAsked
from unisono.wire.transports.base import Stream, StreamHandler
from unisono.wire.verification_messages import ReplayTask, RowsTask

if TYPE_CHECKING:  # gateways use this door too, and have neither
    from unisono.compose.credit_desk import CreditDesk
    from unisono.compose.jury_duty import JuryDuty
    from unisono.compose.respondent import Respondent
    from unisono.verification.fraud.hosting import GameHost
    from unisono.verification.stakes.member import Member

FIRST_MESSAGE_SECONDS = 10.0


class FrontDoor:
    """The stream handler of a member: gossip for `Gossip`, the rest for a service."""

    def __init__(self, gossip: Gossip) -> None:
        self._gossip = gossip
        self.service: StreamHandler | None = None
        """Takes the streams that are not gossip; None: there is no such service (yet)."""
        self.respondent: Respondent | None = None
        """Answers for what this node signed; None: it signs nothing (yet)."""
        self.host: GameHost | None = None
        """Hosts disputes of others."""

        self.credits: CreditDesk | None = None
        """Gives back what is owed for service levels; None: this node sells nothing."""
        self.board: NoticeBoard | None = None
        """Hears and tells notices."""
        self.committee: Member | None = None
        """Replays for auditors; None: this member computes nothing (yet)."""
        self.jury: JuryDuty | None = None
        """Sits in cases of a chain's committee; None: this node is on no chain's bench."""

    async def handle(self, stream: Stream) -> None:
        """Serve one stream that a peer opened.

        Raises:
            WireError: the stream failed, or the peer broke the protocol.
        """
        try:
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                frame = await stream.receive()
        except TimeoutError:
            raise PeerGone(f"nothing came in {FIRST_MESSAGE_SECONDS:.0f} s") from None
        message, body = decode_frame(frame)
        if isinstance(message, Exchange | Beat):
            await self._gossip.handle(stream, message, body)
        elif self.board is not None and isinstance(message, NoticesAsked | NoticesTold):
            await self.board.handle(stream, message, body)
        elif self.committee is not None and isinstance(message, ReplayTask | RowsTask):
            await self.committee.handle(stream, message, body)
        elif self.jury is not None and isinstance(message, JuryTask):
            await self.jury.handle(stream, message, body)
        elif self.credits is not None and isinstance(message, CreditAsked):
            await self.credits.handle(stream, message)
        elif isinstance(message, Ping):
            await stream.send(encode_frame(Pong(message.nonce)))
        elif self.respondent is not None and isinstance(
            message, AuditSummons | DisputeCall | SettlementAsked
        ):
            await self.respondent.handle(stream, message, body)
        elif self.host is not None and isinstance(message, DisputeHost):
            await self.host.handle(stream, message, body)
        elif self.service is not None:
            await self.service(ReopenedStream(stream, frame))
        else:
            refusal = Refused("not_ready", "this member serves no sessions, or not yet")
            await stream.send(encode_frame(refusal))
            raise PeerCheating(f"{type(message).__name__} sent to a member without layers")


class ReopenedStream:
    """A stream whose first frame has been read, and is read again."""

    def __init__(self, stream: Stream, first: bytes) -> None:
        self._stream = stream
        self._first: bytes | None = first

    @property
    def peer(self) -> NodeId:
        """See `Stream.peer`."""
        return self._stream.peer

    async def send(self, frame: bytes) -> None:
        """See `Stream.send`."""
        await self._stream.send(frame)

    async def receive(self) -> bytes:
        """See `Stream.receive`."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await self._stream.receive()

    async def close(self) -> None:
        """See `Stream.close`."""
        await self._stream.close()
