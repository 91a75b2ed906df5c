"""Stakes are those of the registry, whatever records claim."""

from __future__ import annotations

import pytest

from unisono.clock import VirtualClock
from unisono.compose.staked import FRESH_SECONDS, STALE_SECONDS, StakedMembers
from unisono.errors import LedgerUnreachable
from unisono.routing.demand import Demand
from unisono.settlement.signature import SettlementKey
from unisono.settlement.stakes import StakeRecord
from unisono.types import EvmAddress, LayerRange, ModelId, NodeId, PeerAddress
from unisono.wire.identity import Identity
from unisono.wire.records import NodeRecord
from unisono.wire.terms import Terms

PAYEE = SettlementKey.generate().address
OPERATOR = SettlementKey.generate().address


def record(claimed: int, operator: EvmAddress | None = None) -> NodeRecord:
    node = Identity.from_seed(b"\x01" * 32).node_id
    return NodeRecord(
        node=node,
        address=PeerAddress.parse(f"tcp://{node}@127.0.0.1:9"),
        model=ModelId("m"),
        layers=LayerRange(0, 2),
        free_positions=9,
        sessions=0,
        sequence=1,
        expires=1,
        terms=Terms(PAYEE, 1, PAYEE, claimed, operator=operator),
    )


class Known:
    """Members that are what they are given."""

    def __init__(self, *records: NodeRecord) -> None:
        self.given = list(records)
        self.suspected: list[NodeId] = []

    def records(self) -> list[NodeRecord]:
        return self.given

    def known(self) -> list[tuple[NodeRecord, bool]]:
        return [(r, True) for r in self.given]

    def suspect(self, node: NodeId) -> None:
        self.suspected.append(node)


class Registry:
    """A registry that counts how often it is read."""

    def __init__(self, **stakes: int) -> None:
        self.stakes = stakes
        self.reads = 0
        self.away = False
        self.registered = True
        self.locked = 0

    async def record(self, node: NodeId, operator: EvmAddress) -> StakeRecord:
        self.reads += 1
        if self.away:
            raise LedgerUnreachable("the chain does not answer")
        return StakeRecord(self.stakes.get(operator, 0), 0, 0, self.locked, self.registered)


def stake_of(members: StakedMembers) -> int:
    (found,) = members.records()
    assert found.terms is not None
    assert members.known() == [(found, True)]
    return found.terms.stake


async def test_a_claim_counts_only_once_the_registry_was_read() -> None:
    registry, clock = Registry(**{PAYEE: 30}), VirtualClock()
    members = StakedMembers(Known(record(500)), registry, clock)
    demand = Demand(stake=20)
    assert stake_of(members) == 0
    assert not demand.admits(members.records()[0])
    await members.read()
    assert stake_of(members) == 30
    assert demand.admits(members.records()[0])
    assert not Demand(stake=31).admits(members.records()[0])


async def test_a_stake_is_read_once_a_minute_and_kept_while_the_chain_is_away() -> None:
    registry, clock = Registry(**{PAYEE: 30}), VirtualClock()
    members = StakedMembers(Known(record(30)), registry, clock)
    for _ in range(5):
        await members.read()
    assert registry.reads == 1
    await clock.advance(FRESH_SECONDS)
    registry.stakes[PAYEE] = 10  # some of it was slashed
    await members.read()
    assert stake_of(members) == 10
    registry.away = True
    await clock.advance(FRESH_SECONDS)
    with pytest.raises(LedgerUnreachable):
        await members.read()
    assert stake_of(members) == 10
    await clock.advance(STALE_SECONDS)
    assert stake_of(members) == 0


async def test_an_operator_of_its_own_answers_for_a_node_that_pays_somebody_else() -> None:
    registry = Registry(**{OPERATOR: 70, PAYEE: 5})
    members = StakedMembers(Known(record(70, OPERATOR)), registry, VirtualClock())
    await members.read()
    assert stake_of(members) == 70


async def test_what_disputes_have_locked_and_what_nobody_signed_does_not_count() -> None:
    registry = Registry(**{PAYEE: 30})
    registry.locked = 12
    members = StakedMembers(Known(record(30)), registry, VirtualClock())
    await members.read()
    assert stake_of(members) == 18
    registry.registered = False
    members = StakedMembers(Known(record(30)), registry, VirtualClock())
    await members.read()
    assert stake_of(members) == 0


async def test_an_operator_that_is_no_address_has_nothing_at_stake() -> None:
    wrong = EvmAddress(OPERATOR[:-1] + ("0" if OPERATOR[-1] != "0" else "1"))
    registry = Registry(**{wrong: 70})
    members = StakedMembers(Known(record(70, wrong)), registry, VirtualClock())
    await members.read()
    assert (stake_of(members), registry.reads) == (0, 0)


async def test_nodes_that_claim_nothing_are_not_read() -> None:
    registry = Registry(**{PAYEE: 30})
    members = StakedMembers(Known(record(0)), registry, VirtualClock())
    await members.read()
    assert (stake_of(members), registry.reads) == (0, 0)
