"""Disputes on a chain, shown with real processes: a node that lies in one step loses its stake, and
an honest one wins against a false challenge."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from unisono.clock import SystemClock
from unisono.compose.chain_settings import ChainSettings, SellerSettings
from unisono.compose.crooked import WEIGHTS
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.local import LocalNode, start_node
from unisono.compose.local_chain import LocalChain
from unisono.compose.node_settings import NodeSettings
from unisono.compose.prosecution import Outcome, Plaintiff, ask_for_claim
from unisono.compose.wallet import PRIVATE_POLL, Wallet, settlement_key
from unisono.errors import ConfigurationError
from unisono.models.loading import load_block
from unisono.models.store import ModelStore, StoredModel
from unisono.settlement.advocates import Case
from unisono.settlement.courthouses import contract_of, read
from unisono.settlement.ledger.anvil import Anvil
from unisono.settlement.ledger.deploy import COIN, TERMS
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress, LayerRange
from unisono.verification.adversaries.lying import lie_at
from unisono.verification.fraud.descriptors import Descriptors, descriptors
from unisono.verification.fraud.operators import step_types
from unisono.verification.fraud.parties import Challenger, Target, target_of
from unisono.verification.fraud.positions import holdings_of, program_of, subject_of
from unisono.verification.receipt import Receipt, from_json
from unisono.verification.replay import verify
from unisono.wire.identity import Identity

HONEST = ""
MOVE_SECONDS = 60
"""For a move, in place of the hours of a real court: enough for small models."""
PRICE_IN, PRICE_OUT = 20_000_000, 80_000_000
"""Units per million tokens."""
TOKENS = 8
REQUEST: dict[str, Any] = {
    "prompt": list(range(40, 56)),
    "max_tokens": TOKENS,
    "temperature": 1.0,
    "seed": 5,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.001,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.05,
    "frequency_penalty": 0.01,
    "logit_bias": {"65": 0.5},
}
"""One that needs every step of sampling."""
COVERAGE_SECONDS = 120.0

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Shown:
    """One dispute that was shown; amounts in units of the coin."""

    conduct: str
    """`weights`, or the kind of the step that was false; empty: the node is honest."""
    outcome: Outcome
    seconds: float
    """From the challenge until everything was paid."""
    stake_before: int
    stake_after: int
    challenger_gain: int
    payer_gain: int
    node_gain: int
    """Of its balance, beside the stake."""
    penalty: int
    bond: int

    @property
    def judged(self) -> str:
        """The kind of the step that was judged; empty: none was reached."""
        return sorted(step_types())[self.outcome.kind - 1] if self.outcome.kind else ""

    @property
    def is_right(self) -> bool:
        """Whether it ended as it should: the liar paid, or the false challenger did."""
        if self.conduct == HONEST:
            return (
                not self.outcome.challenger_won
                and self.stake_after == self.stake_before
                and self.challenger_gain == -self.bond
                and self.node_gain > 0
            )
        return (
            self.outcome.challenger_won
            and self.stake_before - self.stake_after == self.penalty
            and self.challenger_gain > 0
            and self.payer_gain > 0
            and (self.conduct == WEIGHTS or self.judged == self.conduct)
        )


@dataclass
class Network:
    """A gateway in this process, and one node beside it."""

    front: Front
    operator: EvmAddress
    """The node's account."""
    settings: NodeSettings
    conduct: str
    node: LocalNode | None = None

    async def start_node(self) -> None:
        """Start the node's process.

        Raises:
            ConfigurationError: it does not start.
        """
        self.node = await asyncio.to_thread(start_node, self.settings, conduct=self.conduct)
        await self.node.ready()

    async def stop_node(self, *, kill: bool = False) -> None:
        """End the node's process, in order or at once."""
        node, self.node = self.node, None
        if node is not None:
            if kill:
                node.kill()
            await node.stop()


class Demonstration:
    """A chain with its contracts, and networks of one node on it. Made by `demonstration`."""

    def __init__(
        self, chain: LocalChain, minter: SettlementKey, model: StoredModel, folder: Path
    ) -> None:
        self._chain, self._minter, self.model, self._folder = chain, minter, model, folder
        self._program: Descriptors | None = None
        self._clock = SystemClock()
        self._count = 0

    async def show(self, conduct: str, told: Told = lambda text: None) -> Shown | None:
        """A node of this conduct answers, is paid, and is challenged; None: the model has no step
        of this kind.

        Raises:
            UnisonoError: something does not start or answer.
        """
        async with self.network(conduct, told) as network:
            told("asking")
            receipt = await answered(network.front)
            target = await asyncio.to_thread(self.target, receipt, conduct)
            if target is None and conduct != WEIGHTS:
                return None
            return await self.dispute(network, receipt, target, told)

    @contextlib.asynccontextmanager
    async def network(
        self, conduct: str, told: Told = lambda text: None
    ) -> AsyncGenerator[Network]:
        """A network whose one node is of this conduct, and has a stake.

        Raises:
            UnisonoError: it does not start.
        """
        self._count += 1
        folder = self._folder / f"network-{self._count}"
        folder.mkdir()
        node_key, front_key = str(folder / "node.key"), str(folder / "gateway.key")
        chain = ChainSettings(self._chain.url, str(self._chain.deployment_file))
        operator = settlement_key(chain, Identity.load_or_create(node_key)).address
        payer = settlement_key(chain, Identity.load_or_create(front_key)).address
        told("giving out test coins")
        for account in (operator, payer):
            await self._chain.endow(self._minter, account)
        store = str(self.model.path.parent.parent)
        front = Front(
            FrontSettings(
                model=self.model.id,
                port=0,
                transport="tcp",
                key=front_key,
                cache=store,
                chain=chain,
                audit_rate=0,
            )
        )
        network: Network | None = None
        try:
            settings = NodeSettings(
                model=self.model.id,
                join=str(await front.bind()),
                layers=LayerRange(0, self.model.layer_count),
                transport="tcp",
                key=node_key,
                cache=store,
                kv_bytes=256 << 20,
                chain=ChainSettings(chain.rpc, chain.deployment, str(folder)),
                seller=SellerSettings(PRICE_IN, PRICE_OUT, stake=2 * TERMS["penalty"]),
            )
            told("starting the node")
            network = Network(front, operator, settings, conduct)
            await asyncio.gather(network.start_node(), front.start())
            await front.wait_for_coverage(COVERAGE_SECONDS)
            yield network
        finally:
            if network is not None:
                await network.stop_node()
            await front.close()

    def target(self, receipt: Receipt, conduct: str) -> Target | None:
        """What is contradicted: where a node of this conduct lies, and of an honest one any step.
        None: there is none.

        Raises:
            ConfigurationError: a wrong weight changed nothing.
        """
        hop = program_of(subject_of(receipt, 0, self.model))
        if conduct == HONEST:
            lie = lie_at(hop, "mixed")
            return None if lie is None else (lie.cell, lie.tensor)
        fault = verify(receipt, ModelStore(self.model.path.parent.parent)).fault
        if fault is not None:
            return target_of(fault, hop)
        if conduct == WEIGHTS:
            raise ConfigurationError("a wrong weight changed nothing in this answer")
        # the lie was lost in a rounding: the claim is true, and the node stands by a false number
        lie = lie_at(hop, conduct)
        return None if lie is None else (lie.cell, lie.tensor)

    async def dispute(
        self,
        network: Network,
        receipt: Receipt,
        target: Target | None,
        told: Told = lambda text: None,
    ) -> Shown:
        """Challenge the node of a network about its answer.

        Raises:
            UnisonoError: the node does not sign, or the chain is away.
        """
        front, operator = network.front, network.operator
        if self._program is None:
            told("compiling the model's program")
            self._program = await asyncio.to_thread(descriptors, self.model.manifest)
        program = self._program
        subject = subject_of(receipt, 0, self.model)
        identity = Identity.generate()
        settings = ChainSettings(self._chain.url, str(self._chain.deployment_file))
        await self._chain.endow(self._minter, settlement_key(settings, identity).address)
        wallet = await Wallet.open(settings, identity, self._clock)
        try:
            deployment, payer = wallet.deployment, settlement_key(settings, front.identity).address
            told("asking the node to sign for the chain")
            stream = await front.call(subject.claim.node)
            claim = await ask_for_claim(
                stream, subject, receipt.tokens, program, deployment, payer, operator
            )
            await stream.close()

            def player() -> Challenger:
                weights = load_block(self.model, subject.claim.layers)
                holdings = holdings_of(subject, weights, receipt.tokens, None)
                return Challenger(identity, holdings, target)

            told("computing the answer again")
            challenger = await asyncio.to_thread(player)
            accounts = wallet.key.address, payer, operator
            before = await self._held(wallet, subject.claim.node, operator, *accounts)
            began = time.monotonic()
            plaintiff = Plaintiff(wallet.ledger, wallet.outbox, deployment, self._clock)
            case = Case(subject, claim, program)
            outcome = await plaintiff.challenge(case, challenger, PRIVATE_POLL, told)
            await plaintiff.collect(operator)
            seconds = time.monotonic() - began
            after = await self._held(wallet, subject.claim.node, operator, *accounts)
        finally:
            await wallet.close()
        gains = [b - a for a, b in zip(before, after, strict=True)]
        return Shown(
            network.conduct,
            outcome,
            seconds,
            before[0],
            after[0],
            *gains[1:],
            penalty=TERMS["penalty"],
            bond=TERMS["bond"],
        )

    async def _held(
        self, wallet: Wallet, node: str, operator: EvmAddress, *accounts: EvmAddress
    ) -> list[int]:
        """The node's stake, and the coins of accounts."""
        coin = contract_of(wallet.deployment, COIN)
        registry = contract_of(wallet.deployment, "registry")
        record = await read(wallet.ledger, registry, "record", bytes.fromhex(node), operator)
        stake = record[0][0] if isinstance(record[0], tuple) else record[0]
        balances = [await read(wallet.ledger, coin, "balanceOf", x) for x in accounts]
        return [int(stake), *map(int, balances)]


@contextlib.asynccontextmanager
async def demonstration(
    model: StoredModel,
    ledger: str,
    move_seconds: int = MOVE_SECONDS,
    told: Told = lambda text: None,
) -> AsyncGenerator[Demonstration]:
    """A new chain, `embedded` or `anvil`, with the contracts.

    Raises:
        ConfigurationError: the chain does not start.
        SettlementError: the contracts cannot be made.
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unisono-demo-")))
        chain = LocalChain(folder / "chain")
        stack.push_async_callback(chain.close)
        told("starting the chain")
        if ledger == "anvil":
            chain.folder.mkdir()
            chain.url = (await stack.enter_async_context(Anvil())).url
        else:
            await chain.start()
        minter = SettlementKey.generate()
        told("deploying the contracts")
        await chain.deploy(minter, {"move_seconds": move_seconds})
        yield Demonstration(chain, minter, model, folder)


async def answered(front: Front) -> Receipt:
    """The receipt of an answer.

    Raises:
        ConfigurationError: there is none.
    """
    assert front.server is not None
    url = front.server.url
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as http:
        assert front.model is not None
        body = {"model": front.model.name, **REQUEST}
        answer = await http.post("/v1/completions", json=body)
        if answer.status_code != 200:
            raise ConfigurationError(f"no answer: {answer.text[:300]}")
        name = answer.headers["x-unisono-receipt"]
        for _ in range(100):  # the claims come behind the answer
            found = await http.get(f"/v1/receipts/{name}")
            if found.status_code == 200:
                return from_json(found.content)
            await asyncio.sleep(0.1)
    raise ConfigurationError("the node did not sign its claim in time")
