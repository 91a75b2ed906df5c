"""Who is here: signed records that expire."""

from __future__ import annotations

import asyncio
import logging

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerGone, PeerRefused
from unisono.routing.placement import vacancy
from unisono.types import LayerRange, ModelId, NodeId
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Ping, Pong, Refused
from unisono.wire.records import LEASE_SECONDS, Announce, Announced, NodeRecord
from unisono.wire.transports.base import Stream

log = logging.getLogger(__name__)

SILENCE_SECONDS = LEASE_SECONDS
"""A stream on which nothing comes this long is closed."""
MAX_NODES = 10_000
_CLOCK_SKEW_MS = 5_000
_RECORDS_PER_STREAM = 1 << 20


class Directory:
    """The records of a network's nodes, and the blocks that newcomers are given."""

    def __init__(
        self,
        clock: Clock,
        blocks: dict[ModelId, tuple[LayerRange, ...]],
    ) -> None:
        """`blocks`: per model, the blocks that nodes without one of their own are given."""
        self._clock = clock
        self._blocks = blocks
        self._records: dict[NodeId, NodeRecord] = {}
        self._unreachable: dict[NodeId, int] = {}

    def accept(self, record: NodeRecord, sender: NodeId) -> None:
        """Take in a record that came over a stream from `sender`.

        Raises:
            PeerRefused: forged, replayed, of somebody else, expired, or dated in the future.
        """
        now = int(self._clock.now() * 1000)
        if record.node != sender or not record.signature_is_good():
            raise PeerRefused("the record is not signed by the node that sent it", "forged")
        if not now < record.expires <= now + int(LEASE_SECONDS * 1000) + _CLOCK_SKEW_MS:
            raise PeerRefused(
                f"the record expires {record.expires - now} ms from now; a lease is "
                f"{LEASE_SECONDS:.0f} s: check the node's clock",
                "bad_lease",
            )
        known = self._records.get(record.node)
        if known is not None and record.sequence <= known.sequence:
            raise PeerRefused(f"record {record.sequence} is not newer than the known one", "old")
        if known is None and len(self._records) >= MAX_NODES:
            self._expire()
            if len(self._records) >= MAX_NODES:
                raise PeerRefused(f"{MAX_NODES} nodes are known already", "full")
        if known is None:
            log.info("node %s joins with layers %s", record.node[:8], record.layers)
        self._records[record.node] = record

    def assignment(self, record: NodeRecord) -> tuple[ModelId, LayerRange] | None:
        """A block for a node that holds none: the one with the fewest holders."""
        if record.model:
            return None
        for model, blocks in self._blocks.items():
            held = [r.layers for r in self.records() if r.model == model]
            return model, vacancy(blocks, held)
        return None

    def records(self) -> list[NodeRecord]:
        """Records whose lease runs, of nodes that answered when last tried."""
        self._expire()
        return [r for r in self._records.values() if r.node not in self._unreachable]

    def all_records(self) -> list[tuple[NodeRecord, bool]]:
        """Every record whose lease runs, and whether the node answers."""
        self._expire()
        return [(r, r.node not in self._unreachable) for r in self._records.values()]

    def suspect(self, node: NodeId) -> None:
        """The node did not answer: leave it out until it announces itself again."""
        record = self._records.get(node)
        if record is not None:
            self._unreachable[node] = record.sequence

    def _expire(self) -> None:
        now = int(self._clock.now() * 1000)
        for node in [n for n, r in self._records.items() if r.expires <= now]:
            log.info("the lease of node %s ended", node[:8])
            del self._records[node]
        for node, sequence in list(self._unreachable.items()):
            record = self._records.get(node)
            if record is None or record.sequence > sequence:
                del self._unreachable[node]

    async def handle(self, stream: Stream) -> None:
        """Serve one stream of a node: its announcements, as long as it keeps sending them.

        Raises:
            WireError: the stream ended, or the peer broke the protocol.
        """
        for _ in range(_RECORDS_PER_STREAM):
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    message, _ = decode_frame(await stream.receive())
            except TimeoutError:
                raise PeerGone(f"nothing came in {SILENCE_SECONDS:.0f} s") from None
            if isinstance(message, Ping):
                await stream.send(encode_frame(Pong(message.nonce)))
                continue
            if not isinstance(message, Announce):
                raise PeerCheating(f"{type(message).__name__} sent to a directory")
            try:
                self.accept(message.record, stream.peer)
            except PeerRefused as refusal:
                await stream.send(encode_frame(Refused(refusal.code, str(refusal))))
                raise
            given = self.assignment(message.record)
            model, layers = given or (None, None)
            await stream.send(encode_frame(Announced(int(LEASE_SECONDS * 1000), layers, model)))
