"""A network of real processes that are paid: a chain, a gateway and nodes, any of which may be
killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from unisono.compose.chain_settings import ChainSettings
from unisono.compose.local_chain import LocalChain
from unisono.compose.wallet import onlooker, settlement_key
from unisono.models.store import ModelStore, StoredModel
from unisono.routing.placement import even_blocks
from unisono.settlement.artifacts import artifact
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.deploy import COIN
from unisono.settlement.ledger.deployment import load_deployment
from unisono.settlement.ledger.ledger import Call
from unisono.settlement.payments.account import Account, Tariff
from unisono.settlement.payments.books import Books, Place
from unisono.types import EvmAddress
from unisono.wire.identity import Identity

PRICE_IN, PRICE_OUT = 1.5, 6.0
"""Coins per million tokens: one and a half units per token read, six per token written."""
DEPOSIT = 0.02
START_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Part:
    """One process, and how it is started."""

    name: str
    identity: Identity
    port: int
    arguments: list[str]
    process: asyncio.subprocess.Process | None = None
    address: str = field(init=False)

    def __post_init__(self) -> None:
        self.address = f"tcp://{self.identity.node_id}@127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Totals:
    """What the chain says in the end; units of the coin."""

    minted: int
    payer: int
    locked: int
    payees: dict[EvmAddress, int]
    redeemed: dict[EvmAddress, list[int]]
    """Of each payee, what single redemptions paid."""

    @property
    def everywhere(self) -> int:
        """All that anybody has."""
        return self.payer + self.locked + sum(self.payees.values())


class PaidNetwork:
    """Use `paid_network`."""

    def __init__(
        self,
        folder: Path,
        model: StoredModel,
        store: ModelStore,
        nodes: int,
        window: int,
        stake: int = 0,
    ) -> None:
        self.folder, self.model, self.window, self.stake = folder, model, window, stake
        self.chain = LocalChain(folder / "chain")
        self.http_port = free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.blocks = even_blocks(model.layer_count, nodes)
        self._environment = os.environ | {
            "UNISONO_STATE": str(folder / "state"),
            "UNISONO_CACHE": str(store.root),
            "UNISONO_TEST_KEY_STRENGTH": "2",
        }
        self.gateway = self._part("gateway", "gateway", "--port", self.http_port, "--no-guesses")
        self.nodes = [
            self._part(
                f"node-{number}",
                "node",
                *("--layers", f"{layers.start}:{layers.stop}", "--threads", 1),
                *("--price-in", PRICE_IN, "--price-out", PRICE_OUT, "--window", window),
                *(("--stake", stake) if stake else ()),
            )
            for number, layers in enumerate(self.blocks)
        ]

    def _part(self, name: str, verb: str, *arguments: object) -> Part:
        key = self.folder / f"{name}.key"
        identity, port = Identity.load_or_create(str(key)), free_port()
        given = [verb, "--model", self.model.id, "--transport", "tcp", "--key", str(key)]
        given += ["--bind", f"127.0.0.1:{port}", *map(str, arguments)]
        return Part(name, identity, port, given)

    def account(self, part: Part) -> EvmAddress:
        """Whose money a process has."""
        return settlement_key(ChainSettings("", ""), part.identity).address

    async def start(self) -> None:
        """Start everything, with coins for the gateway."""
        await self.chain.start()
        key = settlement_key(ChainSettings("", ""), self.gateway.identity)
        await self.chain.deploy(key)
        await self.chain.endow(key, key.address)
        if self.stake:
            for node in self.nodes:
                await self.chain.endow(key, self.account(node))
        await self.launch(self.gateway)
        for node in self.nodes:
            await self.launch(node)
        await self.ready()

    async def launch(self, part: Part, *more: str) -> None:
        """Start a process; the others are how it finds the network."""
        others = [p for p in (self.gateway, *self.nodes) if p is not part and p.process]
        join = [word for other in others for word in ("--join", other.address)]
        money = ["--chain-rpc", self.chain.url, "--deployment", str(self.chain.deployment_file)]
        if part is self.gateway:
            money += ["--deposit", str(DEPOSIT)]
        log = (self.folder / f"{part.name}.log").open("ab")
        part.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "unisono", *part.arguments, *join, *money, *more),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self._environment,
            start_new_session=True,
        )
        log.close()

    async def ready(self) -> None:
        """Wait until the gateway answers and the network covers the model."""
        until = time.monotonic() + START_SECONDS
        async with httpx.AsyncClient(base_url=self.url) as http:
            while time.monotonic() < until:
                for part in (self.gateway, *self.nodes):
                    assert part.process is not None
                    assert part.process.returncode is None, self.log(part)
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.05)
        raise AssertionError(self.log(self.gateway) + self.log(self.nodes[0]))

    def log(self, part: Part) -> str:
        """The end of what a process said."""
        return (self.folder / f"{part.name}.log").read_text()[-3000:]

    async def kill(self, part: Part | None) -> None:
        """SIGKILL a process, or (None) the chain, which is started again by itself."""
        if part is None:
            if self.chain.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.chain.pid, signal.SIGKILL)
            return
        if part.process is not None:
            with contextlib.suppress(ProcessLookupError):
                part.process.kill()
            await part.process.wait()
            part.process = None

    async def stop(self, part: Part) -> None:
        """End a process in order."""
        if part.process is not None:
            with contextlib.suppress(ProcessLookupError):
                part.process.terminate()
            try:
                await asyncio.wait_for(part.process.wait(), 40)
            except TimeoutError:
                await self.kill(part)
                raise AssertionError(f"{part.name} does not end: {self.log(part)}") from None
            part.process = None

    async def stream(self, prompt: list[int], max_tokens: int) -> int:
        """Ask for an answer and count the tokens that came, however it ends."""
        body = {
            **{"model": self.model.name, "prompt": prompt, "max_tokens": max_tokens},
            **{"stream": True, "ignore_eos": True, "logprobs": 0, "temperature": 1.0},
        }
        came = 0
        try:
            async with (
                httpx.AsyncClient(base_url=self.url, timeout=60) as http,
                http.stream("POST", "/v1/completions", json=body) as response,
            ):
                if response.status_code != 200:
                    return 0
                async for line in response.aiter_lines():
                    data = line.removeprefix("data: ")
                    if line.startswith("data: {"):
                        for choice in json.loads(data).get("choices", ()):
                            found = choice.get("logprobs") or {}
                            came += len(found.get("tokens") or ())
        except httpx.HTTPError:
            pass
        return came

    async def payments(self) -> dict[str, Any]:
        """What the gateway says it has paid."""
        async with httpx.AsyncClient(base_url=self.url) as http:
            return (await http.get("/v1/payments")).json()

    def price(self, number: int, prompt: int, tokens: int) -> int:
        """What node `number` asks for so many tokens."""
        asked = round(1e6 * PRICE_IN), round(1e6 * PRICE_OUT)
        layers = self.blocks[number].count
        return Tariff(*asked, layers, self.model.layer_count).amount(prompt, tokens)

    def books(self, part: Part, side: str) -> dict[Place, Account]:
        """The accounts that a process left."""
        chain = load_deployment(self.chain.deployment_file).chain_id
        folder = self.folder / "state" / "money" / f"{chain}-{self.account(part)}"
        books = Books(folder / "accounts.sqlite")
        try:
            places = books.places("payer" if side == "payer" else "payee")
            return {place: books.load(place)[0] for place in places}
        finally:
            books.close()

    async def totals(self) -> Totals:
        """What the chain says."""
        settings = ChainSettings(self.chain.url, str(self.chain.deployment_file))
        deployment = load_deployment(self.chain.deployment_file)
        coin = Contract(deployment.address(COIN), artifact(COIN).abi)
        contract = Contract(deployment.address("channels"), artifact("channels").abi)
        async with onlooker(settings, self.gateway.identity) as (payer, ledger, channels):

            async def read(function: str, *arguments: object) -> int:
                data = await ledger.call(Call(coin.address, coin.encode(function, *arguments)))
                return int(coin.decode(function, data))

            redeemed: dict[EvmAddress, list[int]] = {}
            last = (await ledger.head()).number
            topic = contract.topic("Redeemed")
            for log in await ledger.logs((contract.address,), 0, last, topic):
                _, fields = contract.event(log) or ("", {})
                redeemed.setdefault(fields["payee"], []).append(fields["amount"])
            return Totals(
                minted=await read("totalSupply"),
                payer=await read("balanceOf", payer),
                locked=await read("balanceOf", channels.domain.contract),
                payees={
                    self.account(n): await read("balanceOf", self.account(n)) for n in self.nodes
                },
                redeemed=redeemed,
            )

    async def close(self) -> None:
        """Kill whatever is left."""
        for part in (self.gateway, *self.nodes):
            await self.kill(part)
        await self.chain.close()


@asynccontextmanager
async def paid_network(
    folder: Path,
    model: StoredModel,
    store: ModelStore,
    *,
    nodes: int = 2,
    window: int = 16,
    stake: int = 0,
) -> AsyncIterator[PaidNetwork]:
    """It runs; nothing of it is left afterwards. `stake`: coins that each node stakes."""
    made = PaidNetwork(folder, model, store, nodes, window, stake)
    try:
        await made.start()
        yield made
    finally:
        await made.close()
