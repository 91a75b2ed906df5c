"""Service levels from heartbeats to credits, between a gateway and its nodes on virtual time."""

from __future__ import annotations

import asyncio

import pytest

from tests.settlement.payments.counter import Counter
from unisono.clock import VirtualClock
from unisono.compose.credit_desk import CreditDesk
from unisono.compose.service_levels import ServiceLevels
from unisono.market.service_log import ServiceLog
from unisono.routing.costs import Costs
from unisono.routing.demand import Demand
from unisono.routing.experience import Experience
from unisono.routing.membership import Membership
from unisono.routing.reputation import Deed
from unisono.settlement.payments.account import Account
from unisono.settlement.payments.books import Books, Place
from unisono.settlement.payments.channels import ChannelState
from unisono.settlement.payments.purse import Purse
from unisono.settlement.payments.till import Till
from unisono.settlement.signature import SettlementKey
from unisono.types import LayerRange, ModelId, NodeId, PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Refused
from unisono.wire.payment_messages import CreditAsked, CreditGiven
from unisono.wire.records import LEASE_SECONDS, NodeRecord
from unisono.wire.transports.base import Stream
from unisono.wire.transports.memory import MemoryNetwork

WINDOW = 600
START = 1_700_000_000 // WINDOW * WINDOW
FIRST = START // WINDOW
MODEL = ModelId("0" * 64)
ASSURED = 2


class PaidNode:
    """A node's heartbeats, till and desk, without a model."""

    def __init__(self, town: Town, tier: int) -> None:
        self.town = town
        self.identity = Identity.generate()
        self.id = self.identity.node_id
        self.key = SettlementKey.generate()
        self.books = Books(None)
        self.till = Till(
            self.key.address,
            town.counter.at(self.key.address),
            self.books,
            town.clock,
            4,
            tier=tier,
            window_seconds=WINDOW,
        )
        self.members = Membership(town.clock, self.id)
        self.log = ServiceLog(None, WINDOW, LEASE_SECONDS, town.clock.now(), of_itself=True)
        self.guilty: float | None = None
        self.desk = CreditDesk(
            self.till, self.log, self.members, town.clock, lambda node: self.guilty
        )
        self.transport = town.network.transport(self.identity)
        self.address: PeerAddress | None = None
        self.up = True
        self.leaving = False
        self.sequence = 0
        self.heard_by_gateway = True
        self.greedy = False
        channel = town.key.address, self.key.address
        town.counter.states[channel] = ChannelState(100_000, 0, 0, 0)
        terms = self.till.terms
        self.place = Place("payee", terms.chain, terms.channels, *channel, 0)

    async def bind(self) -> None:
        self.address = await self.transport.bind()
        self.serving = asyncio.create_task(self.transport.serve(self._serve))

    async def _serve(self, stream: Stream) -> None:
        message, _ = decode_frame(await stream.receive())
        assert isinstance(message, CreditAsked)
        if self.greedy:
            await stream.send(encode_frame(Refused("credit_undue", "never heard of it")))
        else:
            await self.desk.handle(stream, message)

    def record(self) -> NodeRecord:
        assert self.address is not None
        self.sequence += 1
        return NodeRecord(
            node=self.id,
            address=self.address,
            model=MODEL,
            layers=LayerRange(0, 4),
            free_positions=100,
            sessions=0,
            sequence=self.sequence,
            expires=int((self.town.clock.now() + LEASE_SECONDS) * 1000),
            terms=self.till.terms,
            leaving=self.leaving,
        ).signed_by(self.identity)

    def beat(self) -> None:
        record = self.record()
        self.members.keep_own(record)
        self.desk.look()
        if self.heard_by_gateway:
            self.town.members.accept(record)

    async def paid(self, units: int) -> None:
        """As if so much was charged for answers that this node signed, on both sides."""
        self.books.save(self.place, Account(promised=units, charged=units), b"")
        self.till.credits.earned(self.place, self.town.identity.node_id, units)
        known = await self.town.purse.payee(self.key.address)
        known.account.promised = known.account.charged = units
        self.town.purse.save(known)
        self.town.purse.credits.earned(known.place, self.id, units)

    @property
    def charged(self) -> tuple[int, int]:
        """By the node's books, and by the gateway's."""
        (account,) = [a for p, a, _ in self.town.purse.accounts() if p.payee == self.key.address]
        return self.books.load(self.place)[0].charged, account.charged


class Town:
    """A gateway that measures, and its nodes."""

    def __init__(self, *tiers: int) -> None:
        self.clock = VirtualClock(START + 1)
        self.network = MemoryNetwork(self.clock)
        self.counter = Counter()
        self.identity = Identity.generate()
        self.key = SettlementKey.generate()
        self.members = Membership(self.clock, self.identity.node_id)
        self.purse = Purse(
            self.key,
            self.counter.at(self.key.address),
            Books(None),
            self.clock,
            window_seconds=WINDOW,
        )
        self.experience = Experience(self.clock, wallets=self.purse.wallets)
        self.transport = self.network.transport(self.identity)
        self.log = ServiceLog(None, WINDOW, LEASE_SECONDS, self.clock.now())
        self.levels = ServiceLevels(
            self.log,
            self.members,
            self.transport,
            self.clock,
            self.experience.reputation,
            self.purse,
        )
        self.nodes = [PaidNode(self, tier) for tier in tiers]

    async def open(self) -> None:
        await self.transport.bind()
        for node in self.nodes:
            await node.bind()

    async def close(self) -> None:
        for node in self.nodes:
            node.serving.cancel()
            await node.transport.close()
        await self.transport.close()

    async def pass_to(self, second: int, *, down: dict[NodeId, range] | None = None) -> None:
        """Live through seconds of the first window and beyond."""
        begin = int(self.clock.now()) - START
        for now in range(begin, second):
            for node in self.nodes:
                off = node.up is False or now in (down or {}).get(node.id, range(0))
                if not off and now % 5 == 0:
                    node.beat()
            self.levels.look()
            await self.clock.advance(1)

    async def settle(self) -> None:
        """Ask for every credit that is due now."""
        await self.levels.claim(self.purse)

    def costs(self, tier: int) -> Costs:
        return self.experience.costs((), 1, keys=(), demand=Demand(tier=tier))

    def outcome(self, node: PaidNode, window: int = FIRST) -> tuple[str, int]:
        figures = self.log.figures_of(window, node.id)
        return figures.outcome, figures.credit


async def test_a_node_that_is_down_five_percent_gives_the_share_back_by_itself() -> None:
    town = Town(ASSURED, ASSURED, ASSURED)
    await town.open()
    late, *others = town.nodes
    for node in town.nodes:
        await town.pass_to(20)
        await node.paid(10_000)
    # its lease ends at 310, and the next record is signed at 340
    await town.pass_to(WINDOW + 70, down={late.id: range(300, 340)})
    await town.settle()
    assert town.log.figures_of(FIRST, late.id).down == 30_000
    assert town.outcome(late) == ("granted", 4000)
    assert late.charged == (6000, 6000)
    for node in others:
        assert town.outcome(node) == ("", 0)
        assert node.charged == (10_000, 10_000)
    report = town.levels.report()
    assert report.credits == 4000
    assert report.refused == 0
    (level,) = [n for n in report.nodes if n.node == late.id]
    first = level.windows[-1]
    assert (first.uptime, first.share, first.kept, first.over) == (950, 400, False, True)
    assert level.tier == "assured"
    # asked again, nothing more comes
    await town.clock.advance(10_000)
    await town.settle()
    assert late.charged == (6000, 6000)
    await town.close()


async def test_a_node_that_only_this_gateway_does_not_hear_gives_nothing_and_says_why() -> None:
    town = Town(ASSURED, ASSURED, ASSURED)
    await town.open()
    node = town.nodes[0]
    await town.pass_to(20)
    await node.paid(10_000)
    await town.pass_to(300)
    node.heard_by_gateway = False
    await town.pass_to(400)
    node.heard_by_gateway = True
    await town.pass_to(WINDOW + 70)
    assert town.log.figures_of(FIRST, node.id).down > 60_000
    await town.settle()
    assert town.outcome(node) == ("refused", 0)
    assert node.charged == (10_000, 10_000)
    await town.close()


async def test_what_others_say_of_a_node_does_not_make_it_look_down() -> None:
    town = Town(ASSURED, ASSURED)
    await town.open()
    node = town.nodes[0]
    await town.pass_to(20)
    await node.paid(10_000)
    for second in range(20, WINDOW + 70, 10):
        town.members.suspect(node.id)  # as if its peers or this gateway could not reach it
        await town.pass_to(second)
    assert town.log.figures_of(FIRST, node.id).down == 0
    await town.close()


async def test_a_node_that_announced_its_leave_owes_nothing() -> None:
    town = Town(ASSURED, ASSURED)
    await town.open()
    node = town.nodes[0]
    await town.pass_to(20)
    await node.paid(10_000)
    await town.pass_to(300)
    node.leaving = True
    await town.pass_to(301)
    node.up = False
    await town.pass_to(WINDOW + 70)
    await town.settle()
    assert town.log.figures_of(FIRST, node.id).down == 0
    assert town.outcome(node) == ("", 0)
    await town.close()


async def test_a_node_that_refuses_what_is_due_gets_no_session_that_asks_for_a_level() -> None:
    town = Town(ASSURED, ASSURED)
    await town.open()
    greedy, honest = town.nodes
    greedy.greedy = True
    await town.pass_to(20)
    await greedy.paid(10_000)
    await town.pass_to(WINDOW + 70, down={greedy.id: range(300, 400)})
    await town.settle()
    assert town.outcome(greedy) == ("refused", 0)
    assert not town.costs(1).admits(greedy.record())
    assert town.costs(0).admits(greedy.record())
    assert town.costs(1).admits(honest.record())
    assert town.experience.reputation.odds(greedy.id) > town.experience.reputation.odds(honest.id)
    assert town.levels.report().refused == 1
    # a gateway that starts again remembers
    again = Experience(town.clock, wallets=town.purse.wallets)
    ServiceLevels(town.log, town.members, town.transport, town.clock, again.reputation)
    assert again.reputation.withheld == {greedy.id}
    await town.close()


async def test_less_than_is_due_is_taken_and_counts_as_a_refusal() -> None:
    town = Town(ASSURED, ASSURED)
    await town.open()
    node = town.nodes[0]
    await town.pass_to(20)
    await node.paid(10_000)
    town.purse.credits.earned(
        (await town.purse.payee(node.key.address)).place, node.id, 20_000
    )  # the node "forgot" two thirds
    await town.pass_to(WINDOW + 70, down={node.id: range(300, 340)})
    await town.settle()
    assert town.outcome(node) == ("short", 4000)
    assert node.charged == (6000, 6000)
    await town.close()


async def test_a_node_that_is_away_is_asked_again_with_growing_pauses_and_given_up() -> None:
    town = Town(ASSURED, ASSURED)
    await town.open()
    node = town.nodes[0]
    await town.pass_to(20)
    await node.paid(10_000)
    await town.pass_to(WINDOW + 70, down={node.id: range(300, 340)})
    town.network.kill(node.id)
    dials = 0
    dial = town.transport.dial

    async def counted(address: PeerAddress) -> Stream:
        nonlocal dials
        dials += 1
        return await dial(address)

    town.transport.dial = counted  # type: ignore[method-assign]
    for _ in range(100):
        await town.settle()
        await town.pass_to(int(town.clock.now()) - START + 1)
    assert dials == 3
    assert town.outcome(node)[0] == "asked"
    town.network.revive(node.id)
    await town.pass_to(int(town.clock.now()) - START + 120)
    await town.settle()
    assert town.outcome(node) == ("granted", 4000)
    await town.close()


async def test_a_proven_lie_costs_the_whole_window_on_every_tier() -> None:
    town = Town(0, 0)
    await town.open()
    liar = town.nodes[0]
    await town.pass_to(20)
    await liar.paid(10_000)
    await town.pass_to(WINDOW + 70)
    await town.settle()
    assert town.outcome(liar) == ("", 0)
    liar.guilty = START + 60.0
    town.levels.convicted(liar.id, START + 60.0)
    await town.settle()
    assert town.outcome(liar) == ("granted", 10_000)
    assert liar.charged == (0, 0)
    await town.close()


async def test_a_conviction_that_the_node_does_not_know_of_earns_nothing() -> None:
    town = Town(0, 0)
    await town.open()
    node = town.nodes[0]
    await town.pass_to(20)
    await node.paid(10_000)
    await town.pass_to(WINDOW + 70)
    town.levels.convicted(node.id, START + 60.0)
    await town.settle()
    assert town.outcome(node) == ("refused", 0)
    assert node.charged == (10_000, 10_000)
    await town.close()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"seconds": WINDOW + 1}, "credit_window"),
        ({"window": FIRST + 1}, "credit_early"),
        ({"window": FIRST - 3, "down": 10**9}, "credit_undue"),
        ({"tier": 0}, "credit_undue"),
        ({"down": 0}, "credit_undue"),
        ({"convicted": True, "down": 0}, "credit_undue"),
        ({"payer": "0x" + "9" * 40}, "credit_unpaid"),
        ({"payer": "0xABcdEF0123456789abcdef0123456789abCDef01"}, "credit_later"),
    ],
)
async def test_a_claim_that_is_not_due_is_refused_with_its_reason(
    change: dict[str, object], code: str
) -> None:
    town = Town(ASSURED, ASSURED)
    await town.open()
    node = town.nodes[0]
    await town.pass_to(20)
    await node.paid(10_000)
    await town.pass_to(WINDOW + 70, down={node.id: range(300, 340)})
    fields: dict[str, object] = {
        "payer": town.key.address,
        "window": FIRST,
        "seconds": WINDOW,
        "tier": ASSURED,
        "down": 30_000,
        "convicted": False,
    }
    assert node.address is not None
    stream = await town.transport.dial(node.address)
    await stream.send(encode_frame(CreditAsked(**(fields | change))))  # type: ignore[arg-type]
    message, _ = decode_frame(await stream.receive())
    assert isinstance(message, Refused)
    assert message.code == code
    assert node.charged == (10_000, 10_000)
    await town.close()


async def test_a_stranger_gets_nothing_of_what_another_paid() -> None:
    town = Town(ASSURED, ASSURED)
    await town.open()
    node = town.nodes[0]
    await town.pass_to(20)
    await node.paid(10_000)
    await town.pass_to(WINDOW + 70, down={node.id: range(300, 340)})
    stranger = town.network.transport(Identity.generate())
    await stranger.bind()
    assert node.address is not None
    stream = await stranger.dial(node.address)
    asked = CreditAsked(town.key.address, FIRST, WINDOW, ASSURED, 30_000)
    await stream.send(encode_frame(asked))
    message, _ = decode_frame(await stream.receive())
    assert isinstance(message, Refused)
    assert message.code == "credit_unpaid"
    await stranger.close()
    await town.close()


async def test_a_gateway_that_cannot_serve_or_was_off_says_so_of_itself() -> None:
    town = Town(0, 0)
    await town.open()
    await town.pass_to(100)
    town.levels.ready = lambda: False
    await town.pass_to(160)
    town.levels.ready = lambda: True
    await town.pass_to(200)
    for good in (True, True, False):
        town.levels.answered(good)
    await town.clock.advance(60)
    again = ServiceLevels(
        town.log, town.members, town.transport, town.clock, town.experience.reputation
    )  # as if started again
    again.ready = lambda: False
    again.look()  # no moment is counted twice
    own = town.levels.report().gateway[0]
    assert (own.answered, own.failed) == (2, 1)
    assert 795 <= own.availability <= 805
    await town.close()


async def test_sessions_and_audits_are_counted_per_node() -> None:
    town = Town(0, 0)
    await town.open()
    node = town.nodes[0]
    await town.pass_to(20)
    for deed in (Deed.COMPLETED, Deed.COMPLETED, Deed.LOST, Deed.LATE):
        town.experience.reputation.saw(node.record(), deed)
    for verdict in ("VALID", "INCONCLUSIVE"):
        town.levels.audited(node.id, verdict)
    figures = town.log.figures_of(FIRST, node.id)
    assert (figures.completed, figures.broken) == (2, 1)
    assert (figures.valid, figures.inconclusive, figures.invalid) == (1, 1, 0)
    await town.close()


async def test_an_answer_of_another_kind_settles_nothing() -> None:
    town = Town(ASSURED, ASSURED)
    await town.open()
    node = town.nodes[0]
    await town.pass_to(20)
    await node.paid(10_000)
    await town.pass_to(WINDOW + 70, down={node.id: range(300, 340)})

    async def odd(stream: Stream, asked: CreditAsked) -> None:
        await stream.send(encode_frame(CreditGiven(asked.window + 1, 1 << 60)))

    node.desk.handle = odd  # type: ignore[method-assign]
    await town.settle()
    assert town.outcome(node) == ("asked", 0)
    assert node.charged == (10_000, 10_000)

    async def generous(stream: Stream, asked: CreditAsked) -> None:
        await stream.send(encode_frame(CreditGiven(asked.window, 1 << 60)))

    node.desk.handle = generous  # type: ignore[method-assign]
    await town.pass_to(WINDOW + 110)
    await town.settle()
    assert town.outcome(node) == ("granted", 10_000)
    assert node.charged == (10_000, 0)
    await town.close()
