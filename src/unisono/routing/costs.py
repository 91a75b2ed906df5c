"""What one request is expected to cost on each node and link, in seconds of its client's time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unisono.routing.demand import ANY, Demand, price_of
from unisono.routing.links import Indices, Links, Seconds, Survey
from unisono.routing.load import Load
from unisono.routing.reputation import Reputation, believed
from unisono.types import NodeId
from unisono.wire.records import NodeRecord
from unisono.wire.sold import Wallet

SESSION_SHARE = 0.1
"""What one more session adds to a pass that decodes: a tenth of a step, since weights are read once
for all. Measured with Gemma 3 270M on two cores: 32 sessions have 9 times the tokens of one."""
PROMPT_ROWS = 64
"""Rows of prompts in one pass beside sessions that decode."""
PROMPT_ROW_SHARE = 1 / 32
"""A row of a prompt as a share of a decode step, on a node that does not say."""
DEFAULT_LAYER_SECONDS = 0.001
"""A layer's decode step, of a node that neither says nor was measured."""
RETRY_SECONDS = 2.0
"""What a chain that fails costs its client: another is opened and reads the prompt again."""
ROW_BYTES = 2048
"""Of a row between two hops, for a model of which nothing is known."""
SPREAD = 0.02
"""Gateways see each node this much faster or slower, each in its own way: what looks equal to
several of them does not draw all their sessions at once."""


@dataclass(frozen=True, slots=True)
class Costs:
    """A request, and what its gateway knows of the nodes. `unisono.routing.experience` makes it."""

    links: Links
    load: Load
    reputation: Reputation
    prompt: int
    """Rows to read before the first token."""
    tokens: int
    """Tokens of the answer that are expected."""
    held: Mapping[NodeId, int] = field(default_factory=lambda: {})
    """Tokens of the prompt that nodes need not read again; in a chain, if all hops hold them."""
    tokens_per_loop: float = 1.0
    """More than one where drafts are checked several at a time."""
    row_bytes: int = ROW_BYTES
    """Bytes of a row between two hops."""
    opening_trips: float = 0.5
    """Round trips from the gateway to each hop until sessions are open: all open at once, and only
    the slowest counts, which a sum over hops can only share among them."""
    charity: float = 1.0
    """What a second that other sessions lose counts; 0 makes every request selfish."""
    price_seconds: float = 0.0
    """Seconds that the client would wait to save one millionth of the unit of prices."""
    demand: Demand = ANY
    """What the client asks of the market."""
    wallets: frozenset[Wallet] = frozenset()
    """Where nodes can be paid."""
    most_tokens: int = 0
    """Tokens that the answer may have at most: for the limit of its price."""
    caution: float = 1.0
    """How many times worse than usual another failure would be."""
    salt: int = 0
    """Differs between gateways; 0 sees every node as it is."""

    @property
    def loops(self) -> float:
        """Times that something goes around the chain."""
        return max(1.0, self.tokens / self.tokens_per_loop)

    def spared(self, records: Sequence[NodeRecord]) -> Seconds:
        """Tokens of the prompt that each of these nodes holds."""
        return _array([min(self.held.get(r.node, 0), self.prompt - 1) for r in records])

    def workloads(self, records: Sequence[NodeRecord]) -> Workloads:
        """What these nodes have to do, and how fast they are, as far as is known."""
        judged = self.reputation.judge(records)
        count = _array([r.layers.stop - r.layers.start for r in records])
        said_step = _array([r.step_us for r in records]) * 1e-6
        said_row = _array([r.row_us for r in records]) * 1e-6
        # who is slower than it says in one is taken to be so in the other, until that is measured
        slow = np.where((judged.read_samples > 0) & (said_row > 0), count * judged.read, said_row)
        slow = np.maximum(1.0, slow / np.where(said_row > 0, said_row, 1.0))
        pace = believed(judged.decode, judged.decode_samples, said_step * slow / count)
        step = count * np.where(pace > 0, pace, DEFAULT_LAYER_SECONDS)
        boast = np.maximum(1.0, step / np.where(said_step > 0, said_step, step))
        row = count * believed(judged.read, judged.read_samples, said_row * boast / count)
        return Workloads(
            step=step,
            row=np.where(row > 0, row, PROMPT_ROW_SHARE * step),
            others=_array([self.load.sessions(r) for r in records]),
            queue=_array([r.queue for r in records]),
            held=self.spared(records),
            count=count,
            odds=judged.odds,
            decode_doubt=1 / (1 + judged.decode_samples),
            read_doubt=1 / (1 + judged.read_samples),
        )

    def prefills(self, nodes: Workloads, held: Seconds | float) -> Seconds:
        """Seconds until each node has read the prompt but for the `held` tokens at its beginning,
        after all rows that wait there.

        While others decode a pass takes 64 rows of prompts at most, and their steps with them.
        """
        rows = nodes.queue + self.prompt - held
        passes = np.ceil(rows / PROMPT_ROWS) * (nodes.others > 0)
        return rows * nodes.row + nodes.step * (1 + passes * crowded(nodes.others - 1))

    def prices(self, records: Sequence[NodeRecord], layer_count: int) -> Seconds:
        """What each node asks for its share of the layers, in millionths of the unit."""
        shares = _array([r.layers.stop - r.layers.start for r in records]) / layer_count
        asked = [self.prompt * r.price_in + self.tokens * r.price_out for r in records]
        return _array(asked) * shares / 1e6

    def admits(self, record: NodeRecord) -> bool:
        """Whether a node can be paid, and promises what is demanded."""
        terms = record.terms
        payable = terms is None or (terms.chain, terms.channels) in self.wallets
        trusted = not self.demand.tier or record.node not in self.reputation.withheld
        return payable and trusted and self.demand.admits(record)

    def worst_price(self, path: Sequence[NodeRecord], layer_count: int) -> int:
        """What a chain costs if the answer is as long as it may be, in millionths of the unit."""
        return price_of(path, layer_count, self.prompt, max(self.tokens, self.most_tokens))

    def hops(self, records: Sequence[NodeRecord], layer_count: int) -> Seconds:
        """Seconds that each node adds wherever in a chain it stands.

        The time that all other sessions on the node lose together by this one is charged too:
        it makes choices that are best for each the best for all (Pigou's toll). For the crowded
        fifty of `bench.paths` it gives 4 to 9 % more tokens and a quarter less time to the first
        one; with few sessions the first one takes some hundredths of a second longer.

        Nodes that are paid are not charged it: one machine under several names would seem to have
        fewer sessions than it has, and be asked more often than others for that
        (`simulation.market.manipulation`: 16 to 27 % more with the charge, nothing without).
        """
        nodes = self.workloads(records)
        decoding = self.loops * nodes.step
        seconds = self.prefills(nodes, nodes.held)
        seconds += decoding * crowded(nodes.others)
        lost = decoding * SESSION_SHARE + self.prompt * nodes.row
        free = _array([r.terms is None for r in records])
        seconds += self.charity * free * nodes.others * lost
        if self.salt:
            lots = _array([lot(r.node, self.salt) for r in records])
            seconds *= 1 + SPREAD * (lots - 0.5)
        seconds += nodes.odds * RETRY_SECONDS * self.caution
        if self.price_seconds:
            seconds += self.price_seconds * self.prices(records, layer_count)
        return seconds

    def glance(self, record: NodeRecord) -> float:
        """A first impression of a node, to be had fast: seconds per layer of the answer by what
        it says of itself, and by the way to it."""
        count = record.layers.stop - record.layers.start
        step = record.step_us * 1e-6 or count * DEFAULT_LAYER_SECONDS
        way = self.links.round_trip(record) / 2
        return (step * (1 + SESSION_SHARE * record.sessions) + way) / count

    def survey(self, nodes: Sequence[NodeRecord], layer_count: int) -> Priced:
        """The costs of these nodes and of all links among them."""
        links = self.links.survey(nodes)
        hop = self.hops(nodes, layer_count)
        rates = _array([self.links.bandwidth(r) for r in nodes])
        return Priced(
            links=links,
            loops=self.loops,
            hop=hop + self.opening_trips * links.gateway,
            end=links.gateway / 2,
            send=(self.loops + self.prompt - self.spared(nodes)) * self.row_bytes / rates,
        )


@dataclass(frozen=True, slots=True)
class Workloads:
    """What some nodes have to do and how fast they are, as arrays over them."""

    step: Seconds
    """One decode step for a session that is alone."""
    row: Seconds
    """Per row of a prompt."""
    others: Seconds
    """Sessions that are there already."""
    queue: Seconds
    """Rows that wait."""
    held: Seconds
    """Tokens of the prompt that a node need not read."""
    count: Seconds
    """Layers."""
    odds: Seconds
    """Failures to successes."""
    decode_doubt: Seconds
    """How little is known of `step`: 1 if nothing was measured, near 0 after many times."""
    read_doubt: Seconds
    """The same of `row`."""


@dataclass(frozen=True, slots=True)
class Priced:
    """Costs of some nodes, as arrays over them, in seconds."""

    links: Survey
    loops: float
    hop: Seconds
    """[n] of the node itself: to open, read and decode; its price and its reputation."""
    end: Seconds
    """[n] from the gateway to a first hop, or from a last hop to the gateway."""
    send: Seconds
    """[n] of pushing all rows out to a next hop."""

    def edges(self, a: Indices, b: Indices) -> Seconds:
        """From `a[i]` to the next hop `b[i]`: the prompt once, then one row per loop."""
        return (self.loops + 1) / 2 * self.links.round_trips(a, b) + self.send[a]

    def returns(self, last: Indices, first: Indices) -> Seconds:
        """Tokens from the last hop back to the first, one per loop."""
        return self.loops / 2 * self.links.round_trips(last, first)

    def total(self, path: Sequence[int]) -> float:
        """The whole of a path, given as indices into the arrays."""
        nodes = np.array(path, dtype=np.intp)
        seconds = float(self.hop[nodes].sum() + self.end[nodes[0]] + self.end[nodes[-1]])
        if len(nodes) > 1:
            seconds += float(self.edges(nodes[:-1], nodes[1:]).sum())
            seconds += float(self.returns(nodes[-1:], nodes[:1])[0])
        return seconds


def crowded(others: Seconds) -> Seconds:
    """How many times longer a step takes with so many other sessions.

    All sessions on a node share its passes: a pass with n of them takes 1 + (n - 1) / 10 steps.
    """
    return 1 + SESSION_SHARE * np.maximum(others, 0)


def _array(values: Sequence[float]) -> Seconds:
    return np.array(values, dtype=np.float64)


def lot(node: NodeId, salt: int) -> float:
    """A number from 0 to 1 that each gateway draws for each node once for all."""
    mixed = (int(node[:16], 16) ^ salt) * 0x9E3779B97F4A7C15
    return (mixed >> 16 & (1 << 48) - 1) / (1 << 48)
