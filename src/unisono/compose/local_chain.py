"""A chain of one's own for a network on one machine: a process beside it, with the contracts and a
coin that is worth nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from unisono.clock import Clock, SystemClock
from unisono.compose.wallet import PRIVATE_POLL
from unisono.errors import ConfigurationError
from unisono.settlement.artifacts import artifact
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.delivery import OutboxSettings
from unisono.settlement.ledger.deploy import COIN, TERMS, Plan, deploy
from unisono.settlement.ledger.deployment import Deployment, check_deployment, load_deployment
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Call
from unisono.settlement.ledger.outbox import Outbox, stop
from unisono.settlement.ledger.rpc import RpcLedger, connected
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress

log = logging.getLogger(__name__)

START_SECONDS = 30.0
FIRST_DELAY, LONGEST_DELAY = 0.1, 30.0
"""Seconds before a chain that ended is started again: doubled each time, up to the longest."""
STEADY_SECONDS = 10.0
"""A chain that lived this long starts over with the first delay."""
ALLOWANCE = 1_000_000_000
"""Units of the test coin that a local gateway is given when it has less than half of it."""


class LocalChain:
    """Use: `start`, `deploy`, `endow`, `close`. Started again after a crash it goes on with what
    it had confirmed."""

    def __init__(self, folder: Path | None, clock: Clock | None = None) -> None:
        """`folder`: where the chain and its deployment file are kept; None: a temporary one."""
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="unisono-chain-")
        self.folder = folder or Path(self._temporary.name if self._temporary else ".")
        self._clock = clock or SystemClock()
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0
        self._watching: asyncio.Task[None] | None = None
        self.url = ""
        """JSON-RPC address, once started."""

    @property
    def deployment_file(self) -> Path:
        """Where the contracts are."""
        return self.folder / "deployment.json"

    @property
    def pid(self) -> int | None:
        """The chain's process, while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the chain's process, and start it again whenever it ends.

        Raises:
            ConfigurationError: it does not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._launch()
        self._watching = asyncio.create_task(self._watch())

    async def _launch(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "unisono",
            "chain",
            "serve",
            "--port",
            str(self._port),
            "--store",
            str(self.folder / "chain.sqlite"),
            "--attached",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which ends us
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    line = (await self._process.stdout.readline()).decode()
                    if not line:
                        raise ConfigurationError(
                            "the local chain did not start; its messages are above"
                        )
                    name, _, value = line.strip().partition(" ")
                    if name == "chain_rpc":
                        self.url = value.strip()
                        self._port = int(self.url.rsplit(":", 1)[1].strip("/"))
                        return
        except TimeoutError:
            raise ConfigurationError(
                f"the local chain did not start in {START_SECONDS:.0f} s"
            ) from None

    async def _watch(self) -> None:
        """Start the chain again when it ends by itself, ever more rarely if that repeats."""
        delay = FIRST_DELAY
        while True:
            assert self._process is not None
            assert self._process.stdout is not None
            began = self._clock.monotonic()
            while await self._process.stdout.readline():
                pass
            code = await self._process.wait()
            log.warning("the local chain ended (%s): starting it again", code)
            steady = self._clock.monotonic() - began > STEADY_SECONDS
            delay = FIRST_DELAY if steady else min(LONGEST_DELAY, 2 * delay)
            await self._clock.sleep(delay)
            try:
                await self._launch()
            except ConfigurationError as error:
                log.error("%s", error)

    async def deploy(
        self, key: SettlementKey, changes: Mapping[str, int] | None = None
    ) -> Deployment:
        """The network's contracts: those of the file if they are there, else made by `key`.
        `changes`: of the terms in `ledger.deploy.TERMS`.

        Raises:
            SettlementError: they cannot be made.
        """
        async with self._connected() as ledger:
            if self.deployment_file.exists():
                found = load_deployment(self.deployment_file)
                await check_deployment(found, ledger)
                return found
            await ledger.fund(key.address)
            async with _outbox(ledger, key, self._clock) as outbox:
                terms = {**TERMS, **(changes or {})}
                plan = Plan(key.address, await ledger.nonce(key.address), terms=terms)
                made = await deploy(outbox, ledger, plan, clock=self._clock)
        part = self.deployment_file.with_suffix(".part")
        part.write_bytes(made.encode())
        part.replace(self.deployment_file)
        return made

    async def endow(self, minter: SettlementKey, account: EvmAddress) -> None:
        """Give an account test coins, if it has few; `minter` made the contracts.

        Raises:
            SettlementError: the chain refuses.
        """
        coin = Contract(load_deployment(self.deployment_file).address(COIN), artifact(COIN).abi)
        async with self._connected() as ledger:
            data = await ledger.call(Call(coin.address, coin.encode("balanceOf", account)))
            have = coin.decode("balanceOf", data)
            if have >= ALLOWANCE // 2:
                return
            async with _outbox(ledger, minter, self._clock) as outbox:
                mint = coin.encode("mint", account, ALLOWANCE - have)
                key = f"{(await ledger.head()).number}"
                intent = Intent(coin.address, mint, key=key, purpose="test coins")
                await outbox.perform(intent, START_SECONDS)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncGenerator[RpcLedger]:
        ledger = await connected(self.url, wait_seconds=START_SECONDS, clock=self._clock)
        try:
            yield ledger
        finally:
            await ledger.close()

    async def close(self) -> None:
        """End the process; idempotent. What it confirmed is on disk."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._temporary is not None:
            self._temporary.cleanup()


@contextlib.asynccontextmanager
async def _outbox(ledger: RpcLedger, key: SettlementKey, clock: Clock) -> AsyncGenerator[Outbox]:
    settings = OutboxSettings(poll_seconds=PRIVATE_POLL)
    with tempfile.TemporaryDirectory() as locks:
        outbox = await Outbox.open(
            None, ledger, key, settings=settings, clock=clock, locks=Path(locks)
        )
        working = asyncio.create_task(outbox.run())
        try:
            yield outbox
        finally:
            await stop(working)
            await outbox.close()
