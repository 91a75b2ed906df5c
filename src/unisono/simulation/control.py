"""Control traffic: bytes that serve nobody's answer. Counted in the real messages' sizes."""

from __future__ import annotations

from collections.abc import Iterable

from unisono.simulation.events import SECOND
from unisono.types import LayerRange, ModelId, NodeId, PeerAddress, SampledToken, SessionId
from unisono.wire.claims import HopClaim
from unisono.wire.frames import encode_frame
from unisono.wire.link import PING_SECONDS
from unisono.wire.messages import Claimed, Finish, Message, Ping, Pong, Refused, Tokens

PACKET_BYTES = 80
"""Of every message beside its frame: IP and TCP or QUIC headers, and the seal."""
TAG_BYTES = 3
"""Of a claim, per position."""
GOSSIP_BYTES, GOSSIP_BYTES_EACH = 3_000.0, 50.0
"""Frames that a member sends per second for gossip, and what each member of its region adds.
Measured with the real exchanges by `bench/gossip.py`: 3.0, 8.1 and 15.6 KB/s in regions of 10, 100
and 250 members."""
KNOWN_MS = 5_250
"""Until 99 % of a region of 250 know a renewed record, by the same measurement."""
FAREWELL_MS = 1_500
"""Until nobody there holds the record of a node that said goodbye."""
GONE_MS = 12_500
"""Until nobody there holds the record of a node that was killed."""


class Control:
    """Counts bytes sent, by what they are for."""

    def __init__(self) -> None:
        node, session = NodeId("0" * 64), SessionId("0" * 32)
        address = PeerAddress(node, "iroh", ("192.0.2.1:12345",))
        self._ping = _size(Ping(1 << 20)) + _size(Pong(1 << 20))
        self._token = _size(Tokens(session, (SampledToken(1000, 100_000),)))
        self._refusal = _size(Refused("capacity", "x" * 60))
        claim = HopClaim(
            session=session,
            request="0" * 64,
            gateway=node,
            model=ModelId("0" * 64),
            node=node,
            hop=1,
            layers=LayerRange(0, 40),
            positions=1000,
            rows_in="0" * 64,
            rows_out="0" * 64,
            out_tags=b"",
            tokens="0" * 64,
            epoch=0,
            signature=b"0" * 64,
        )
        self._claim = _size(Finish(session, 100)) + _size(Claimed(claim))
        # an Open is an address, four ids and some numbers; its tokens are the request's own
        self._open = 2 * len(str(address)) + 4 * 64 + 400 + 2 * PACKET_BYTES
        self.bytes = {"gossip": 0.0, "sessions": 0.0, "pings": 0.0, "claims": 0.0}

    def opened(self, hops: int) -> None:
        """A chain was opened: `Open` and `Opened` with every hop."""
        self.bytes["sessions"] += self._open * hops

    def refused(self) -> None:
        """A hop said no."""
        self.bytes["sessions"] += self._open + self._refusal

    def finished(self, hops: int, positions: int) -> None:
        """Every hop signed a claim with a tag per position."""
        self.bytes["claims"] += (self._claim + TAG_BYTES * positions) * hops

    def elapsed(self, microseconds: int, regions: Iterable[int], links: int) -> None:
        """Time passed with so many members in every region, and so many links in use."""
        seconds = microseconds / SECOND
        for members in regions:
            each = GOSSIP_BYTES + GOSSIP_BYTES_EACH * members
            self.bytes["gossip"] += each * members * seconds
        self.bytes["pings"] += self._ping * links * seconds / PING_SECONDS

    def per_machine(self, machine_seconds: float) -> dict[str, float]:
        """Bytes per second and machine, by what they are for."""
        return {name: round(sent / machine_seconds, 2) for name, sent in self.bytes.items()}


def _size(message: Message) -> int:
    return len(encode_frame(message)) + PACKET_BYTES
