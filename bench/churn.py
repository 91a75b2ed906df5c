"""Nodes killed in the middle of answers: what clients notice.

    python -m bench.churn [KILLS] [TRANSPORT]

The default model in three blocks with one standby each: six processes on this machine and a
gateway. At a random moment of every answer the process behind a random hop is killed (SIGKILL), or
those behind two hops, or the gateway's link to the first hop is cut. Every answer must complete
and equal the undisturbed one; the pause is the longest time between two tokens, less the usual.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise

from bench.machine import publish
from unisono.clock import SystemClock
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.local import LocalNode, start_node
from unisono.compose.node_settings import NodeSettings
from unisono.models.tokenizer import Tokenizer
from unisono.types import GenerationRequest, LayerRange, NodeId, Sampling

MODEL = "gemma-3-270m"
BLOCKS = (LayerRange(0, 6), LayerRange(6, 12), LayerRange(12, 18))
STANDBYS = 1
TOKENS = 64
PROMPTS = (
    "The most beautiful thing about the sea is",
    "Once upon a time, in a small village at the edge of the forest, there lived",
    "def total(items):\n    result = 0\n    for item in items:\n",
)
KINDS = ("first", "middle", "last", "two hops", "link to the first")


@dataclass(slots=True)
class Tally:
    """Pauses in seconds by what was killed."""

    pauses: dict[str, list[float]] = field(default_factory=lambda: {})
    unequal: int = 0


class Churn:
    """The network, and who lives in it."""

    def __init__(self, front: Front, address: str, transport: str) -> None:
        self.front = front
        self._address = address
        self._transport = transport
        self._nodes: dict[NodeId, tuple[LocalNode, LayerRange]] = {}

    async def add(self, layers: LayerRange) -> None:
        """One more process."""
        node = start_node(
            NodeSettings(
                MODEL,
                join=self._address,
                layers=layers,
                transport=self._transport,
                kv_bytes=256 << 20,
                threads=1,
            )
        )
        self._nodes[(await node.ready()).node] = (node, layers)

    async def kill(self, victim: NodeId) -> None:
        """End the process of a node without warning, and start another in its place."""
        node, layers = self._nodes.pop(victim)
        node.kill()
        await self.add(layers)

    async def settle(self) -> None:
        """Return once every node is known to the gateway, and nobody else."""
        while {r.node for r in self.front.members.records()} != set(self._nodes):
            await SystemClock().sleep(0.05)

    async def close(self) -> None:
        for node, _ in self._nodes.values():
            await node.stop()


def victims(kind: str) -> tuple[int, ...]:
    """Which hops of three go."""
    if kind == "two hops":
        return tuple(random.sample(range(3), 2))
    return {"first": (0,), "middle": (1,), "last": (2,)}.get(kind, ())


async def disturbed(churn: Churn, request: GenerationRequest, kind: str) -> tuple[list[int], float]:
    """An answer with a kill in its middle: its tokens, and the pause in seconds."""
    swarm = churn.front.swarm
    assert swarm is not None
    moment = random.randrange(1, TOKENS - 1)
    tokens: list[int] = []
    times: list[float] = []
    kills: list[asyncio.Task[None]] = []
    answer = await swarm.open(request)
    try:
        async for token in answer:
            tokens.append(token.token)
            times.append(time.perf_counter())
            if len(tokens) == moment:
                assert answer.chain is not None
                hops = [hop.node for hop in answer.chain.hops]
                for index in victims(kind):
                    kills.append(asyncio.create_task(churn.kill(hops[index])))
                if kind == "link to the first":
                    link = swarm.links.existing(hops[0])
                    assert link is not None
                    await link.close()
        await answer.finish(len(tokens))
    finally:
        await answer.cancel()
        await asyncio.gather(*kills)
    gaps = [b - a for a, b in pairwise(times)]
    return tokens, max(gaps) - statistics.median(gaps)


async def undisturbed(churn: Churn, request: GenerationRequest) -> list[int]:
    """The tokens of an answer that nothing happens to."""
    assert churn.front.swarm is not None
    answer = await churn.front.swarm.open(request)
    tokens = [token.token async for token in answer]
    await answer.cancel()
    return tokens


async def run(kills: int, transport: str) -> Tally:
    """All kills over one transport."""
    front = Front(FrontSettings(MODEL, transport=transport, port=0))
    address = await front.bind()
    await front.start()
    assert front.model is not None
    churn = Churn(front, str(address), transport)
    tally = Tally()
    try:
        await asyncio.gather(*(churn.add(b) for b in BLOCKS * (1 + STANDBYS)))
        tokenizer = Tokenizer.from_files(front.model.tokenizer_files())
        requests = [
            GenerationRequest(
                model=front.model.id,
                prompt=tuple(tokenizer.encode(text)),
                max_tokens=TOKENS,
                sampling=Sampling(temperature=temperature, seed=9),
            )
            for text in PROMPTS
            for temperature in (0, 1 << 16)
        ]
        await churn.settle()
        expected = [await undisturbed(churn, request) for request in requests]
        for i in range(kills):
            kind = KINDS[i % len(KINDS)]
            await churn.settle()
            tokens, pause = await disturbed(churn, requests[i % len(requests)], kind)
            tally.pauses.setdefault(kind, []).append(pause)
            tally.unequal += tokens != expected[i % len(requests)]
    finally:
        await churn.close()
        await front.close()
    return tally


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    transport = sys.argv[2] if len(sys.argv) > 2 else "tcp"
    random.seed(1)
    tally = asyncio.run(run(kills, transport))
    everything = {**tally.pauses, "all": [p for ps in tally.pauses.values() for p in ps]}
    rows: list[dict[str, object]] = [
        {
            "killed": kind,
            "answers": len(pauses),
            "pause p50 s": statistics.median(pauses),
            "pause p95 s": statistics.quantiles(pauses, n=20)[-1] if len(pauses) > 1 else pauses[0],
            "longest s": max(pauses),
        }
        for kind, pauses in everything.items()
    ]
    publish(f"churn-{transport}", rows, unequal=tally.unequal, tokens=TOKENS, transport=transport)
    assert not tally.unequal, f"{tally.unequal} answers differ"


if __name__ == "__main__":
    main()
