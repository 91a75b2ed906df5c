"""What audits cost a real network: processor seconds of all its processes, with and without.

    nice .venv/bin/python -m bench.audits [--answers 16] [--streams 1 4]

Nodes in processes of their own, each with the whole default model, and a gateway that audits
nothing; then one that audits everything. From the difference follows what one audit costs, and
so what audits at the default rate cost. Time that members spend on gossip is measured before and
taken off.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import time
from pathlib import Path

import httpx

from bench.machine import publish
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.local import LocalNode, start_node
from unisono.compose.node_settings import NodeSettings
from unisono.models.store import ModelStore
from unisono.types import LayerRange
from unisono.verification.policy import DEFAULT_RATE, STRANGER_FACTOR
from unisono.wire.verification_messages import MILLION

NODES = 4
EPOCH = 4
PROMPT = 64
IDLE_SECONDS = 8.0
TRIES = 3
"""On a machine with other work too, links may be given up."""
_TICKS = os.sysconf("SC_CLK_TCK")


class Meter:
    """Processor seconds of the nodes and of this process, gossip left out."""

    def __init__(self, nodes: list[LocalNode]) -> None:
        self._nodes = nodes
        self._idle = 0.0

    async def settle(self) -> None:
        """Measure what the network takes when nobody asks."""
        before = self.now()
        await asyncio.sleep(IDLE_SECONDS)
        self._idle = (self.now() - before) / IDLE_SECONDS

    def now(self) -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        total = used.ru_utime + used.ru_stime
        for node in self._nodes:
            fields = Path(f"/proc/{node.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / _TICKS
        return total

    def since(self, processor: float, began: float) -> float:
        return self.now() - processor - self._idle * (time.monotonic() - began)


async def answers(front: Front, count: int, streams: int, tokens: int, seed: int) -> None:
    """`count` answers of so many tokens, `streams` of them at a time."""
    assert front.model is not None
    assert front.server is not None
    gate = asyncio.Semaphore(streams)
    async with httpx.AsyncClient(base_url=front.server.url, timeout=600) as client:

        async def one(number: int) -> None:
            body = {
                "model": front.model.name if front.model else "",
                "prompt": [(seed + number) % 200 + 5 * i % 997 + 10 for i in range(PROMPT)],
                "max_tokens": tokens,
                "temperature": 1.0,
                "seed": seed + number,
                "ignore_eos": True,
            }
            async with gate:
                for _ in range(TRIES):
                    response = await client.post("/v1/completions", json=body)
                    if response.status_code == 200:
                        return
            response.raise_for_status()

        await asyncio.gather(*(one(i) for i in range(count)))


def audited(front: Front) -> dict[str, int]:
    """Audits held, by verdict."""
    verdicts = ("VALID", "INVALID", "INCONCLUSIVE")
    read = front.metrics.registry.get_sample_value
    name = "unisono_gateway_audits_total"
    return {v: int(read(name, {"verdict": v}) or 0) for v in verdicts}


async def all_audited(front: Front, count: int) -> None:
    """Wait until so many audits were held."""
    for _ in range(6000):
        if sum(audited(front).values()) >= count:
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{audited(front)} audits after ten minutes")


async def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--model", default="gemma-3-270m")
    options = parser.parse_args()
    model = await asyncio.to_thread(ModelStore().ensure, options.model)
    shared = {"model": model.id, "transport": "tcp", "epoch_seconds": EPOCH}
    plain = Front(FrontSettings(**shared, port=0, audit_rate=0))
    nodes: list[LocalNode] = []
    strict: Front | None = None
    rows: list[dict[str, object]] = []
    try:
        door = str(await plain.bind())
        settings = NodeSettings(
            **shared,
            join=door,
            layers=LayerRange(0, model.layer_count),
            threads=1,
            kv_bytes=256 << 20,
        )
        nodes += [start_node(settings) for _ in range(NODES)]
        await asyncio.gather(*(node.ready() for node in nodes))
        await plain.start()
        strict = Front(FrontSettings(**shared, port=0, join=door, audit_rate=MILLION))
        await strict.start()
        await plain.wait_for_coverage(60)
        await strict.wait_for_coverage(60)
        await answers(plain, NODES, NODES, 8, 1)
        meter = Meter(nodes)
        await meter.settle()
        for streams in options.streams:
            processor, began = meter.now(), time.monotonic()
            await answers(plain, options.answers, streams, options.tokens, 1000)
            answer = meter.since(processor, began) / options.answers
            held = sum(audited(strict).values())
            processor, began = meter.now(), time.monotonic()
            await answers(
                strict, options.answers, streams, options.tokens, 1100
            )  # prompts that no node kept
            await all_audited(strict, held + options.answers)
            audit = meter.since(processor, began) / options.answers - answer
            rows.append(
                {
                    "streams": streams,
                    "answer, CPU s": answer,
                    "audit, CPU s": audit,
                    "audit / answer": audit / answer,
                    "share at the default rate, %": 100 * DEFAULT_RATE / MILLION * audit / answer,
                    "share of strangers, %": 100
                    * STRANGER_FACTOR
                    * DEFAULT_RATE
                    / MILLION
                    * audit
                    / answer,
                }
            )
        publish(
            "audits",
            rows,
            nodes=NODES,
            prompt=PROMPT,
            answer=options.tokens,
            answers=options.answers,
            default_rate=DEFAULT_RATE,
            verdicts=audited(strict),
        )
    finally:
        if strict is not None:
            await strict.close()
        await asyncio.gather(*(node.stop() for node in nodes))
        await plain.close()


if __name__ == "__main__":
    asyncio.run(main())
