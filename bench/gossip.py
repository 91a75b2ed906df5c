"""Membership and gossip from 10 to 2,000 nodes: the real exchanges, on virtual time.

    python -m bench.gossip [SIZES…]

Every node is a `Membership` with its `Exchanges`; frames are encoded, carried with a delay and
decoded as on a real transport. Only signatures are checked once per record instead of once
per node. Figures per size:

- records and bytes that a node keeps, contacts included;
- bytes of frames that a node sends per second (transport overhead not counted);
- seconds until a new record is known by 99 % of the nodes that keep it (their region holds it);
- after a kill: seconds until its neighbours leave it out, and until no node holds its record;
- after a farewell: seconds until no node holds it;
- one gateway with a view of 4,096: share of all nodes that it knows, and what it sends.
"""

from __future__ import annotations

import heapq
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable

from bench.machine import publish
from unisono.errors import WireError
from unisono.routing.entry import contains
from unisono.routing.exchange import BEAT_SECONDS, Exchanges
from unisono.routing.gossip import JOIN_ROUNDS
from unisono.routing.membership import Membership
from unisono.types import LayerRange, ModelId, NodeId, PeerAddress
from unisono.wire.frames import decode_frame
from unisono.wire.gossip_messages import Beat, Newer, Wanted
from unisono.wire.identity import Identity
from unisono.wire.records import NodeRecord

SIZES = (10, 30, 100, 250, 500, 1000, 2000)
JOIN_OVER = 15.0
SETTLE = 30.0
MEASURE = 10.0
WATCHED = 5
LOOK = 0.25
MODEL = ModelId("7b" * 32)


class Events:
    """The clock of all nodes, and what happens when."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here sleeps")

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.time + seconds, self._count, what))

    def run(self, seconds: float) -> None:
        until = self.time + seconds
        while self._heap and self._heap[0][0] <= until:
            self.time, _, what = heapq.heappop(self._heap)
            what()
        self.time = until


class Signatures:
    """Checks each signature once, whoever asks."""

    def __init__(self) -> None:
        self._known: dict[bytes, bool] = {}

    def good(self, record: NodeRecord) -> bool:
        found = self._known.get(record.signature)
        if found is None:
            found = self._known[record.signature] = record.signature_is_good()
        return found


class Peer:
    """One node: the loops of `routing.gossip.Gossip`, on events."""

    def __init__(
        self, network: Network, number: int, bootstrap: tuple[PeerAddress, ...], **more: int
    ) -> None:
        self.network = network
        rng = random.Random(number + 1)
        identity = Identity.from_seed(rng.randbytes(32))
        self.node = identity.node_id
        host = f"203.0.{number >> 8}.{number & 255}:4433"
        self.address = PeerAddress(self.node, "iroh", (host, f"192.168.1.{number & 255}:44133"))
        self.place = (rng.random(), rng.random())
        start = rng.randrange(0, 24, 6)
        layers = LayerRange(start, start + 6)

        def describe() -> NodeRecord:
            return NodeRecord(
                node=self.node,
                address=self.address,
                model=MODEL,
                layers=layers,
                free_positions=rng.randrange(1 << 17),
                sessions=rng.randrange(16),
                sequence=0,
                expires=0,
                step_us=rng.randrange(4000, 40000),
                row_us=rng.randrange(100, 1000),
                queue=rng.randrange(100),
                memory=8 << 30,
                bandwidth=12_500_000,
            )

        members = Membership(
            network.events, self.node, signature_is_good=network.signatures.good, **more
        )
        self.members = members
        self.exchanges = Exchanges(
            identity, members, network.events, describe, bootstrap=bootstrap, rng=rng
        )
        self.rng = rng
        self.alive = True
        self.sent = 0
        self._joining = JOIN_ROUNDS

    def start(self) -> None:
        self._round()
        self.network.events.after(self.rng.uniform(0, BEAT_SECONDS), self._beats)

    def _round(self) -> None:
        if not self.alive:
            return
        self.members.regroup()
        self.tell()
        self._exchange()
        wait = 0.25 if self.exchanges.alone else self.exchanges.round_seconds
        self.network.events.after(wait * self.rng.uniform(0.8, 1.2), self._round)

    def _exchange(self) -> None:
        address = self.exchanges.partner()
        if address is None:
            return
        frame = self.exchanges.begin(address.node)
        began = self.network.events.time

        def replied(peer: Peer, reply: bytes) -> None:
            message, body = decode_frame(reply)
            if not isinstance(message, Newer):
                return
            seconds = self.network.events.time - began
            last = self.exchanges.conclude(peer.node, message, body, seconds)
            if last is not None:
                self.network.send(self, peer.node, last, lambda p: p.take(self, last))
            if self._joining:
                self._joining -= 1
                self._exchange()
            self.tell()

        self._ask(address.node, frame, replied, lambda: self.members.missed(address.node))

    def _beats(self) -> None:
        if not self.alive:
            return
        frame = self.exchanges.beat()
        for address in self.exchanges.neighbours():
            self._beat(address.node, frame, 2)
        self.network.events.after(BEAT_SECONDS, self._beats)

    def _beat(self, node: NodeId, frame: bytes, attempts: int) -> None:
        began = self.network.events.time

        def replied(peer: Peer, reply: bytes) -> None:
            message, body = decode_frame(reply)
            if isinstance(message, Beat):
                seconds = self.network.events.time - began
                self.exchanges.conclude_beat(peer.node, body, seconds)
                self.tell()

        def failed() -> None:
            self.members.missed(node)
            if attempts > 1 and self.alive:
                self._beat(node, frame, attempts - 1)

        self._ask(node, frame, replied, failed)

    def _ask(
        self,
        node: NodeId,
        frame: bytes,
        replied: Callable[[Peer, bytes], None],
        failed: Callable[[], None],
    ) -> None:
        def arrived(peer: Peer) -> None:
            message, body = decode_frame(frame)
            try:
                reply = peer.exchanges.answer_any(self.node, message, body)
            except WireError:
                return
            self.network.send(peer, self.node, reply, lambda _: replied(peer, reply))
            peer.tell()

        if not self.network.send(self, node, frame, arrived):
            self.network.events.after(BEAT_SECONDS / 2, lambda: self.alive and failed())

    def take(self, sender: Peer, frame: bytes) -> None:
        """The last message of an exchange."""
        message, body = decode_frame(frame)
        assert isinstance(message, Wanted)
        self.exchanges.take_wanted(sender.node, body)
        self.tell()

    def tell(self) -> None:
        told = self.exchanges.urgent() if self.alive else None
        if told is not None:
            for address in told[0]:
                self._beat(address.node, told[1], 1)

    def leave(self) -> None:
        self.exchanges.renew(leaving=True)
        self.tell()
        self.alive = False

    @property
    def kept_bytes(self) -> int:
        entries = self.members.inside(self.members.region)
        entries += [c.entry for c in self.members.contacts]
        return sum(len(e.encoded) + len(e.key) + len(e.line) for e in entries)


class Network:
    """All nodes, and the links between them."""

    def __init__(self) -> None:
        self.events = Events()
        self.signatures = Signatures()
        self.peers: dict[NodeId, Peer] = {}

    def add(self, number: int, bootstrap: tuple[PeerAddress, ...], **more: int) -> Peer:
        peer = Peer(self, number, bootstrap, **more)
        self.peers[peer.node] = peer
        return peer

    def living(self) -> list[Peer]:
        return [p for p in self.peers.values() if p.alive]

    def send(
        self, sender: Peer, node: NodeId, frame: bytes, arrived: Callable[[Peer], None]
    ) -> bool:
        """Carry a frame in 5 to 130 ms, by distance; whether anybody is there."""
        sender.sent += len(frame)
        peer = self.peers.get(node)
        if peer is None or not peer.alive:
            return False
        (a, b), (c, d) = sender.place, peer.place
        delay = 0.005 + 0.09 * ((a - c) ** 2 + (b - d) ** 2) ** 0.5
        self.events.after(delay, lambda: arrived(peer) if peer.alive else None)
        return True

    def until(self, done: Callable[[], bool], limit: float = 40.0) -> float:
        """Seconds until something is so, to a quarter of a second."""
        began = self.events.time
        while not done() and self.events.time - began < limit:
            self.events.run(LOOK)
        return self.events.time - began


def interested(network: Network, peer: Peer) -> list[Peer]:
    """The living nodes that keep the record of `peer`."""
    key = peer.members.key
    return [p for p in network.living() if p is not peer and contains(p.members.region, key)]


def holders(network: Network, node: NodeId) -> list[Peer]:
    """Living nodes to which the node is here."""
    found = []
    for p in network.living():
        p.members.expire()
        entry = p.members.find(node)
        if entry is not None and not entry.record.leaving:
            found.append(p)
    return found


def known_everywhere(network: Network, peers: Iterable[Peer]) -> Callable[[], bool]:
    """Whether 99 % of those who keep the records of `peers` have the present ones."""
    wanted = [(p, p.exchanges.own().record.sequence) for p in peers]

    def done() -> bool:
        keepers = have = 0
        for peer, sequence in wanted:
            for other in interested(network, peer):
                keepers += 1
                entry = other.members.find(peer.node)
                have += entry is not None and entry.record.sequence >= sequence
        return have >= 0.99 * keepers

    return done


def measure(size: int) -> dict[str, object]:
    """One row of the table."""
    started = time.perf_counter()
    network = Network()
    rng = random.Random(size)
    first = [network.add(i, ()) for i in range(3)]
    doors = tuple(p.address for p in first)
    for peer in first:
        peer.exchanges.bootstrap = tuple(a for a in doors if a.node != peer.node)
        peer.start()
    for number in range(3, size):
        delay = rng.uniform(0, JOIN_OVER)
        peer = network.add(number, tuple(rng.sample(doors, 2)))
        network.events.after(delay, peer.start)
    gateway = network.add(9_999, doors, view=4096)
    gateway.start()
    network.events.run(JOIN_OVER + SETTLE)

    nodes = [p for p in network.living() if p is not gateway]
    before = {p.node: p.sent for p in network.living()}
    network.events.run(MEASURE)
    rates = sorted((p.sent - before[p.node]) / MEASURE for p in nodes)
    kept = [p.members.count for p in nodes]
    share = len(gateway.members.live()) / len(nodes)
    row: dict[str, object] = {
        "nodes": size,
        "records kept": round(statistics.mean(kept)),
        "most": max(kept),
        "contacts": round(statistics.mean(len(p.members.contacts) for p in nodes), 1),
        "state KB": round(statistics.mean(p.kept_bytes for p in nodes) / 1e3, 1),
        "sent KB/s": round(statistics.mean(rates) / 1e3, 2),
        "sent KB/s most": round(rates[-1] / 1e3, 2),
    }

    watched = rng.sample(nodes, min(WATCHED, size // 3))
    for peer in watched:
        peer.exchanges.renew()
    row["renewal known s"] = network.until(known_everywhere(network, watched))
    fresh = [network.add(10_000 + i, tuple(rng.sample(doors, 2))) for i in range(len(watched))]
    for peer in fresh:
        peer.start()
    row["new node known s"] = network.until(known_everywhere(network, fresh))
    for peer in watched:
        peer.leave()
    row["farewell s"] = network.until(lambda: not any(holders(network, p.node) for p in watched))

    near = {p.node: _near(network, p, fresh) for p in fresh}
    for peer in fresh:
        peer.alive = False

    def unseen() -> bool:
        return all(
            p.members.is_suspect(node) or p.members.find(node) is None
            for node, around in near.items()
            for p in around
        )

    left = network.until(unseen)
    row["neighbours notice s"] = left
    row["gone s"] = left + network.until(lambda: not any(holders(network, p.node) for p in fresh))
    sent = gateway.sent - before[gateway.node]
    elapsed = network.events.time - 1_700_000_000.0 - JOIN_OVER - SETTLE
    row["gateway knows %"] = round(100 * share, 1)
    row["gateway KB/s"] = round(sent / elapsed / 1e3, 1)
    row["refused"] = _refused(network)
    row["run s"] = round(time.perf_counter() - started, 1)
    return row


def _near(network: Network, peer: Peer, without: list[Peer]) -> list[Peer]:
    """Those who have the peer as a neighbour on the ring."""
    return [
        p
        for p in network.living()
        if p not in without and any(a.node == peer.node for a in p.exchanges.neighbours())
    ]


def _refused(network: Network) -> str:
    totals: dict[str, int] = {}
    for p in network.living():
        for code, count in p.members.refused.items():
            totals[code] = totals.get(code, 0) + count
    return " ".join(f"{code}:{count}" for code, count in sorted(totals.items()))


def main() -> None:
    sizes = [int(a) for a in sys.argv[1:]] or list(SIZES)
    rows = []
    for size in sizes:
        rows.append(measure(size))
        print(rows[-1], flush=True)
    publish("gossip", rows)


if __name__ == "__main__":
    main()
