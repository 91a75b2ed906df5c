"""What a member says to others, and what it makes of what they say: gossip without a network.

Push-pull anti-entropy (Demers et al., "Epidemic algorithms for replicated database
maintenance", PODC 1987). An exchange has three messages:

    A → B   Exchange   A's record, and a digest of the region that both keep
    B → A   Newer      B's record, records that A lacks, keys of those that B lacks
    A → B   Wanted     those

Beside exchanges with random partners, a `Beat` carries the own record to the neighbours on
the ring of hashes, and at once to some others whenever a node comes, leaves or changes layers.

Nothing here waits or reads a socket: `routing.gossip` does that for a running member, and a
simulation calls the same methods.
"""

from __future__ import annotations

import bisect
import logging
import random
from collections.abc import Iterable, Sequence

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerRefused
from unisono.routing.coordinates import Position
from unisono.routing.entry import (
    Entry,
    node_key,
    overlap,
    region_of,
)
from unisono.routing.limits import PeerLimits
from unisono.routing.membership import FEW, Membership
from unisono.routing.own_record import Describe, OwnRecord
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import encode_frame
from unisono.wire.gossip_messages import (
    DIGEST_BYTES,
    KEY_BYTES,
    MAX_DIGEST,
    MAX_PACKED_BYTES,
    MAX_RECORDS,
    Beat,
    Exchange,
    Newer,
    Wanted,
    pack,
    read_keys,
    split_body,
    unpack,
)
from unisono.wire.identity import Identity
from unisono.wire.messages import Message, Refused
from unisono.wire.records import LEASE_SECONDS

log = logging.getLogger(__name__)

ROUND_SECONDS = 1.0
"""One exchange with a random partner."""
BEAT_SECONDS = LEASE_SECONDS / 6
"""Each neighbour on the ring is asked this often, and a silent one again after half of it."""
RING = 2
"""Neighbours on either side."""
FAN_OUT = 3
"""Members that are told at once when a node comes, leaves or changes its layers."""
FAREWELL = 8
"""Members that a leaving node tells itself."""
CONTACTS = 4
OUTSIDE_EVERY, LOST_EVERY, BOOTSTRAP_EVERY = 10, 10, 60
"""Rounds between contacts of another region, of a silent node, and of a first address."""
MAX_ROUNDS_PER_SECOND = 16.0
STALE_DRAWS = 4
"""A member with a wide region speaks to that of so many random ones whose record is the oldest."""
URGENT_PER_SECOND = 8.0


class Exchanges:
    """One member's side of all exchanges."""

    def __init__(
        self,
        identity: Identity,
        membership: Membership,
        clock: Clock,
        describe: Describe,
        *,
        bootstrap: Sequence[PeerAddress] = (),
        rng: random.Random | None = None,
    ) -> None:
        """`bootstrap`: addresses to join with; none is special, and later ones are as good."""
        self.membership = membership
        self.limits = PeerLimits(clock)
        self.bootstrap = tuple(a for a in bootstrap if a.node != identity.node_id)
        self._rng = rng or random.Random()
        self.position = Position(self._rng)
        self._own = OwnRecord(identity, membership, clock, describe, self.position)
        self._round = self._rng.randrange(BOOTSTRAP_EVERY)
        self._urgent: dict[NodeId, Entry] = {}
        self._allowance = _Allowance(clock)

    def own(self) -> Entry:
        """The member's own record, renewed when it is time."""
        return self._own.current()

    def renew(self, *, leaving: bool = False) -> Entry:
        """Sign a new own record now; see `OwnRecord.renew`."""
        return self._own.renew(leaving=leaving)

    # whom to speak to

    @property
    def alone(self) -> bool:
        """Whether no other member is known."""
        return not self.membership.live()

    @property
    def spread(self) -> int:
        """How many bits smaller the regions of others are than the own one, as they say."""
        depths = sorted(e.depth for e in self.membership.live() if e.depth is not None)
        return max(0, depths[len(depths) // 2] - self.membership.depth) if depths else 0

    @property
    def round_seconds(self) -> float:
        """Seconds between two rounds: fewer where the own region is made of many of others."""
        return ROUND_SECONDS / max(1.0, min(MAX_ROUNDS_PER_SECOND, 2.0**self.spread / 2))

    def partner(self) -> PeerAddress | None:
        """Whom to exchange with in this round; None if nobody is known or it is too soon."""
        self._round += 1
        members, contacts, rng = self.membership, self.membership.contacts, self._rng
        live = members.sure()
        contact = None
        if not live or self._round % OUTSIDE_EVERY == OUTSIDE_EVERY // 2:
            contact = contacts.outside(rng)
        often = LOST_EVERY if not self.spread else 2
        if contact is None and (not live or self._round % often == 0):
            contact = contacts.lost(rng)
            doubted = [e for e in members.live() if members.is_suspect(e.record.node)]
            if contact is None and doubted and self._round % LOST_EVERY == 0:
                return rng.choice(doubted).record.address
        if contact is not None:
            return contact.entry.record.address
        if self.bootstrap and (not live or self._round % BOOTSTRAP_EVERY == 0):
            unknown = [a for a in self.bootstrap if members.find(a.node) is None]
            if unknown:
                return rng.choice(unknown)
        if not live:
            return None
        if self.spread > 1:  # first to the part of the region whose records are the oldest
            drawn = rng.sample(live, min(STALE_DRAWS, len(live)))
            return min(drawn, key=lambda e: e.record.expires).record.address
        return rng.choice(live).record.address

    def neighbours(self) -> list[PeerAddress]:
        """The nearest members on the ring of hashes, on either side."""
        members = self.membership
        ring = sorted((e.key, e.record.address) for e in members.sure())
        at = bisect.bisect([key for key, _ in ring], members.key)
        count = min(len(ring), 2 * RING)
        return [ring[(at - RING + i) % len(ring)][1] for i in range(count)]

    # exchanges

    def begin(self, partner: NodeId) -> bytes:
        """The frame that opens an exchange."""
        members = self.membership
        self.own()
        key = node_key(partner)
        region, digest = None, b""
        if not self.alone:
            entry = members.find(partner)
            contact = None if entry else members.contacts.find(partner)
            known = entry or (contact.entry if contact else None)
            depth = members.depth if known is None or known.depth is None else known.depth
            region = overlap(members.region, region_of(key, depth))
        if region is not None:
            region, digest = members.digest(region, self._rng)
        message = Exchange(
            members.depth, members.count, region, len(digest) // DIGEST_BYTES, self._seek()
        )
        return encode_frame(message, digest + self._own.packed)

    def answer(self, sender: NodeId, message: Exchange, body: memoryview) -> bytes:
        """The reply to an exchange that `sender` opened.

        Raises:
            PeerCheating: the message breaks the protocol.
            PeerRefused: the sender's record is not good.
        """
        members = self.membership
        digest, packed = split_body(body, message.digest * DIGEST_BYTES)
        self._take_all(sender, unpack(packed, 1))
        self._describe_peer(sender, message.depth, message.known)
        region = None
        if message.region is not None:
            region = overlap(message.region, members.region)
        newer, wanted = [], []
        if region is not None:
            newer, wanted = members.compare(region, digest)
        contacts = members.nearest(message.seek, CONTACTS, sender) if message.seek else []
        records = [e for e in newer if e.record.node not in (sender, members.own)]
        sent = _fitting([self.own(), *records], MAX_RECORDS)
        hints = _fitting(contacts, CONTACTS)
        reply = Newer(members.depth, members.count, len(wanted[:MAX_DIGEST]), len(hints))
        return encode_frame(reply, b"".join(wanted[:MAX_DIGEST]) + pack([*sent, *hints]))

    def conclude(
        self, partner: NodeId, message: Newer, body: memoryview, seconds: float
    ) -> bytes | None:
        """Take in the reply, which came after `seconds`; the last frame, if there is one to send.

        Raises:
            PeerCheating: the reply breaks the protocol.
            PeerRefused: the partner's record is not good.
        """
        members = self.membership
        was_alone = self.alone
        keys, packed = split_body(body, message.wanted * KEY_BYTES)
        records = unpack(packed)
        split = len(records) - message.contacts
        if split < 1:
            raise PeerCheating(f"{message.contacts} of {len(records)} records are contacts")
        if was_alone:
            # A newcomer starts with a region as small as it will need, not with everybody.
            size, depth = message.known << message.depth, 0
            while size >> depth > members.view and depth < message.depth + 1:
                depth += 1
            members.set_depth(depth)
        self._take_all(partner, records[:split])
        self._describe_peer(partner, message.depth, message.known)
        self._measure(partner, seconds)
        for data in records[split:]:
            try:
                members.take_contact(data)
            except PeerRefused as refusal:
                _only_harmless(refusal)
        wanted = members.select(read_keys(keys))
        if not wanted:
            return None
        return encode_frame(Wanted(), pack(_fitting(wanted, MAX_RECORDS)))

    def take_wanted(self, sender: NodeId, body: memoryview) -> None:
        """Take in the records of a `Wanted`.

        Raises:
            PeerCheating: the message breaks the protocol.
        """
        self._take_some(sender, unpack(body, MAX_RECORDS))

    # beats

    def beat(self, more: Iterable[Entry] = ()) -> bytes:
        """The frame that says that this member is here."""
        own = self.own()
        others = [e for e in more if e.record.node != self.membership.own]
        if not others:
            return encode_frame(Beat(), self._own.packed)
        return encode_frame(Beat(), pack(_fitting([own, *others], MAX_RECORDS)))

    def answer_beat(self, sender: NodeId, body: memoryview) -> bytes:
        """The reply to a beat.

        Raises: as `answer`.
        """
        records = unpack(body, MAX_RECORDS)
        self._take_all(sender, records[:1])
        self._take_some(sender, records[1:])
        return self.beat()

    def conclude_beat(self, partner: NodeId, body: memoryview, seconds: float) -> None:
        """Take in the reply to a beat, which came after `seconds`.

        Raises: as `conclude`.
        """
        self._take_all(partner, unpack(body, 1))
        self._measure(partner, seconds)

    def urgent(self) -> tuple[list[PeerAddress], bytes] | None:
        """Whom to tell now of nodes that came, left or changed, and the frame; None: nothing."""
        members = self.membership
        for entry in members.news():
            self._urgent[entry.record.node] = entry
        if self._urgent:
            self._urgent = {n: e for n, e in self._urgent.items() if members.find(n) is not None}
        if not self._urgent:
            return None
        live = members.sure()
        if not live or not (self._own.leaving or self._allowance.take()):
            return None
        entries = list(self._urgent.values())[:MAX_RECORDS]
        self._urgent = dict(list(self._urgent.items())[MAX_RECORDS:])
        count = FAREWELL if self._own.leaving else FAN_OUT
        subject = entries[0].record.node if len(entries) == 1 else None
        others = [e.record.address for e in live if e.record.node != subject]
        if not others:
            return None
        return self._rng.sample(others, min(count, len(others))), self.beat(entries)

    # refusals

    def answer_any(self, sender: NodeId, message: Message, body: memoryview) -> bytes:
        """The reply to the first message of a stream.

        Raises:
            PeerCheating: it breaks the protocol; the sender is not answered for a while.
        """
        if not self.limits.allow(sender):
            self.membership.refused["too_often"] += 1
            return encode_frame(Refused("too_often", "too many messages: ask less often"))
        try:
            if isinstance(message, Exchange):
                return self.answer(sender, message, body)
            if isinstance(message, Beat):
                return self.answer_beat(sender, body)
        except PeerRefused as refusal:
            return encode_frame(Refused(refusal.code, str(refusal)[:1024]))
        except PeerCheating:
            self.limits.punish(sender)
            raise
        raise PeerCheating(f"gossip cannot begin with {type(message).__name__}")

    # parts

    def _take_all(self, sender: NodeId, records: Sequence[bytes]) -> None:
        """Take in what a peer sent; its own record comes first."""
        if not records:
            raise PeerCheating("a member speaks without a record of its own")
        try:
            self.membership.accept_first_hand(records[0], sender)
        except PeerRefused as refusal:
            _only_harmless(refusal)
            if refusal.code in ("expired", "future"):
                raise
        self._take_rest(records[1:])

    def _take_some(self, sender: NodeId, records: Sequence[bytes]) -> None:
        """Take in what a peer sent uncalled, as much of it as the limits allow; what is left out
        comes again with a later exchange."""
        self._take_rest(records[: self.limits.allow_records(sender, len(records))])

    def _take_rest(self, records: Iterable[bytes]) -> None:
        for data in records:
            try:
                self.membership.accept_encoded(data)
            except PeerRefused as refusal:
                _only_harmless(refusal)

    def _describe_peer(self, node: NodeId, depth: int, known: int) -> None:
        entry = self.membership.find(node)
        if entry is None:
            contact = self.membership.contacts.find(node)
            entry = contact.entry if contact else None
        if entry is not None:
            entry.depth, entry.known = depth, known

    def _measure(self, node: NodeId, seconds: float) -> None:
        entry = self.membership.find(node)
        rtt = self.position.measured(node, seconds)
        if entry is not None and rtt is not None:
            self.position.update(rtt, entry.record.coordinate, entry.record.uncertainty)

    def _seek(self) -> bytes:
        """Near which hash nodes are wanted: the own one at first, then whatever is sparse."""
        members = self.membership
        known = len(members.live())
        if not known or (members.depth and known < FEW):
            return members.key[:KEY_BYTES]
        size = 8 * KEY_BYTES
        own = int.from_bytes(members.key[:KEY_BYTES], "big")
        if self.spread:  # others know parts of the own region, and contacts in the rest of it
            free = size - members.depth
            return (own >> free << free | self._rng.getrandbits(free)).to_bytes(KEY_BYTES, "big")
        bit = members.contacts.sparse(members.depth)
        if bit is None:
            return b""
        free = size - bit - 1
        sought = ((own >> free) ^ 1) << free | self._rng.getrandbits(free)
        return sought.to_bytes(KEY_BYTES, "big")


class _Allowance:
    """How many urgent messages may leave now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens, self._since = 2 * URGENT_PER_SECOND, clock.monotonic()

    def take(self) -> bool:
        now = self._clock.monotonic()
        grown = self._tokens + (now - self._since) * URGENT_PER_SECOND
        self._tokens, self._since = min(2 * URGENT_PER_SECOND, grown), now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def _fitting(entries: Iterable[Entry], limit: int) -> list[bytes]:
    """The first encoded records that one message may carry."""
    chosen: list[bytes] = []
    room = MAX_PACKED_BYTES // 2
    for entry in entries:
        room -= len(entry.encoded) + 2
        if room < 0 or len(chosen) >= limit:
            break
        chosen.append(entry.encoded)
    return chosen


def _only_harmless(refusal: PeerRefused) -> None:
    """Pass over a record that an honest peer may send.

    Raises:
        PeerCheating: an honest peer would not have taken it in itself.
    """
    if refusal.code in ("forged", "malformed", "oversized"):
        raise PeerCheating(str(refusal)) from refusal
