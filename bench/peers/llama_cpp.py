"""llama.cpp on this machine: its own bench, its RPC split in two, and its server.

`UNISONO_LLAMA_CPP` names the folder with `llama-bench`, `llama-server` and
`ggml-rpc-server`, all built from one version with the RPC backend. Every function measures
once, so that the caller can interleave repetitions with those of other engines.

A build can lack the best instructions of its own machine without saying so: where there is
AMX, `llama-bench -v` must name an "AMX model buffer", or the figures are too low.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from bench.peers.process import (
    PeerFailedError,
    existing,
    free_port,
    listening,
    output_of,
    program,
    running,
)

VARIABLE = "UNISONO_LLAMA_CPP"
BENCH_SECONDS = 600.0

ON_CPU = ("--device", "none")


def decode(model: Path, threads: int, tokens: int = 128) -> float:
    """Tokens per second of generating `tokens` tokens after an empty prompt, one stream.

    One repetition, after the short warm-up of llama-bench. Raises PeerMissingError without
    the program or the model and PeerFailedError if the program fails.
    """
    return _bench(model, *ON_CPU, "-t", str(threads), "-p", "0", "-n", str(tokens))


def prefill(model: Path, threads: int, tokens: int) -> float:
    """Tokens per second of reading a prompt of `tokens` tokens, in batches of at most 512.

    One repetition, after one that llama-bench runs to warm up. Raises as `decode` does.
    """
    return _bench(model, *ON_CPU, "-t", str(threads), "-p", str(tokens), "-n", "0")


def rpc_decode(model: Path, tokens: int = 128) -> float:
    """Tokens per second of one stream with the layers split between two RPC servers.

    Each server is a process with one thread on loopback; a third process, which holds the
    token embeddings, drives them. Raises as `decode` does, and PeerFailedError if a server
    does not start.
    """
    server, ports = program(VARIABLE, "ggml-rpc-server"), (free_port(), free_port())
    with ExitStack() as servers:
        for port in ports:
            command = [server, "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
            servers.enter_context(running(command, lambda port=port: listening(port)))
        addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
        split = ("--rpc", addresses, "-dev", "RPC0/RPC1", "-ngl", "99", "-ts", "1/1")
        return _bench(model, *split, "-t", "1", "-p", "0", "-n", str(tokens))


def _bench(model: Path, *options: str) -> float:
    """The tokens per second of the one test and one repetition that `options` describe."""
    command = [program(VARIABLE, "llama-bench"), "-m", existing(model, "a GGUF file")]
    printed = output_of([*command, *options, "-r", "1", "-o", "json"], BENCH_SECONDS)
    try:
        (test,) = json.loads(printed)
        return float(test["avg_ts"])
    except (ValueError, KeyError, TypeError) as error:
        raise PeerFailedError(
            f"llama-bench printed something else than one test with `avg_ts` ({error}); "
            f"use a version whose `-o json` has it. It printed:\n{printed[:500]}"
        ) from error


class Server:
    """llama-server while the block runs: an OpenAI-compatible endpoint on loopback.

    `slots` requests are computed together (continuous batching), each with room for
    `context` tokens of prompt and answer. Prompts are never reused between requests, so a
    repetition computes all that the first one did. Entering raises PeerMissingError without
    the program or the model and PeerFailedError if the server does not get ready.
    """

    def __init__(self, model: Path, threads: int, slots: int = 32, context: int = 512) -> None:
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._health = f"http://127.0.0.1:{port}/health"
        self._model = model
        self._sizes = ("-t", str(threads), "-np", str(slots), "-c", str(slots * context))
        self._address = ("--host", "127.0.0.1", "--port", str(port))
        self._running = ExitStack()

    def __enter__(self) -> Self:
        command = [program(VARIABLE, "llama-server"), "-m", existing(self._model, "a GGUF file")]
        fixed = (*ON_CPU, "--cont-batching", "--no-cache-prompt", "--cache-ram", "0", "--offline")
        options = (*self._sizes, *self._address, *fixed)
        self._running.enter_context(running([*command, *options], self._healthy))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running.close()

    def _healthy(self) -> bool:
        try:
            return httpx.get(self._health, timeout=2).status_code == 200
        except httpx.TransportError:
            return False
