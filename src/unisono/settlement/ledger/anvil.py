"""anvil, a chain for developers: finds the program and runs it on loopback, for tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from pathlib import Path
from types import TracebackType

from unisono.errors import ConfigurationError, LedgerUnreachable
from unisono.settlement.ledger.loopback import HOST
from unisono.settlement.ledger.rpc import connected

CHAIN_ID = 31337
_START_SECONDS = 20.0
_END_SECONDS = 5.0
_PLATFORMS = ("linux-amd64", "linux-arm64", "darwin-amd64", "darwin-arm64")


def find_anvil() -> Path | None:
    """The program: `$UNISONO_ANVIL`, what `make test-anvil` fetched, or one on the path."""
    if named := os.environ.get("UNISONO_ANVIL"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(cache) if cache else Path.home() / ".cache") / "unisono" / "anvil"
    for platform in _PLATFORMS:
        program = folder / "node_modules" / "@foundry-rs" / f"anvil-{platform}" / "bin" / "anvil"
        if program.is_file():
            return program
    found = shutil.which("anvil")
    return Path(found) if found else None


class Anvil:
    """A chain of its own that ends with `async with`."""

    def __init__(self, *arguments: str, program: Path | None = None) -> None:
        """
        Args:
            arguments: for anvil, such as `--block-time 1`.
            program: None looks for it.

        Raises:
            ConfigurationError: there is none.
        """
        found = program or find_anvil()
        if found is None:
            raise ConfigurationError(
                "anvil is not here: `make test-anvil` fetches it, or set UNISONO_ANVIL to the "
                "program"
            )
        self._program = found
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def __aenter__(self) -> Anvil:
        with socket.create_server((HOST, 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://{HOST}:{port}"
        self._process = await asyncio.create_subprocess_exec(
            str(self._program),
            *("--host", HOST, "--port", str(port), "--chain-id", str(CHAIN_ID)),
            *("--hardfork", "prague", "--silent", *self._arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await (await connected(self.url, wait_seconds=_START_SECONDS)).close()
        except LedgerUnreachable:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the process; idempotent."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
