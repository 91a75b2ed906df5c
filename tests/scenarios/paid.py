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
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from unisono.cli.money import units
from unisono.compose.chain_settings import ChainSettings, SellerSettings
from unisono.compose.local_chain import LocalChain
from unisono.compose.node_settings import NodeSettings
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
from unisono.settlement.signature import SettlementKey
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
        crooked: int | None = None,
        terms: Mapping[str, int] | None = None,
    ) -> None:
        self.folder, self.model, self.window, self.stake = folder, model, window, stake
        self._crooked, self._terms, self._store = crooked, terms, store
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

    @property
    def minter(self) -> SettlementKey:
        """Whose coins are at will: the gateway's key made the contracts."""
        return settlement_key(ChainSettings("", ""), self.gateway.identity)

    @property
    def place(self) -> list[str]:
        """Where the network settles, as flags."""
        return ["--chain-rpc", self.chain.url, "--deployment", str(self.chain.deployment_file)]

    def account(self, part: Part) -> EvmAddress:
        """Whose money a process has."""
        return settlement_key(ChainSettings("", ""), part.identity).address

    async def start(self) -> None:
        """Start everything, with coins for the gateway."""
        await self.chain.start()
        key = self.minter
        await self.chain.deploy(key, self._terms)
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
        money = self.place
        if part is self.gateway:
            money += ["--deposit", str(DEPOSIT)]
        words = ["unisono", *part.arguments, *join, *money, *more]
        if self._crooked is not None and part is self.nodes[self._crooked]:
            words = ["tests.scenarios.crooked_node", self._settings(self._crooked, others)]
        log = (self.folder / f"{part.name}.log").open("ab")
        part.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self._environment,
            start_new_session=True,
        )
        log.close()

    def _settings(self, number: int, others: list[Part]) -> str:
        """What the command line of node `number` says, for a program that takes settings."""
        part = self.nodes[number]
        settings = NodeSettings(
            model=self.model.id,
            join=",".join(other.address for other in others),
            layers=self.blocks[number],
            transport="tcp",
            bind=f"127.0.0.1:{part.port}",
            key=str(self.folder / f"{part.name}.key"),
            cache=str(self._store.root),
            threads=1,
            chain=ChainSettings(
                self.chain.url,
                str(self.chain.deployment_file),
                str(self.folder / "state" / "money"),
            ),
            seller=SellerSettings(
                units(PRICE_IN), units(PRICE_OUT), window=self.window, stake=units(self.stake)
            ),
        )
        return msgspec.json.encode(settings).decode()

    async def start_verb(self, *words: str | Path) -> asyncio.subprocess.Process:
        """Start a verb of the program, as somebody on this machine does."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "unisono", *map(str, words)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=self._environment,
        )

    async def run_verb(self, *words: str | Path, code: int = 0) -> str:
        """Run a verb to its end; what it printed, or said if it fails."""
        process = await self.start_verb(*words)
        out, said = await process.communicate()
        assert process.returncode == code, (words, process.returncode, out, said)
        assert b"Traceback" not in said
        return (out if code == 0 else out or said).decode()

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
    crooked: int | None = None,
    terms: Mapping[str, int] | None = None,
) -> AsyncIterator[PaidNetwork]:
    """It runs; nothing of it is left afterwards. `stake`: coins that each node stakes; `crooked`:
    number of a node with a wrong weight; `terms`: changes of the contracts' terms."""
    made = PaidNetwork(folder, model, store, nodes, window, stake, crooked, terms)
    try:
        await made.start()
        yield made
    finally:
        await made.close()
