"""What the engines bench measures of this project, one repetition at a time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.load import Load, load
from bench.overhead import served
from unisono.execution import engine as engine_module
from unisono.execution.engine import Engine
from unisono.models.catalog import DEFAULT_MODEL
from unisono.models.decoder import GREEDY, make_decoder
from unisono.models.loading import load_block
from unisono.models.native_decoder import NativeDecoder
from unisono.models.store import ModelStore, StoredModel
from unisono.observe import speed
from unisono.types import LayerRange
from unisono.wire.claims import rows_root, token_hash
from unisono.wire.identity import Identity

PROMPT = "The most beautiful thing about the sea is"


def stored() -> StoredModel:
    """The default model, converted if it is not yet."""
    return ModelStore().ensure(DEFAULT_MODEL)


@contextmanager
def decoder(threads: int) -> Generator[NativeDecoder]:
    """The whole model in this process."""
    model = stored()
    block = load_block(model, LayerRange(0, model.layer_count))
    made = make_decoder(model.manifest.config, block, threads=threads)
    del block
    assert isinstance(made, NativeDecoder), "the compiled kernels are not built"
    try:
        speed.prefill(made, 512)  # touches the memory
        yield made
    finally:
        made.close()


def breakdown(made: NativeDecoder, tokens: int = 64) -> dict[str, float]:
    """Milliseconds of one decoded token by part; the rest is Python around the calls."""
    made.take_times()
    rate = speed.decode(made, tokens, context=256)
    # the prompt's passes are in the parts too: measured again without the tokens
    parts = made.take_times()
    speed.decode(made, 1, context=256)
    prompt = made.take_times()
    each = {name: (parts[name] - prompt[name]) / (tokens - 1) * 1e3 for name in parts}
    total = rate.seconds / tokens * 1e3
    return {**each, "Python": total - sum(each.values()), "total": total}


def run_network(nodes: int, threads: int, guesses: bool, tokens: int = 128) -> dict[str, Any]:
    """The JSON of `unisono run` over this many local nodes: real processes and sockets."""
    command = [sys.executable, "-m", "unisono", "run", PROMPT, "--json"]
    options = ["--nodes", str(nodes), "--threads", str(threads), "--max-tokens", str(tokens)]
    options.append("--guesses" if guesses else "--no-guesses")
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def commitments(made: NativeDecoder, streams: int, on: bool, tokens: int = 64) -> float:
    """Tokens per second of an engine, with or without what commitments take: rows are encoded and
    hashed on their way in and out, and at the end of each answer two roots are made and signed."""
    hashed, encoded = engine_module.row_hashes, engine_module.encode_rows
    if not on:
        engine_module.row_hashes = lambda rows: [b""] * len(rows)
        engine_module.encode_rows = lambda rows: (b"", [memoryview(b"")] * len(rows))
    try:
        return asyncio.run(_engine_rate(made, streams, tokens, on))
    finally:
        engine_module.row_hashes, engine_module.encode_rows = hashed, encoded


async def _engine_rate(made: NativeDecoder, streams: int, tokens: int, on: bool) -> float:
    engine = Engine(_Borrowed(made))  # type: ignore[arg-type]
    identity = Identity.generate()

    async def stream(number: int) -> None:
        cache, token = engine.decoder.new_cache(tokens + 1), 5 + number
        came, went = list[bytes](), list[bytes]()
        for position in range(tokens):
            incoming = token_hash(token) if on else b""
            result = await engine.step(cache, position, (token,), (GREEDY,))
            came.append(incoming)
            went.extend(result.hashes)
            token = result.tokens[0].token
        if on:
            identity.sign(f"{rows_root(came)}{rows_root(went)}".encode())
        engine.release(cache)

    started = time.perf_counter()
    await asyncio.gather(*(stream(n) for n in range(streams)))
    seconds = time.perf_counter() - started
    await engine.close()
    return streams * tokens / seconds


class _Borrowed:
    """A decoder that outlives the engines that use it."""

    def __init__(self, made: NativeDecoder) -> None:
        self._made = made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)

    def close(self) -> None:
        """It stays open."""


def http_load(streams: int, tokens: int, threads: int) -> Load:
    """Greedy answers through a gateway and one node, as any client gets them: each in a process
    of its own, as is the client."""
    prompts = [f"The sea is wide, and its island number {n}" for n in range(streams)]
    with served(stored().id, threads) as at:
        url = f"http://{at.host}:{at.port}/v1"
        asyncio.run(load(url, 1, 4, prompts, DEFAULT_MODEL))
        return asyncio.run(load(url, streams, tokens, prompts, DEFAULT_MODEL))


def guessed(prompts: Sequence[str], tokens: int, threads: int) -> list[float]:
    """Tokens per second of answers one after another, of one node as it is by default: it guesses.
    Every prompt is asked once, since a node that has seen an answer guesses all of it."""
    with served(stored().id, threads) as at:
        url = f"http://{at.host}:{at.port}/v1"
        asyncio.run(load(url, 1, 4, [PROMPT[:8]], DEFAULT_MODEL))
        return [
            asyncio.run(load(url, 1, tokens, [prompt], DEFAULT_MODEL)).tokens_per_second
            for prompt in prompts
        ]
