"""How often a peer may ask: token buckets, one per peer and one for all."""

from __future__ import annotations

from collections import OrderedDict

from unisono.clock import Clock
from unisono.types import NodeId

PEER_RATE, PEER_BURST = 8.0, 32.0
"""Messages per second of one peer, and at once: some times what an honest one needs."""
RATE, BURST = 256.0, 1024.0
"""The same of all peers together: ids cost nothing, so a limit per id alone is none."""
RECORD_RATE, RECORD_BURST = 256.0, 1024.0
"""Records per second that one peer may bring uncalled: each costs a check of its signature."""
ALL_RECORDS_RATE, ALL_RECORDS_BURST = 1024.0, 4096.0
PUNISHED_SECONDS = 60.0
"""A peer that broke the protocol is not answered this long."""
_MAX_PEERS = 4096


class _Bucket:
    __slots__ = ("since", "tokens")

    def __init__(self, tokens: float, since: float) -> None:
        self.tokens, self.since = tokens, since

    def take(self, now: float, rate: float, burst: float, count: int = 1) -> int:
        """How many of `count` tokens there are; they are gone then."""
        self.tokens = min(burst, self.tokens + (now - self.since) * rate)
        self.since = now
        taken = min(count, int(self.tokens))
        self.tokens -= taken
        return taken


class PeerLimits:
    """Bounded: the peers that asked longest ago are forgotten."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        now = clock.monotonic()
        self._all = _Bucket(BURST, now)
        self._all_records = _Bucket(ALL_RECORDS_BURST, now)
        self._peers: OrderedDict[NodeId, tuple[_Bucket, _Bucket]] = OrderedDict()
        self._punished: OrderedDict[NodeId, float] = OrderedDict()

    def allow(self, peer: NodeId) -> bool:
        """Whether the peer may ask once more now."""
        now = self._clock.monotonic()
        if self._punished.get(peer, now) > now:
            return False
        messages, _ = self._of(peer, now)
        return bool(messages.take(now, PEER_RATE, PEER_BURST) and self._all.take(now, RATE, BURST))

    def allow_records(self, peer: NodeId, count: int) -> int:
        """How many of `count` records that the peer brings are looked at now."""
        now = self._clock.monotonic()
        _, records = self._of(peer, now)
        allowed = records.take(now, RECORD_RATE, RECORD_BURST, count)
        return self._all_records.take(now, ALL_RECORDS_RATE, ALL_RECORDS_BURST, allowed)

    def _of(self, peer: NodeId, now: float) -> tuple[_Bucket, _Bucket]:
        found = self._peers.get(peer)
        if found is None:
            found = _Bucket(PEER_BURST, now), _Bucket(RECORD_BURST, now)
            self._peers[peer] = found
            if len(self._peers) > _MAX_PEERS:
                self._peers.popitem(last=False)
        self._peers.move_to_end(peer)
        return found

    def punish(self, peer: NodeId) -> None:
        """The peer broke the protocol."""
        self._punished[peer] = self._clock.monotonic() + PUNISHED_SECONDS
        self._punished.move_to_end(peer)
        if len(self._punished) > _MAX_PEERS:
            self._punished.popitem(last=False)
