"""Who is here: the signed records that a member knows.

A member keeps the records of its own region: the nodes whose hash (SHA-256 of the id) shares
its first bits with the member's own, with as few bits as leave at most `view` of them. In a
network of up to `view` nodes everyone knows everyone; a larger one falls into regions of about
the same size, so that what a member stores, sends and checks stays the same however large the
network grows. `contacts` lead out of the region.

Of every node the record with the highest sequence number wins, in whatever order records
arrive. Nothing outlives its lease, and nothing that was replaced comes back.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from unisono.clock import Clock
from unisono.errors import PeerRefused
from unisono.routing.contacts import KEPT_SECONDS, Contacts
from unisono.routing.entry import (
    Entry,
    contains,
    distance,
    make_entry,
    node_key,
    prefix,
    region_of,
)
from unisono.routing.suspicion import Suspicion
from unisono.types import NodeId, PeerAddress, canonical
from unisono.wire.gossip_messages import (
    KEY_BYTES,
    MAX_DEPTH,
    MAX_DIGEST,
    MAX_RECORD_BYTES,
    Region,
    decode_record,
    read_digest,
)
from unisono.wire.records import LEASE_SECONDS, NodeRecord

log = logging.getLogger(__name__)

VIEW = 256
"""Records that a member keeps, unless it chooses another number."""
SKEW_SECONDS = 5.0
"""By so much may the clocks of two honest nodes differ."""
SETTLED_SECONDS = 30.0
"""After its region changed a member waits this long before it widens it."""
FEW = 8
"""A region with fewer nodes is too small to be found by others."""


class Membership:
    """The records of a member, its own included, and what became of those it refused."""

    def __init__(
        self,
        clock: Clock,
        own: NodeId,
        *,
        view: int = VIEW,
        signature_is_good: Callable[[NodeRecord], bool] = NodeRecord.signature_is_good,
    ) -> None:
        """`own`: the member's id. `view`: records to keep, at least 16."""
        self._clock = clock
        self.own = own
        self.key = node_key(own)
        self.view = max(16, view)
        self.depth = 0
        """Bits of the own region."""
        self.contacts = Contacts(clock, self.key)
        self.refused: Counter[str] = Counter()
        """Records that were not taken in, by the code of the refusal: malformed, oversized, forged,
        expired, future, old, left or outside. `old` and `left` also count records that crossed a
        newer one on their way, and `outside` those of other regions: both are no offence."""
        self.overtaken = 0
        """Highest sequence that somebody showed of the member's own records."""
        self._good = signature_is_good
        self._entries: dict[NodeId, Entry] = {}
        self._by_key: dict[bytes, Entry] = {}
        self._remembered: dict[NodeId, tuple[int, int]] = {}
        self._suspects = Suspicion()
        self._news: dict[NodeId, Entry] = {}
        self._live: list[Entry] | None = None
        self._soonest = 0
        self._regrouped = -SETTLED_SECONDS

    # what is known

    def records(self) -> list[NodeRecord]:
        """Records of other nodes whose lease runs, that answered when last tried and stay."""
        return [r for r, alive in self.all_records() if alive]

    def all_records(self) -> list[tuple[NodeRecord, bool]]:
        """Every record of another node whose lease runs, and whether the node answers."""
        return [(e.record, e.record.node not in self._suspects) for e in self.live()]

    def known(self) -> list[tuple[NodeRecord, bool]]:
        """Like `all_records`, with nodes that announced their leave, until their lease ends."""
        self.expire()
        return [
            (e.record, node not in self._suspects)
            for node, e in self._entries.items()
            if node != self.own
        ]

    def live(self) -> Sequence[Entry]:
        """The entries of other nodes that are here, those that do not answer included."""
        self.expire()
        if self._live is None:
            self._live = [
                e for n, e in self._entries.items() if not e.record.leaving and n != self.own
            ]
        return self._live

    def sure(self) -> Sequence[Entry]:
        """Those of them that answered when last tried."""
        live = self.live()
        if not self._suspects:
            return live
        return [e for e in live if e.record.node not in self._suspects]

    def find(self, node: NodeId) -> Entry | None:
        """The entry of a node in the own region, leaving or not."""
        return self._entries.get(node)

    def address_of(self, node: NodeId) -> PeerAddress | None:
        """Where a member is reached that is here to stay."""
        entry = self.find(node)
        return None if entry is None or entry.record.leaving else entry.record.address

    def is_suspect(self, node: NodeId) -> bool:
        """Whether it did not answer."""
        return node in self._suspects

    @property
    def region(self) -> Region:
        """The own region."""
        return region_of(self.key, self.depth)

    @property
    def count(self) -> int:
        """Records kept, the own one and those of nodes that leave included."""
        return len(self._entries)

    # what comes in

    def accept(self, record: NodeRecord, sender: NodeId | None = None) -> bool:
        """Take in a record; whether that changed anything.

        `sender`: who sent it. A node that sends its own record is there: suspicion ends.

        Raises:
            PeerRefused: with a code that is counted in `refused` too.
        """
        return self._take(record, canonical(record), sender) is not None

    def accept_encoded(self, data: bytes, sender: NodeId | None = None) -> Entry | None:
        """The same for a record as it travels; the new entry, or None if it was known."""
        return self._take(self._decoded(data), data, sender)

    def accept_first_hand(self, data: bytes, sender: NodeId) -> None:
        """The same for a record that must be that of its sender.

        Raises:
            PeerRefused: also if it is another node's (`forged`).
        """
        known = self._entries.get(sender)
        if known is not None and known.encoded == data:
            self.heard(sender)
            return
        record = self._decoded(data)
        if record.node != sender:
            raise self._refusal("forged", "the record is of another node than the one that sent it")
        try:
            self._take(record, data, sender)
        except PeerRefused as refusal:
            if refusal.code == "old" and self._good(record):
                self.heard(sender)  # two streams of an honest node may overtake one another
            raise

    def _decoded(self, data: bytes) -> NodeRecord:
        try:
            return decode_record(data)
        except PeerRefused as refusal:
            self.refused[refusal.code] += 1
            raise

    def _take(self, record: NodeRecord, encoded: bytes, sender: NodeId | None) -> Entry | None:
        self.expire()
        known = self._entries.get(record.node)
        if known is not None and known.encoded == encoded:
            if sender == record.node:
                self.heard(record.node)
            return None
        self._judge(record, encoded, known)
        if record.node == self.own:
            self.overtaken = max(self.overtaken, record.sequence)
            return None
        key = known.key if known is not None else node_key(record.node)
        entry = make_entry(record, encoded, key)
        if not contains(self.region, key):
            if not record.leaving:
                self.contacts.offer(entry, self.depth, proved=sender == record.node)
            raise self._refusal("outside", "the node is of another region")
        self._put(entry, known)
        if sender == record.node:
            self.heard(record.node)
        self._narrow()
        return entry

    def take_contact(self, data: bytes) -> None:
        """Take in a record that shows the way to a node; its lease may have ended.

        Raises:
            PeerRefused: as `accept`; an age over `contacts.KEPT_SECONDS` counts as expired.
        """
        record = self._decoded(data)
        known = self._entries.get(record.node)
        if record.node == self.own or (known and known.record.sequence >= record.sequence):
            return
        now = int(self._clock.now() * 1000)
        if record.expires > now and contains(self.region, node_key(record.node)):
            self._take(record, data, None)
            return
        self._judge(record, data, known, age_ms=int(KEPT_SECONDS * 1000))
        if not record.leaving:
            self.contacts.hint(make_entry(record, data), self.depth)

    def keep_own(self, record: NodeRecord) -> Entry:
        """Replace the member's own record."""
        entry = make_entry(record, key=self.key)
        self._put(entry, self._entries.get(self.own))
        return entry

    def _judge(
        self, record: NodeRecord, encoded: bytes, known: Entry | None, age_ms: int = 0
    ) -> None:
        if len(encoded) > MAX_RECORD_BYTES:
            raise self._refusal(
                "oversized",
                f"a record has at most {MAX_RECORD_BYTES} bytes; this one has {len(encoded)}",
            )
        now = int(self._clock.now() * 1000)
        ahead = record.expires - now
        if ahead <= -age_ms:
            raise self._refusal(
                "expired", f"the record expired {-ahead} ms ago: check the node's clock"
            )
        if ahead > (LEASE_SECONDS + SKEW_SECONDS) * 1000:
            raise self._refusal(
                "future",
                f"the record expires {ahead} ms from now; a lease is {LEASE_SECONDS:.0f} s: "
                "check the node's clock",
            )
        last, until = self._remembered.get(record.node, (-1, 0))
        if known is not None:
            last, until = known.record.sequence, known.record.expires
        if until > now and record.sequence < last + (known is None):
            left = known is not None and known.record.leaving
            raise self._refusal(
                "left" if left else "old",
                f"record {record.sequence} is not newer than the known one, {last}",
            )
        # Of two records with the same number (which no honest node signs) everyone keeps the same.
        if known is not None and record.sequence == last and encoded < known.encoded:
            raise self._refusal("old", f"another record {last} is known")
        if not self._good(record):
            raise self._refusal("forged", "the record is not signed by the node that it names")

    def _refusal(self, code: str, message: str) -> PeerRefused:
        self.refused[code] += 1
        return PeerRefused(message, code)

    def _put(self, entry: Entry, known: Entry | None) -> None:
        record = entry.record
        node = record.node
        if known is not None:
            entry.depth, entry.known = known.depth, known.known
            before = known.record
            if before.expires > record.expires or node in self._remembered:
                self._remember(node, record.sequence, max(before.expires, record.expires))
            changed = (before.leaving, before.model, before.layers) != (
                record.leaving,
                record.model,
                record.layers,
            )
        else:
            changed = True
            self.contacts.found(node)
        if changed:
            self._news[node] = entry
            while len(self._news) > MAX_DIGEST:
                del self._news[next(iter(self._news))]
            if node != self.own:
                verb = "leaves" if record.leaving else "is here"
                log.info("node %s %s with layers %s", node[:8], verb, record.layers)
        self._suspects.renewed(node)
        self._live = None
        self._entries[node] = entry
        self._by_key[entry.key[:KEY_BYTES]] = entry
        self._soonest = min(self._soonest, record.expires)

    def _remember(self, node: NodeId, sequence: int, until: int) -> None:
        limit = 4 * self.view
        if len(self._remembered) >= limit:
            soonest = min(self._remembered, key=lambda n: self._remembered[n][1])
            del self._remembered[soonest]
        kept = self._remembered.get(node, (0, 0))
        self._remembered[node] = (max(sequence, kept[0]), max(until, kept[1]))

    def news(self) -> list[Entry]:
        """Entries of nodes that came, left or changed their layers since the last call."""
        found = list(self._news.values())
        self._news.clear()
        return found

    # who answers

    def heard(self, node: NodeId) -> None:
        """The node answered."""
        self._suspects.heard(node)

    def missed(self, node: NodeId) -> None:
        """The node did not answer; the second time in a row it is left out."""
        if node not in self._entries:
            self.contacts.failed(node)
        elif self._suspects.missed(node, self._clock.monotonic()):
            self.suspect(node)

    def suspect(self, node: NodeId) -> None:
        """The node is not to be relied on: leave it out until it speaks again."""
        if node in self._entries and self._suspects.suspect(node):
            log.info("node %s does not answer", node[:8])

    # what others lack

    def inside(self, region: Region) -> list[Entry]:
        """The entries of a region, the own one included."""
        self.expire()
        if region.depth <= self.depth:
            return list(self._entries.values())
        return [e for e in self._entries.values() if contains(region, e.key)]

    def digest(self, region: Region, rng: random.Random) -> tuple[Region, bytes]:
        """One line per record in the region; a part of it drawn at random if it has too many."""
        found = self.inside(region)
        while len(found) > MAX_DIGEST and region.depth < MAX_DEPTH:
            bit = rng.getrandbits(1)
            region = Region(2 * region.prefix + bit, region.depth + 1)
            found = [e for e in found if contains(region, e.key)]
        return region, b"".join(e.line for e in found)

    def compare(
        self, region: Region, digest: bytes | memoryview
    ) -> tuple[list[Entry], list[bytes]]:
        """What the writer of a digest lacks, freshest first, and the keys of what it has newer.

        `region`: what the digest covers, no wider than the own region.
        """
        theirs = read_digest(digest)
        newer: list[Entry] = []
        for entry in self.inside(region):
            sequence = theirs.pop(entry.key[:KEY_BYTES], -1)
            if sequence < entry.record.sequence:
                newer.append(entry)
            elif sequence > entry.record.sequence:
                theirs[entry.key[:KEY_BYTES]] = sequence
        newer.sort(key=lambda e: -e.record.expires)
        depth, start = region.depth, region.prefix
        return newer, [k for k in theirs if prefix(k, depth) == start]

    def select(self, keys: Iterable[bytes]) -> list[Entry]:
        """The entries of leading key bytes; those that are not known are left out."""
        self.expire()
        return [self._by_key[k] for k in keys if k in self._by_key]

    def nearest(self, key: bytes, count: int, without: NodeId) -> list[Entry]:
        """The `count` nodes nearest to a hash that may be alive, contacts included."""
        known = [*self.sure()]
        known += [c.entry for c in self.contacts if not c.failures]
        known = [e for e in known if e.record.node != without]
        return sorted(known, key=lambda e: distance(e.key, key))[:count]

    # what ends

    def expire(self) -> None:
        """Drop what has run out."""
        now = int(self._clock.now() * 1000)
        if now < self._soonest:
            return
        for node, entry in list(self._entries.items()):
            if entry.record.expires > now or node == self.own:
                continue
            self._drop(entry)
            if not entry.record.leaving:
                log.info("the lease of node %s ended", node[:8])
                self.contacts.lose(entry)
        for node in [n for n, (_, until) in self._remembered.items() if until <= now]:
            del self._remembered[node]
        others = (e.record.expires for n, e in self._entries.items() if n != self.own)
        self._soonest = min(others, default=now + int(LEASE_SECONDS * 1000))

    def _drop(self, entry: Entry) -> None:
        node = entry.record.node
        self._live = None
        del self._entries[node]
        self._by_key.pop(entry.key[:KEY_BYTES], None)
        self._news.pop(node, None)
        self.heard(node)

    # the region

    def regroup(self) -> None:
        """Widen the region by a bit if it and its sibling are small; call it once a round."""
        settled = self._clock.monotonic() - self._regrouped >= SETTLED_SECONDS
        if not self.depth or not settled or 2 * self.count > self.view:
            return
        sizes = [
            c.entry.known << max(0, (c.entry.depth or 0) - self.depth)
            for c in self.contacts.sibling(self.depth)
            if c.entry.known
        ]
        sibling = max(sizes, default=0)
        if self.count < FEW or 4 * (self.count + sibling) <= 3 * self.view:
            self.set_depth(self.depth - 1)

    def _narrow(self) -> None:
        # A part with hardly anybody in it is not cut off: nobody would find it.
        while self.count > self.view and self.depth < MAX_DEPTH:
            smaller = region_of(self.key, self.depth + 1)
            left = sum(contains(smaller, e.key) for e in self._entries.values())
            if left < FEW and self.count <= 2 * self.view:
                return
            self.set_depth(self.depth + 1)

    def set_depth(self, depth: int) -> None:
        """Keep the region of so many bits from now on."""
        if depth == self.depth:
            return
        log.info("the region has %d bits now", depth)
        deeper, self.depth = depth > self.depth, depth
        self._regrouped = self._clock.monotonic()
        region = self.region
        for entry in [e for e in self._entries.values() if not contains(region, e.key)]:
            record = entry.record
            silent = record.node in self._suspects
            self._drop(entry)
            self._remember(record.node, record.sequence, record.expires)
            if deeper and not record.leaving and not silent:
                self.contacts.offer(entry, depth, proved=False)
        self.contacts.regrouped(depth)
