"""A network on this machine: node processes of one's own, watched and ended with it."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec

from unisono.errors import ConfigurationError, UnisonoError
from unisono.types import PeerAddress

START_SECONDS = 120.0


def process_context() -> Any:
    """How node processes start: forked from a server that has the libraries loaded, so that a
    network of several starts in the time of one; where there is no fork, each by itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unisono.compose.node_process"])
    return context


def start_early() -> None:
    """Let the fork server load its libraries while the caller does something else."""
    context = process_context()
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()


class LocalNode:
    """One node process."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process = process
        self._pipe = pipe
        self.address: PeerAddress | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    async def ready(self) -> PeerAddress:
        """Wait until it serves.

        Raises:
            ConfigurationError: it could not start, and why.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_SECONDS
        while not self._pipe.poll():
            if not self.process.is_alive() or loop.time() > deadline:
                raise ConfigurationError(
                    f"node process {self.process.pid} did not start "
                    f"(exit code {self.process.exitcode}); its messages are above"
                )
            await asyncio.sleep(0.01)
        try:
            kind, text = self._pipe.recv_bytes().decode().split(" ", 1)
        except EOFError:
            kind, text = "failed", "it ended without a word"
        if kind != "ready":
            raise ConfigurationError(f"a node could not start: {text}")
        self.address = PeerAddress.parse(text)
        return self.address

    def kill(self) -> None:
        """End it without warning (SIGKILL)."""
        self.process.kill()

    async def stop(self) -> None:
        """End it in order; by force if it takes more than 3 s."""
        self._pipe.close()
        for _ in range(300):
            if not self.process.is_alive():
                break
            await asyncio.sleep(0.01)
        else:
            logging.getLogger(__name__).warning("node %s is killed", self.process.pid)
            self.process.kill()
        await asyncio.to_thread(self.process.join, 3)


def start_node(
    settings: msgspec.Struct, *, log_level: int = logging.WARNING, conduct: str = ""
) -> LocalNode:
    """Start a node process with `compose.node.NodeSettings`; see `LocalNode.ready`. `conduct`:
    how a dishonest node of a demonstration lies (`compose.crooked`)."""
    context = process_context()
    ours, theirs = context.Pipe()
    process = context.Process(
        target=run_in_process,
        args=(msgspec.json.encode(settings), theirs, log_level, conduct),
        name="unisono-node",
        daemon=True,
    )
    process.start()
    theirs.close()
    return LocalNode(process, ours)


def run_in_process(encoded: bytes, pipe: Connection, log_level: int, conduct: str = "") -> None:
    """What a node process runs: it ends when the other end of the pipe closes."""
    from unisono.compose.node import Node, NodeSettings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    logging.basicConfig(level=log_level, format="%(asctime)s node %(message)s")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        parent_gone = asyncio.Event()
        loop.add_reader(pipe.fileno(), parent_gone.set)
        settings = msgspec.json.decode(encoded, type=NodeSettings)
        if conduct:
            from unisono.compose.crooked import crooked_node

            node = crooked_node(settings, conduct)
        else:
            node = Node(settings)
        try:
            address = await node.start()
            pipe.send_bytes(f"ready {address}".encode())
            running = asyncio.create_task(node.run())
            gone = asyncio.create_task(parent_gone.wait())
            done, _ = await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            running.cancel()
        finally:
            await node.close()

    try:
        asyncio.run(run())
    except UnisonoError as error:
        try:
            pipe.send_bytes(f"failed {error}".encode())
        except OSError:
            logging.getLogger(__name__).error("%s", error)
