"""A case from accusation to verdict on chains, each party with its own outbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from eth_hash.auto import keccak

from tests.settlement.jury import TRUE
from tests.settlement.ledger.test_disputes import contract_of, outbox_of
from unisono.clock import SystemClock
from unisono.errors import TransactionRefused
from unisono.settlement.claims import SettlementClaim, court_domain
from unisono.settlement.committees import (
    Accusation,
    Accused,
    CaseState,
    Juror,
    JuryHouse,
    Outcome,
    Phase,
    result_of,
    salt_of,
)
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.deploy import TERMS, Plan, deploy
from unisono.settlement.ledger.deployment import Deployment
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Call
from unisono.settlement.ledger.outbox import Outbox
from unisono.settlement.ledger.rpc import RpcLedger
from unisono.settlement.signature import SettlementKey
from unisono.wire.claims import epoch_at

KEYS = [SettlementKey(bytes(31) + bytes((n,))) for n in range(21, 27)]
OPERATOR, OPENER, *JURORS = KEYS
OTHER = SettlementKey(bytes(31) + b"\x63")
COINS = 10**9
POLL = 0.05
QUICK = {**TERMS, "draw_blocks": 1, "contest_seconds": 3, "commit_seconds": 60}


@dataclass(frozen=True)
class Court:
    """A network with a bench of four, and one claim."""

    ledger: RpcLedger
    deployment: Deployment
    houses: dict[SettlementKey, JuryHouse]
    claim: SettlementClaim

    async def stake(self) -> int:
        registry = contract_of(self.deployment, "registry")
        data = registry.encode("record", self.claim.node, OPERATOR.address)
        return registry.decode("record", await self.ledger.call(Call(registry.address, data)))[0]

    async def make_block(self) -> None:
        """A transaction of no consequence: time passes on a chain only with blocks."""
        coin, house = contract_of(self.deployment, "stablecoin"), self.houses[OPERATOR]
        data = coin.encode("approve", OTHER.address, (await self.ledger.head()).number)
        await house.desk.perform(Intent(coin.address, data), 30)

    def jurors(self, result: bytes) -> list[Juror]:
        async def compute(case: bytes, state: CaseState) -> bytes:
            return result

        return [Juror(self.houses[key], key, compute) for key in JURORS]


async def _send(outbox: Outbox, contract: Contract, function: str, *arguments: object) -> None:
    data = contract.encode(function, *arguments)
    await outbox.perform(Intent(contract.address, data), 30)


@pytest.fixture
async def network(ledger: RpcLedger, tmp_path: Path) -> AsyncGenerator[Court]:
    async with AsyncExitStack() as stack:
        outboxes: list[Outbox] = []
        for key in KEYS:
            await ledger.fund(key.address)
            outboxes.append(await stack.enter_async_context(outbox_of(ledger, key, tmp_path)))
        plan = Plan(OPERATOR.address, await ledger.nonce(OPERATOR.address), terms=QUICK)
        made = await deploy(outboxes[0], ledger, plan)
        coin, registry = contract_of(made, "stablecoin"), contract_of(made, "registry")
        committee = contract_of(made, "committee")
        for key in KEYS:
            await _send(outboxes[0], coin, "mint", key.address, COINS)
        houses = {
            key: JuryHouse(ledger, outbox, committee, SystemClock())
            for key, outbox in zip(KEYS, outboxes, strict=True)
        }

        async def ready(key: SettlementKey, outbox: Outbox, node: bytes) -> None:
            for contract in (registry, committee):
                await _send(outbox, coin, "approve", contract.address, COINS)
            await _send(outbox, registry, "register", node, b"\1" * 32, b"\2" * 32)
            if key is OPERATOR:
                await _send(outbox, registry, "stake", node, 2 * TERMS["penalty"])
            elif key is not OPENER:
                await houses[key].enrol(node, 4)

        nodes = [TRUE.node, *(bytes((n,)) * 32 for n in range(1, len(KEYS)))]
        together = zip(KEYS, outboxes, nodes, strict=True)
        await asyncio.gather(*(ready(*each) for each in together))
        domain = court_domain(made.chain_id, made.address("court"))
        claim = replace(TRUE, epoch=epoch_at(time.time())).signed_by(OPERATOR, domain)
        yield Court(ledger, made, houses, claim)


async def certain(state: CaseState) -> bool:
    """Of an accused that stands by whatever it signed."""
    return True


async def voted(network: Court, case: bytes, result: bytes) -> None:
    """Members act until the vote is over; each step is asked of members made anew."""
    house = network.houses[OPENER]
    first = (await house.state(case)).block
    accusation = Accusation(house, case, network.claim)
    async with asyncio.timeout(60):
        while (state := await house.state(case)).phase < Phase.ACCUSED:
            if not await accusation.act(state):
                moved = await asyncio.gather(*(j.act(first) for j in network.jurors(result)))
                if not any(moved):  # the block whose randomness counts is not there yet
                    await network.make_block()


@pytest.mark.slow
async def test_an_accusation_that_nobody_contests_takes_the_penalty(network: Court) -> None:
    house = network.houses[OPENER]
    case = await house.open(network.claim)
    with pytest.raises(TransactionRefused):
        await network.houses[JURORS[0]].send("contest", case)
    await voted(network, case, b"\x66" * 32)
    before = await network.stake()
    accusation = Accusation(house, case, network.claim)
    async with asyncio.timeout(60):
        outcome = asyncio.create_task(accusation.run(POLL))
        while not outcome.done():
            await network.make_block()  # blocks come, so time passes
            await asyncio.sleep(0.2)
    assert outcome.result() == Outcome.CONVICTED
    assert before - await network.stake() == TERMS["penalty"]


@pytest.mark.slow
async def test_an_accused_who_contests_is_left_alone_if_the_opener_does_not_go_on(
    network: Court,
) -> None:
    house = network.houses[OPENER]
    case = await house.open(network.claim)
    await voted(network, case, b"\x66" * 32)
    accused = Accused(network.houses[OPERATOR], OPERATOR.address, certain)
    first = (await house.state(case)).block
    assert await accused.act(first) == (case,)
    assert await accused.act(first) == ()
    asked: list[bytes] = []

    async def go_to_court() -> None:
        asked.append(case)

    accusation = Accusation(house, case, network.claim, go_to_court)
    async with asyncio.timeout(60):
        outcome = asyncio.create_task(accusation.run(POLL))
        while not outcome.done():
            await network.make_block()
            await asyncio.sleep(0.2)
    assert outcome.result() == Outcome.DROPPED
    assert asked == [case]
    assert await network.stake() == 2 * TERMS["penalty"]


@pytest.mark.slow
async def test_an_accused_ends_a_contested_case_that_its_opener_left(network: Court) -> None:
    house = network.houses[OPENER]
    case = await house.open(network.claim)
    await voted(network, case, b"\x66" * 32)
    own = network.houses[OPERATOR]
    accused = Accused(own, OPERATOR.address, certain, lambda state: network.claim)
    assert await accused.answer(case, await own.state(case))
    async with asyncio.timeout(60):
        while (state := await own.state(case)).phase != Phase.OVER:
            assert not await accused.answer(case, state)
            await network.make_block()
            await asyncio.sleep(0.2)
    (closed,) = await own.named("Closed", 0, case=case)
    assert closed["outcome"] == Outcome.DROPPED


async def test_a_true_claim_passes(network: Court) -> None:
    house = network.houses[OPENER]
    case = await house.open(network.claim)
    await voted(network, case, result_of(network.claim.rows_out, network.claim.sequence))
    outcome = await Accusation(house, case, network.claim).run(POLL)
    assert outcome == Outcome.RIGHT


async def test_a_claim_that_would_be_faulty_has_no_price(network: Court) -> None:
    house, claim, made = network.houses[OPENER], network.claim, network.deployment
    domain = court_domain(made.chain_id, made.address("court"))
    assert await house.price(claim, domain, 3) == TERMS["bond"] + 3 * TERMS["fee"]
    old = TERMS["claim_seconds"] // TERMS["epoch_seconds"] + 2
    for epoch in (claim.epoch - old, claim.epoch + 3, 30 * claim.epoch):
        other = replace(claim, epoch=epoch).signed_by(OPERATOR, domain)
        with pytest.raises(TransactionRefused, match="cannot be accused now"):
            await house.price(other, domain, 3)


async def test_headers_hash_to_what_the_chain_says(ledger: RpcLedger) -> None:
    await ledger.fund(OTHER.address)
    head = await ledger.head()
    for number in range(head.number + 1):
        header = await ledger.header(number)
        block = await ledger.block(number)
        assert header is not None
        assert block is not None
        assert "0x" + keccak(header).hex() == block.hash
    assert await ledger.header(head.number + 9) is None


def test_salts_follow_from_key_and_case() -> None:
    a, b = KEYS[:2]
    assert salt_of(a, b"\1" * 32) == salt_of(SettlementKey(a.secret()), b"\1" * 32)
    assert len({salt_of(k, c) for k in (a, b) for c in (b"\1" * 32, b"\2" * 32)}) == 4
