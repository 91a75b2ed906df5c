"""One slow node among four: how well the choice of paths avoids it, on real processes.

    python -m bench.slow_node [REQUESTS]

Four processes hold the whole default model; one of them is stopped three quarters of the time
(SIGSTOP and SIGCONT), so that it is four times slower than it says. The same requests go through
the same gateway three times, with the paths that the gateway chooses, in turn, and at random.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import unisono.routing.swarm as swarm_module
from bench.machine import publish
from unisono.clock import SystemClock
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.local import start_node
from unisono.compose.node_settings import NodeSettings
from unisono.models.tokenizer import Tokenizer
from unisono.routing.paths import Path, best_path
from unisono.types import GenerationRequest, LayerRange
from unisono.wire.records import NodeRecord

MODEL = "gemma-3-270m"
NODES = 4
TOKENS = 32
AT_ONCE = 2
PERIOD, RUNNING = 0.04, 0.01
"""Seconds of a cycle of the slow node, and how long of it the node runs."""
PROMPTS = (
    "The most beautiful thing about the sea is",
    "The history of the bicycle begins in",
    "Dear grandmother, I have been in the mountains for a week now, and",
)

Choose = Callable[..., Path]


async def throttle(pid: int) -> None:
    """Let a process run only a part of the time."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(RUNNING)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(PERIOD - RUNNING)
    finally:
        loop.call_soon(os.kill, pid, signal.SIGCONT)


def in_turn() -> Choose:
    """Whole-model nodes one after the other."""
    turns = count()

    def choose(records: Iterable[NodeRecord], *_: Any) -> Path:
        known = sorted((r for r in records if r.layers.count), key=lambda r: r.node)
        return (known[next(turns) % len(known)],)

    return choose


def at_random() -> Choose:
    """Any whole-model node."""
    dice = random.Random(1)

    def choose(records: Iterable[NodeRecord], *_: Any) -> Path:
        return (dice.choice(sorted((r for r in records if r.layers.count), key=lambda r: r.node)),)

    return choose


async def measure(front: Front, requests: list[GenerationRequest], slow: str) -> dict[str, float]:
    """Seconds of answers, tokens per second in all, and the slow node's share."""
    assert front.swarm is not None
    swarm = front.swarm
    waiting = iter(requests)
    seconds: list[float] = []
    served: list[str] = []

    async def client() -> None:
        for request in waiting:
            begun = time.perf_counter()
            answer = await swarm.open(request)
            async for _ in answer:
                pass
            assert answer.chain is not None
            served.append(answer.chain.hops[0].node)
            await answer.finish(request.max_tokens)
            seconds.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    wall = time.perf_counter() - begun
    return {
        "tokens per second": TOKENS * len(seconds) / wall,
        "answer p50 s": statistics.median(seconds),
        "answer p95 s": statistics.quantiles(seconds, n=20)[-1],
        "slow node's share": served.count(slow) / len(served),
    }


async def run(number: int) -> list[dict[str, object]]:
    """The three ways, with the same requests."""
    front = Front(FrontSettings(MODEL, transport="tcp", port=0, draft=False))
    address = await front.bind()
    await front.start()
    assert front.model is not None
    settings = NodeSettings(
        MODEL,
        join=str(address),
        layers=LayerRange(0, front.model.layer_count),
        transport="tcp",
        kv_bytes=256 << 20,
        threads=1,
    )
    nodes = [start_node(settings) for _ in range(NODES)]
    throttling: asyncio.Task[None] | None = None
    rows: list[dict[str, object]] = []
    try:
        addresses = [await node.ready() for node in nodes]
        while len([r for r in front.members.records() if r.layers.count]) < NODES:
            await SystemClock().sleep(0.1)
        tokenizer = Tokenizer.from_files(front.model.tokenizer_files())
        requests = [
            GenerationRequest(
                model=front.model.id,
                prompt=tuple(tokenizer.encode(PROMPTS[i % len(PROMPTS)])),
                max_tokens=TOKENS,
            )
            for i in range(number)
        ]
        throttling = asyncio.create_task(throttle(nodes[0].pid))
        ways: dict[str, Choose] = {
            "chosen by expected time": best_path,
            "in turn": in_turn(),
            "at random": at_random(),
        }
        for way, choose in ways.items():
            swarm_module.best_path = choose  # type: ignore[assignment]
            found = await measure(front, requests, addresses[0].node)
            rows.append({"paths": way, **found})
            print(rows[-1], flush=True)
    finally:
        swarm_module.best_path = best_path
        if throttling is not None:
            throttling.cancel()
            await asyncio.wait({throttling})
            await asyncio.sleep(0)
        for node in nodes:
            await node.stop()
        await front.close()
    return rows


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    rows = asyncio.run(run(number))
    publish("slow-node", rows, nodes=NODES, requests=number, at_once=AT_ONCE, tokens=TOKENS)


if __name__ == "__main__":
    main()
