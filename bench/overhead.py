"""What a token costs on its way to a client: processor time of gateway and node.

    python -m bench.overhead [TOKENS [ROUNDS]]

The model is a small random one, so that nearly all of the time is what surrounds computing, and
sampled at temperature 1, so that guesses do not bundle tokens. Gateway and node are processes of
their own; the client only counts bytes, and is not measured. Of the rounds the cheapest counts:
processor time only grows when others use the machine, too.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from bench.machine import publish
from unisono.models.store import ModelStore, StoredModel

STREAMS = (1, 32)
TOKENS = 256
ROUNDS = 5
READY_SECONDS = 180
ROUND_SECONDS = 280


@dataclass(frozen=True, slots=True)
class Served:
    """A network that serves: one gateway process, one node process."""

    host: str
    port: int
    model: str
    gateway: int
    node: int


def small_model() -> StoredModel:
    """A random model of two layers in the store."""
    from tests.models import tiny

    with tempfile.TemporaryDirectory() as folder:
        made = tiny.build("llama", num_hidden_layers=2, max_position_embeddings=1024)
        return ModelStore().ensure(str(tiny.save(made, Path(folder) / "small")))


def _serve(pipe: Connection, model: str, threads: int) -> None:
    from unisono.cli.local_network import LocalSettings, running

    stored = ModelStore().ensure(model)
    settings = LocalSettings(model=stored, nodes=1, threads=threads)
    with running(settings, lambda _line: None) as network:
        pipe.send((network.url, os.getpid(), network.processes()[0][1]))
        pipe.poll(None)


@contextmanager
def served(model: str, threads: int) -> Generator[Served]:
    """A model on one node, behind a gateway: two processes."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, model, threads))
    process.start()
    theirs.close()
    try:
        if not mine.poll(READY_SECONDS):
            raise SystemExit(f"the network was not up in {READY_SECONDS} s")
        url, gateway, node = mine.recv()
        host, port = url.removeprefix("http://").rsplit(":", 1)
        yield Served(host, int(port), model, gateway, node)
    finally:
        mine.close()
        process.join(30)


def cpu(pid: int) -> dict[str, float]:
    """Seconds of processor time of the main thread and of the others that still run."""
    found = {"main": 0.0, "others": 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent = int((task / "schedstat").read_text().split()[0]) / 1e9
        found["main" if task.name == str(pid) else "others"] += spent
    return found


async def answer(at: Served, prompt: str, tokens: int) -> int:
    """One streamed answer; returns its tokens as the gateway counts them."""
    reader, writer = await asyncio.open_connection(at.host, at.port)
    asked = {
        "model": at.model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 1,
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
    said = bytearray()
    while part := await reader.read(1 << 16):
        said += part
    writer.close()
    _, found, count = bytes(said).rpartition(b'"completion_tokens":')
    if not found or b"data: [DONE]" not in said:
        raise SystemExit(f"an answer ended early: {bytes(said[-300:])!r}")
    return int(count.split(b",", 1)[0])


async def answers(at: Served, streams: int, tokens: int) -> int:
    """Tokens of this many answers at once."""
    prompts = [f"The sea is wide, and its island number {n}" for n in range(streams)]
    async with asyncio.timeout(ROUND_SECONDS):
        return sum(await asyncio.gather(*(answer(at, prompt, tokens) for prompt in prompts)))


def measured(at: Served, streams: int, tokens: int) -> dict[str, float]:
    """Microseconds of processor time per token."""
    before = cpu(at.gateway), cpu(at.node)
    begun = time.perf_counter()
    count = asyncio.run(answers(at, streams, tokens))
    seconds = time.perf_counter() - begun
    after = cpu(at.gateway), cpu(at.node)
    gateway, node = (
        {kind: (b[kind] - a[kind]) / count * 1e6 for kind in b}
        for a, b in zip(before, after, strict=True)
    )
    return {
        "gateway": sum(gateway.values()),
        "node, event loop": node["main"],
        "node, engine and transport": node["others"],
        "tokens/s": count / seconds,
    }


def collect(model: str, tokens: int, rounds: int, found: dict[int, list[dict[str, float]]]) -> None:
    """Add the measurements of some rounds to `found`, by streams."""
    with served(model, 1) as at:
        asyncio.run(answers(at, 2, 8))
        for _ in range(rounds):
            for streams, measurements in found.items():
                measurements.append(measured(at, streams, tokens))


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else TOKENS
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
    found: dict[int, list[dict[str, float]]] = {streams: [] for streams in STREAMS}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["UNISONO_CACHE"] = cache
        collect(small_model().id, tokens, rounds, found)
    rows: list[dict[str, object]] = []
    for streams, measurements in found.items():
        best = {k: min(each[k] for each in measurements) for k in measurements[0]}
        best["tokens/s"] = max(each["tokens/s"] for each in measurements)
        rows.append({"streams": streams, **best})
    publish("overhead", rows, unit="microseconds of processor time per token", tokens=tokens)


if __name__ == "__main__":
    main()
