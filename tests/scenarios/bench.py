"""A paid network whose nodes are on the bench of its chain's committee: chain and nodes are
processes, the gateway is in this one."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from unisono.compose.chain_settings import ChainSettings, SellerSettings
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.local import LocalNode, start_node
from unisono.compose.local_chain import LocalChain
from unisono.compose.node_settings import NodeSettings
from unisono.compose.wallet import onlooker, settlement_key
from unisono.models.store import StoredModel
from unisono.settlement.awards import owed
from unisono.settlement.bench import BenchPlace, place_of
from unisono.settlement.courthouses import contract_of, read
from unisono.settlement.ledger.deploy import COIN, TERMS
from unisono.settlement.ledger.deployment import load_deployment
from unisono.settlement.signature import SettlementKey
from unisono.settlement.stakes import Registry
from unisono.types import EvmAddress, LayerRange, NodeId
from unisono.verification.receipt import Receipt, from_json
from unisono.wire.identity import Identity
from unisono.wire.verification_messages import MILLION

EPOCH = 2
QUICK = {
    "epoch_seconds": EPOCH,
    "draw_blocks": 2,
    "commit_seconds": 60,
    "reveal_seconds": 30,
    "contest_seconds": 6,
    "move_seconds": 90,
}
UNIT = 1_000_000
PATIENCE = 120.0
"""Seconds, on a machine with other work too."""
STAKE = 2 * TERMS["penalty"]


STUBBORN = "stubborn"
"""The conduct of `stubborn_node`."""


class Program:
    """A node that is a program of these tests."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, settings: NodeSettings) -> Program:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.scenarios.stubborn_node"),
            msgspec.json.encode(settings).decode(),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"ready")
        return cls(process)

    async def stop(self) -> None:
        self._process.kill()
        await self._process.wait()


@dataclass
class Seated:
    """One node of the network."""

    settings: NodeSettings
    identity: Identity
    account: EvmAddress
    conduct: str
    process: LocalNode | Program | None = None

    @property
    def id(self) -> NodeId:
        return self.identity.node_id

    async def start(self) -> None:
        if self.conduct == STUBBORN:
            self.process = await Program.start(self.settings)
            return
        started = await asyncio.to_thread(start_node, self.settings, conduct=self.conduct)
        self.process = started
        await started.ready()

    async def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            await process.stop()


@dataclass
class Assembly:
    """Use `assembly`."""

    folder: Path
    model: StoredModel
    chain: LocalChain
    minter: SettlementKey
    front_settings: FrontSettings
    front: Front
    nodes: list[Seated] = field(default_factory=list[Seated])

    @property
    def settings(self) -> ChainSettings:
        return ChainSettings(self.chain.url, str(self.chain.deployment_file))

    @property
    def opener(self) -> EvmAddress:
        return settlement_key(self.settings, self.front.identity).address

    def prepare(
        self, name: str, conduct: str = "", *, bench: int = TERMS["unit"], price: int = 100
    ) -> Seated:
        """A node that is not started; `bench`: its deposit. Who is cheap gets the work."""
        key = str(self.folder / f"{name}.key")
        identity = Identity.load_or_create(key)
        seller = SellerSettings(price * UNIT, price * UNIT, stake=STAKE, bench=bench)
        chain = ChainSettings(
            self.chain.url, str(self.chain.deployment_file), str(self.folder / "money")
        )
        made = NodeSettings(
            model=self.model.id,
            join=str(self.front.address),
            layers=LayerRange(0, self.model.layer_count),
            transport="tcp",
            key=key,
            cache=str(self.model.path.parent.parent),
            kv_bytes=64 << 20,
            threads=1,
            epoch_seconds=EPOCH,
            chain=chain,
            seller=seller,
        )
        account = settlement_key(self.settings, identity).address
        found = Seated(made, identity, account, conduct)
        self.nodes.append(found)
        return found

    async def start(self, *nodes: Seated) -> None:
        for node in nodes:
            await self.chain.endow(self.minter, node.account)
        await asyncio.gather(*(node.start() for node in nodes))
        await self.until(lambda: len(self.serving()) >= len(nodes))

    def serving(self) -> list[NodeId]:
        return [r.node for r in self.front.members.records() if r.model]

    async def until(self, condition: Any, seconds: float = PATIENCE) -> Any:
        """What `condition` returns, once that is true; it may be asynchronous."""
        async with asyncio.timeout(seconds):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.1)

    async def ask(self, seed: int) -> Receipt:
        """One answer's receipt."""
        assert self.front.server is not None
        body = {"model": self.model.name, "prompt": [7, 8, 9], "seed": seed, "max_tokens": 4}
        body |= {"temperature": 1.0, "ignore_eos": True}
        url = self.front.server.url
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            answer = await http.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            return await self.receipt(answer.headers["x-unisono-receipt"])

    async def receipt(self, name: str) -> Receipt:
        assert self.front.receipts is not None
        stored = await self.until(lambda: self.front.receipts.get(name))  # type: ignore[union-attr]
        return from_json(stored)

    async def asked_of(self, node: Seated) -> Receipt:
        """An answer of this node."""
        for seed in range(60):
            receipt = await self.ask(seed)
            if receipt.hops[0].node == node.id:
                return receipt
        raise AssertionError("the node gets no work")

    async def money(self) -> dict[str, int]:
        """Units of everybody, with what judges owe them and what the opener paid into channels;
        stakes and deposits apart."""
        deployment = load_deployment(self.chain.deployment_file)
        accounts = {"opener": self.opener} | {n.id: n.account for n in self.nodes}
        found: dict[str, int] = {}
        async with onlooker(self.settings, self.front.identity) as (own, ledger, channels):
            coin = contract_of(deployment, COIN)
            for name, account in accounts.items():
                held = await read(ledger, coin, "balanceOf", account)
                found[name] = held + await owed(ledger, deployment, account)
            for payee in await channels.partners(own, pays=True):
                found["opener"] += (await channels.state(own, payee)).deposit
        return found

    async def stake(self, node: Seated) -> tuple[int, int]:
        """Units staked, and of these locked."""
        deployment = load_deployment(self.chain.deployment_file)
        async with onlooker(self.settings, self.front.identity) as (_, ledger, _channels):
            record = await Registry(ledger, deployment).record(node.id, node.account)
            return record.stake, record.locked

    async def place(self, node: Seated) -> BenchPlace | None:
        """On the bench."""
        deployment = load_deployment(self.chain.deployment_file)
        async with onlooker(self.settings, self.front.identity) as (_, ledger, _channels):
            return await place_of(ledger, deployment, node.id, node.account)

    async def restart_front(self, **changes: Any) -> None:
        """The gateway is closed and begins again with its files."""
        address = str(self.front.address).rsplit("@", 1)[1]
        await self.front.close()
        settings = msgspec.structs.replace(self.front_settings, bind=address, **changes)
        self.front = Front(settings)
        await self.front.start()


@asynccontextmanager
async def assembly(
    folder: Path, model: StoredModel, terms: dict[str, int] | None = None, **settings: Any
) -> AsyncIterator[Assembly]:
    """A chain with its contracts, and a gateway that audits everything."""
    chain = LocalChain(folder / "chain")
    made: Assembly | None = None
    front: Front | None = None
    try:
        await chain.start()
        minter = SettlementKey.generate()
        await chain.deploy(minter, {**QUICK, **(terms or {})})
        money = ChainSettings(chain.url, str(chain.deployment_file), str(folder / "money"))
        wanted = FrontSettings(
            **{
                "model": model.id,
                "port": 0,
                "transport": "tcp",
                "key": str(folder / "gateway.key"),
                "cache": str(model.path.parent.parent),
                "chain": money,
                "audit_rate": MILLION,
                "epoch_seconds": EPOCH,
                "receipts": str(folder / "receipts.sqlite"),
                **settings,
            }
        )
        identity = Identity.load_or_create(str(wanted.key))
        await chain.endow(minter, settlement_key(money, identity).address)
        front = Front(wanted)
        await front.bind()
        made = Assembly(folder, model, chain, minter, wanted, front)
        await front.start()
        yield made
    finally:
        if made is not None:
            await asyncio.gather(*(node.stop() for node in made.nodes))
            front = made.front
        if front is not None:
            with contextlib.suppress(Exception):
                await front.close()
        await chain.close()
