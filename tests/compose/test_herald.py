"""What members publish about audits, epoch by epoch."""

from __future__ import annotations

from tests.routing.records import KEYS, record
from unisono.clock import VirtualClock
from unisono.compose.herald import Herald
from unisono.routing.membership import Membership
from unisono.types import NodeId
from unisono.verification.stakes.beacon import OPERATOR_EPOCHS
from unisono.verification.stakes.lottery import Roster, Verifier
from unisono.wire.records import LEASE_SECONDS
from unisono.wire.transports.memory import MemoryNetwork

LENGTH = 60


class Town:
    """Members that know some nodes, and hand notices over by themselves."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock(1_700_000_040.0 // LENGTH * LENGTH)
        self.hub = MemoryNetwork(self.clock)

    def herald(self, key: int, nodes: int, **options: object) -> Herald:
        identity = KEYS[key]
        members = Membership(self.clock, identity.node_id)
        self.meet(members, range(nodes))
        return Herald(
            identity,
            self.hub.transport(identity),
            members,
            self.clock,
            epoch_seconds=LENGTH,
            **options,  # type: ignore[arg-type]
        )

    def meet(self, members: Membership, keys: range) -> None:
        now = int(self.clock.now() * 1000)
        lease = now + int(LEASE_SECONDS * 1000)
        for key in keys:
            members.accept(record(key, 0, 5, sign=True, sequence=now, expires=lease))


def tell(source: Herald, target: Herald) -> None:
    for notice in source.board.notices:
        target.board.post(notice)


async def test_a_founder_publishes_a_value_per_epoch_and_others_learn_of_it() -> None:
    town = Town()
    founder = town.herald(10, 0, founder=True)
    other = town.herald(11, 0)
    for _ in range(3):
        founder.publish()
        other.publish()
        tell(founder, other)
        epoch = founder.bulletin.epoch
        value = founder.bulletin.value(epoch)
        assert value is not None
        assert other.bulletin.value(epoch) == value
        await town.clock.advance(LENGTH)
    assert other.bulletin.value(epoch - 1) not in (None, value)
    assert other.bulletin.operators == (KEYS[10].node_id,)


async def test_a_chain_ends_and_the_next_is_known_before() -> None:
    last = (1_700_000_000 // LENGTH // OPERATOR_EPOCHS + 1) * OPERATOR_EPOCHS - 1
    town = Town(VirtualClock(float(last * LENGTH)))
    founder, other = town.herald(10, 0, founder=True), town.herald(11, 0)
    founder.publish()
    tell(founder, other)
    assert founder.bulletin.value(last) is not None
    await town.clock.advance(LENGTH)
    founder.publish()
    tell(founder, other)
    assert other.bulletin.value(last + 1) == founder.bulletin.value(last + 1) is not None
    assert other.bulletin.value(last) == founder.bulletin.value(last) is not None


def test_an_operator_that_is_named_publishes_and_a_founder_that_is_not_does_not() -> None:
    town = Town()
    names = (KEYS[11].node_id,)
    founder = town.herald(10, 0, founder=True, operators=names)
    named = town.herald(11, 0, operators=names)
    for member in (founder, named):
        member.publish()
    assert [n.kind for n in founder.board.notices] == []
    assert [n.kind for n in named.board.notices] == ["anchor", "link"]


async def test_an_auditor_names_the_nodes_that_it_sees_once_an_epoch() -> None:
    town = Town()
    auditor = town.herald(10, 4, founder=True, auditor=True)
    node = town.herald(3, 3)
    auditor.publish()
    assert [n.kind for n in auditor.board.notices] == ["anchor", "link", "binding"]
    await town.clock.advance(0.8 * LENGTH)
    town.meet(auditor._members, range(4))
    town.meet(node._members, range(3))
    for _ in range(2):
        auditor.publish()
    tell(auditor, node)
    epoch, own = auditor.bulletin.epoch, KEYS[10].node_id
    roster = node.bulletin.roster(epoch, own)
    assert roster is not None
    assert {v.node for v in roster.verifiers} == {KEYS[i].node_id for i in range(4)}
    assert node.bulletin.roster(epoch + 1, own) is None


async def test_rosters_of_strangers_and_rosters_without_most_of_us_are_not_believed() -> None:
    town = Town()
    node = town.herald(11, 4)
    here = [KEYS[i].node_id for i in range(4)]
    away = [KEYS[i].node_id for i in range(12, 22)]

    def good(nodes: list[NodeId]) -> bool:
        roster = Roster.of(1, (Verifier(n, 1) for n in nodes))
        return node._plausible([NodeId(v.node) for v in roster.verifiers])

    assert good(here)
    assert good([*here, *away[:4]])
    assert good(here[:2])
    assert good([*here[:3], KEYS[11].node_id])
    assert not good(here[:1])
    assert not good([])
    assert not good([*here, *away[:5]])
    assert not good(away)
