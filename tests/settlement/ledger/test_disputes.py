"""Parties that follow a chain's logs, over HTTP, each with its own outbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.settlement.courtroom import program_of
from tests.verification.fraud import dispute
from tests.verification.fraud.dispute import Answer, answer_of, lying_holdings, one_element
from unisono.clock import SystemClock
from unisono.errors import TransactionRefused
from unisono.settlement.advocates import Case, Defence, Prosecution
from unisono.settlement.artifacts import artifact
from unisono.settlement.awards import Awards
from unisono.settlement.claims import court_domain, settlement_claim
from unisono.settlement.disputes import Courthouse, Dispute, Opening
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.delivery import OutboxSettings
from unisono.settlement.ledger.deploy import TERMS, Plan, deploy
from unisono.settlement.ledger.deployment import Deployment
from unisono.settlement.ledger.fees import FeeRule
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.outbox import Outbox, stop
from unisono.settlement.ledger.rpc import RpcLedger
from unisono.settlement.signature import SettlementKey
from unisono.verification.fraud.parties import Challenger, Defender
from unisono.verification.fraud.steps import Cell
from unisono.wire.claims import epoch_at

OPERATOR, CHALLENGER, PAYER = (SettlementKey(bytes(31) + bytes((n,))) for n in (7, 8, 9))
COINS = 10**12
POLL = 0.02
CELL, TENSOR = Cell(1, 6), "query"


@dataclass(frozen=True)
class Party:
    """An account with its outbox."""

    house: Courthouse
    outbox: Outbox

    async def send(self, contract: Contract, function: str, *arguments: object) -> None:
        data = contract.encode(function, *arguments)
        await self.outbox.perform(Intent(contract.address, data), 30)


@dataclass(frozen=True)
class Network:
    ledger: RpcLedger
    deployment: Deployment
    operator: Party
    challenger: Party

    def contract(self, name: str) -> Contract:
        return contract_of(self.deployment, name)

    async def credit(self, account: SettlementKey) -> int:
        """What the registry owes an account."""
        from unisono.settlement.ledger.ledger import Call

        registry = self.contract("registry")
        data = registry.encode("credit", account.address)
        return registry.decode("credit", await self.ledger.call(Call(registry.address, data)))

    async def case(self, answer: Answer) -> Case:
        """A claim of now that the operator, who has a stake, signed."""
        subject = answer.subject(epoch=epoch_at(time.time()))
        program = program_of(subject.manifest)
        size = subject.manifest.config.vocabulary_size
        domain = court_domain(self.deployment.chain_id, self.deployment.address("court"))
        claim = settlement_claim(
            subject.claim, subject.request, subject.tokens, program.root, size, PAYER.address
        ).signed_by(OPERATOR, domain)
        registry = self.contract("registry")
        await self.operator.send(registry, "register", claim.node, b"\1" * 32, b"\2" * 32)
        await self.operator.send(registry, "stake", claim.node, COINS // 10)
        return Case(subject, claim, program)


def contract_of(deployment: Deployment, name: str) -> Contract:
    return Contract(deployment.address(name), artifact(name).abi)


@asynccontextmanager
async def outbox_of(ledger: RpcLedger, key: SettlementKey, folder: Path) -> AsyncGenerator[Outbox]:
    settings = OutboxSettings(poll_seconds=POLL, fees=FeeRule(wait_seconds=5))
    outbox = await Outbox.open(None, ledger, key, settings=settings, locks=folder)
    worker = asyncio.create_task(outbox.run())
    yield outbox
    await stop(worker)
    await outbox.close()


@pytest.fixture(params=[TERMS["move_seconds"]])
async def network(
    ledger: RpcLedger, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncGenerator[Network]:
    """`param`: seconds for a move."""
    terms = {**TERMS, "move_seconds": request.param}
    async with AsyncExitStack() as stack:
        outboxes: list[Outbox] = []
        for key in (OPERATOR, CHALLENGER):
            await ledger.fund(key.address)
            outboxes.append(await stack.enter_async_context(outbox_of(ledger, key, tmp_path)))
        operator = outboxes[0]
        plan = Plan(OPERATOR.address, await ledger.nonce(OPERATOR.address), terms=terms)
        made = await deploy(operator, ledger, plan)
        court, judge = (contract_of(made, name) for name in ("court", "judge"))
        clock = SystemClock()
        parties = [
            Party(Courthouse(ledger, outbox, court, judge, clock), outbox) for outbox in outboxes
        ]
        coin, registry = contract_of(made, "stablecoin"), contract_of(made, "registry")
        for key, party in zip((OPERATOR, CHALLENGER), parties, strict=True):
            await parties[0].send(coin, "mint", key.address, COINS)
            for contract in (registry, court):
                await party.send(coin, "approve", contract.address, COINS)
        yield Network(ledger, made, *parties)


def lied(network: Network, case: Case, answer: Answer, opening: Opening) -> tuple[Dispute, Dispute]:
    liar = lying_holdings(answer, CELL, one_element(TENSOR, 3))
    honest = Challenger(dispute.CHALLENGER, answer.honest, (CELL, TENSOR))
    defence = Dispute(
        network.operator.house,
        case,
        opening,
        lambda state: Defence(case, state, Defender(dispute.HOP, liar)),
    )
    prosecution = Dispute(
        network.challenger.house, case, opening, lambda state: Prosecution(case, state, honest)
    )
    return defence, prosecution


@pytest.mark.slow
async def test_a_dispute_over_a_chain_ends_with_the_cheat_slashed(network: Network) -> None:
    answer = answer_of("llama")
    case = await network.case(answer)
    opening = await network.challenger.house.open(case)
    parties = lied(network, case, answer, opening)
    states = await asyncio.gather(*(x.run(POLL) for x in parties))
    assert states[0] == states[1]
    assert not states[0].challenger_lost
    penalty = TERMS["penalty"]
    assert await network.credit(CHALLENGER) == penalty * TERMS["to_challenger"] // 10_000
    assert await network.credit(PAYER) == penalty * TERMS["to_payer"] // 10_000
    with pytest.raises(TransactionRefused, match="challenged already"):
        await network.challenger.house.open(case, "again")


@pytest.mark.slow
async def test_a_party_that_forgot_everything_finds_its_dispute(network: Network) -> None:
    answer = answer_of("llama")
    case = await network.case(answer)
    opening = await network.challenger.house.open(case)
    for party in (*lied(network, case, answer, opening), *lied(network, case, answer, opening)):
        await party.look()
        await party.act()
    head = await network.ledger.head()
    first = network.deployment.block
    (found,) = await network.operator.house.against(case, first, head.number)
    assert found == opening
    states = await asyncio.gather(*(x.run(POLL) for x in lied(network, case, answer, found)))
    assert not states[0].challenger_lost


@pytest.mark.slow
@pytest.mark.parametrize("network", [5], indirect=True)
async def test_a_challenger_that_is_late_has_lost(network: Network) -> None:
    answer = answer_of("llama")
    case = await network.case(answer)
    opening = await network.challenger.house.open(case)
    defence, _ = lied(network, case, answer, opening)
    state = await defence.run(POLL)
    assert state.challenger_lost
    bond = TERMS["bond"]
    awards = Awards(network.ledger, network.operator.outbox, network.deployment)
    assert (await awards.collect(OPERATOR.address))[0] == bond * TERMS["to_defender"] // 10_000
    assert await awards.collect(OPERATOR.address) == (0, 0)
