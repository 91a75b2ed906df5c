"""Nodes that a member can reach but keeps no live record of.

For every region beside its own a member remembers a few nodes, as the buckets of Kademlia do
(Maymounkov and Mazières, IPTPS 2002): those regions together are the rest of the network, so
anybody can be found in a logarithmic number of steps. Beside them it remembers some nodes of
its own region that went silent: after a partition they are the way back.

A contact is a signed record whose lease may have ended, never an address by hearsay.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from unisono.clock import Clock
from unisono.routing.entry import Entry, shared_bits
from unisono.types import NodeId

BUCKET = 3
"""Contacts per sibling region."""
MAX_LOST = 32
"""Silent nodes of the own region."""
KEPT_SECONDS = 3600.0
"""Since somebody heard of it last."""
MAX_FAILURES = 6
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5.0, 300.0


class Contact:
    """One of them, and how it was when last tried."""

    __slots__ = ("entry", "failures", "heard", "proved", "retry")

    def __init__(self, entry: Entry, heard: float, proved: bool) -> None:
        self.entry = entry
        self.heard = heard
        self.proved = proved
        """Whether it answered this member itself."""
        self.failures = 0
        self.retry = 0.0
        """Monotonic seconds before which it is left alone."""


class Contacts:
    """Bounded: `BUCKET` per bit of depth, and `MAX_LOST`."""

    def __init__(self, clock: Clock, key: bytes) -> None:
        """`key`: the hash of the member's own id."""
        self._clock = clock
        self._key = key
        self._buckets: dict[int, dict[NodeId, Contact]] = {}
        self._lost: dict[NodeId, Contact] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values())) + len(self._lost)

    def __iter__(self) -> Iterator[Contact]:
        for bucket in self._buckets.values():
            yield from bucket.values()
        yield from self._lost.values()

    def find(self, node: NodeId) -> Contact | None:
        """The contact of that id."""
        return next((c for c in self if c.entry.record.node == node), None)

    def offer(self, entry: Entry, depth: int, *, proved: bool) -> None:
        """Remember a node of another region than the own one of `depth` bits, if there is room.

        A contact that answers is never displaced by one that is only heard of: whoever floods
        a bucket with new ids does not empty it.
        """
        bit = shared_bits(self._key, entry.key)
        if bit >= depth:
            return
        bucket = self._buckets.setdefault(bit, {})
        node, now = entry.record.node, self._clock.monotonic()
        known = bucket.get(node)
        if known is not None:
            if entry.record.sequence > known.entry.record.sequence:
                entry.depth, entry.known = known.entry.depth, known.entry.known
                known.entry = entry
            if proved:
                known.heard, known.proved = now, True
                known.failures, known.retry = 0, 0.0
            return
        if len(bucket) >= BUCKET:
            worst = max(bucket.values(), key=lambda c: (c.failures, not c.proved, -c.heard))
            if not worst.failures and (worst.proved or not proved):
                return
            del bucket[worst.entry.record.node]
        bucket[node] = Contact(entry, now, proved)

    def hint(self, entry: Entry, depth: int) -> None:
        """Remember a node that another member named, if there is room."""
        if shared_bits(self._key, entry.key) < depth:
            self.offer(entry, depth, proved=False)
        elif len(self._lost) < MAX_LOST and entry.record.node not in self._lost:
            self._lost[entry.record.node] = Contact(entry, self._clock.monotonic(), False)

    def lose(self, entry: Entry) -> None:
        """Remember a node of the own region whose lease ended without a farewell."""
        if len(self._lost) >= MAX_LOST:
            oldest = min(self._lost.values(), key=lambda c: (-c.failures, c.heard))
            del self._lost[oldest.entry.record.node]
        self._lost[entry.record.node] = Contact(entry, self._clock.monotonic(), True)

    def found(self, node: NodeId) -> None:
        """A live record of the node is kept now."""
        self._lost.pop(node, None)

    def failed(self, node: NodeId) -> None:
        """It did not answer; it is tried less and less, and then forgotten."""
        for bucket in (*self._buckets.values(), self._lost):
            contact = bucket.get(node)
            if contact is None:
                continue
            contact.failures += 1
            if bucket is self._lost:  # a former member is remembered as long as anything is
                hopeless = not contact.proved
            else:
                hopeless = contact.failures >= MAX_FAILURES
            if hopeless:
                del bucket[node]
                return
            wait = FIRST_RETRY_SECONDS * 2 ** min(10, contact.failures - 1)
            contact.retry = self._clock.monotonic() + min(LONGEST_RETRY_SECONDS, wait)

    def regrouped(self, depth: int) -> None:
        """The own region has `depth` bits now: contacts inside it are looked for at once."""
        for bit in [b for b in self._buckets if b >= depth]:
            for contact in self._buckets.pop(bit).values():
                self.lose(contact.entry)
        inside = [c for c in self._lost.values() if shared_bits(self._key, c.entry.key) < depth]
        for contact in inside:
            del self._lost[contact.entry.record.node]
            self.offer(contact.entry, depth, proved=False)

    def outside(self, rng: random.Random) -> Contact | None:
        """One of another region that may be tried now; every region is as likely."""
        self._expire()
        due = [b for b in map(self._due, self._buckets.values()) if b]
        return rng.choice(rng.choice(due)) if due else None

    def lost(self, rng: random.Random) -> Contact | None:
        """A silent one of the own region that may be tried now."""
        self._expire()
        due = self._due(self._lost)
        return rng.choice(due) if due else None

    def sparse(self, depth: int) -> int | None:
        """The number of a bucket that has room, the emptiest first; None: all are full."""
        sizes = [(len(self._buckets.get(bit, ())), bit) for bit in range(depth)]
        size, bit = min(sizes, default=(BUCKET, 0))
        return bit if size < BUCKET else None

    def sibling(self, depth: int) -> Iterable[Contact]:
        """Those whose region joins the own one if that loses its last bit."""
        return self._buckets.get(depth - 1, {}).values()

    def _due(self, bucket: dict[NodeId, Contact]) -> list[Contact]:
        now = self._clock.monotonic()
        return [c for c in bucket.values() if c.retry <= now]

    def _expire(self) -> None:
        limit = self._clock.monotonic() - KEPT_SECONDS
        for bucket in (*self._buckets.values(), self._lost):
            for node in [n for n, c in bucket.items() if c.heard < limit]:
                del bucket[node]
