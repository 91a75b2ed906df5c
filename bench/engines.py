r"""This engine beside those that a user would pick instead, on one machine, in one run.

    UNISONO_LLAMA_CPP=FOLDER UNISONO_GGUF=Q4.gguf,Q8.gguf \
        python -m bench.engines [REPEATS [SECTION…]]

Sections are single, guesses, chains, memory and http; a run of some of them is kept apart.

UNISONO_LLAMA_CPP names the folder of a native build of llama.cpp (llama-bench, llama-server,
ggml-rpc-server) and UNISONO_GGUF the same model in the formats to compare with; the better of
them counts. UNISONO_LANGUAGE_PIPES and UNISONO_HF_MODEL (a folder of safetensors) add that peer.
Repetitions of both sides alternate, and medians are reported.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench import ours
from bench.load import load
from bench.machine import publish
from bench.peers import language_pipes, llama_cpp
from bench.wan_prompts import PROSE, REPETITIVE
from unisono.models.loading import load_block
from unisono.observe import speed
from unisono.types import LayerRange

Row = dict[str, object]
Figure = Callable[[], float]


def models() -> list[Path]:
    """The GGUF files to compare with."""
    named = os.environ.get("UNISONO_GGUF", "")
    if not named:
        raise SystemExit("set UNISONO_GGUF to one or more GGUF files, with commas between them")
    return [Path(name) for name in named.split(",")]


def compared(work: str, target: float, repeats: int, mine: Figure, peers: dict[str, Figure]) -> Row:
    """A line: medians of alternating runs, and ours over the best peer's."""
    own: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(repeats):
        own.append(mine())
        for name, run in peers.items():
            theirs[name].append(run())
    best = max(theirs, key=lambda name: statistics.median(theirs[name]))
    a, b = statistics.median(own), statistics.median(theirs[best])
    row = {"work": work, "ours": a, "against": best, "theirs": b, "ratio": a / b, "target": target}
    print(row, flush=True)
    return row


def limited(work: str, value: float, unit: str, limit: float) -> Row:
    """A line without a peer: a figure that should stay below a limit."""
    row = {"work": work, "ours": value, "against": f"limit, {unit}", "theirs": limit}
    print(row, flush=True)
    return row | {"ratio": value / limit, "target": 1.0}


def single_node(repeats: int) -> tuple[list[Row], dict[str, object]]:
    """Decode, prefill, streams and commitments of one decoder in this process."""
    rows: list[Row] = []
    parts: dict[str, object] = {}
    files = models()
    for threads in (1, 2):
        with ours.decoder(threads) as made:
            rows.append(
                compared(
                    f"decode, {threads} threads",
                    1.5,
                    repeats,
                    lambda d=made: speed.decode(d, 128).per_second,
                    {
                        f"llama.cpp {f.stem}": lambda f=f, t=threads: llama_cpp.decode(f, t)
                        for f in files
                    },
                )
            )
            for tokens in (256, 1024):
                rows.append(
                    compared(
                        f"prefill {tokens}, {threads} threads",
                        4.0,
                        repeats,
                        lambda d=made, n=tokens: speed.prefill(d, n).per_second,
                        {
                            f"llama.cpp {f.stem}": lambda f=f, t=threads, n=tokens: (
                                llama_cpp.prefill(f, t, n)
                            )
                            for f in files
                        },
                    )
                )
            rows.append(
                compared(
                    f"32 streams, {threads} threads",
                    6.0,
                    repeats,
                    lambda d=made: speed.decode(d, 32, streams=32).per_second,
                    {"our single stream": lambda d=made: speed.decode(d, 64).per_second},
                )
            )
            parts[f"ms per token, {threads} threads"] = ours.breakdown(made)
            if threads == 2:
                for streams in (1, 16):
                    rows.append(
                        compared(
                            f"commitments on, {streams} streams",
                            0.99,
                            2 * repeats,
                            lambda d=made, n=streams: ours.commitments(d, n, True),
                            {
                                "commitments off": lambda d=made, n=streams: ours.commitments(
                                    d, n, False
                                )
                            },
                        )
                    )
    return rows, parts


def chains(repeats: int) -> list[Row]:
    """Local networks of processes, one thread each: a token per loop, and with guesses."""
    plain: dict[int, list[float]] = {1: [], 2: [], 3: []}
    guessed: list[float] = []
    starts: list[float] = []
    peers: dict[str, list[float]] = {"llama.cpp, 2 RPC servers": []}
    folder = os.environ.get("UNISONO_HF_MODEL")
    if folder:
        peers["language-pipes"] = []
    for _ in range(repeats):
        for nodes, rates in plain.items():
            answer = ours.run_network(nodes, 1, guesses=False)
            rates.append(float(answer["tokens_per_second"]))
            if nodes == 1:
                starts.append(float(answer["first_token_seconds"]))
        guessed.append(float(ours.run_network(2, 1, guesses=True)["tokens_per_second"]))
        peers["llama.cpp, 2 RPC servers"].append(llama_cpp.rpc_decode(models()[0]))
        if folder:
            peers["language-pipes"].append(language_pipes.decode(Path(folder)))
    speeds = {nodes: statistics.median(found) for nodes, found in plain.items()}
    rows: list[Row] = []
    works = {
        "decode in 2 blocks, 1 thread each, no guesses": speeds[2],
        "decode in 2 blocks, 1 thread each": statistics.median(guessed),
    }
    for name, target in zip(peers, (2.5, 3.0), strict=False):
        peer = statistics.median(peers[name])
        for work, mine in works.items():
            row = {"work": work, "ours": mine, "against": name, "theirs": peer}
            rows.append(row | {"ratio": mine / peer, "target": target})
    more = (1000 / speeds[3] - 1000 / speeds[1]) / 2
    rows.append(limited("one hop more in a chain, no guesses", more, "ms per token", 1.5))
    rows.append(limited("command to first token", statistics.median(starts), "s", 3.0))
    return rows


def with_guesses(repeats: int) -> list[Row]:
    """What a client of one node sees by default, of prose and of texts that repeat themselves."""
    rows: list[Row] = []
    for kind, prompts in (("prose", PROSE), ("text that repeats", REPETITIVE)):
        rows.append(
            compared(
                f"one answer over HTTP, guesses, {kind}, 2 threads",
                1.5,
                repeats,
                lambda p=prompts: statistics.median(ours.guessed(list(p.values()), 128, 2)),
                {f"llama.cpp {f.stem}": lambda f=f: llama_cpp.decode(f, 2) for f in models()},
            )
        )
    return rows


def memory() -> list[Row]:
    """Resident memory of a node with a part of the layers, as a process of its own."""
    rows: list[Row] = []
    model = ours.stored()
    for stop in (model.layer_count, model.layer_count // 2):
        layers = LayerRange(0, stop)
        block = load_block(model, layers)
        matrices = [m for w in block.layer.values() for m in _matrices(w)]
        if block.embedding is not None:
            matrices.append(block.embedding)
        weights = sum(m.values.nbytes + m.multipliers.nbytes for m in matrices)
        del block, matrices
        held = int(
            subprocess.run(
                [sys.executable, "-m", "bench.resident", str(layers)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        limit = (weights + 250e6) / 1e6
        rows.append(limited(f"memory of layers {layers}", held / 1e6, "MB", limit))
    return rows


def _matrices(layer: object) -> list[ours.Any]:
    from dataclasses import fields

    from unisono.numerics.tensors import Matrix

    parts = (getattr(layer, f.name) for f in fields(layer))  # type: ignore[arg-type]
    return [p for p in parts if isinstance(p, Matrix)]


def over_http() -> Row:
    """32 answers of 256 tokens at once through each side's server, once: it takes minutes."""
    import asyncio

    mine = ours.http_load(32, 256, 2)
    best, name = 0.0, ""
    for file in models():
        with llama_cpp.Server(file, threads=2, slots=32) as server:
            prompts = [f"The sea is wide, and its island number {n}" for n in range(32)]
            theirs = asyncio.run(
                load(server.base_url, 32, 256, prompts, "gemma", ignore_eos=True, seconds=280)
            )
        if theirs.tokens_per_second > best:
            best, name = theirs.tokens_per_second, file.stem
    row: Row = {
        "work": "32 streams over HTTP, 256 tokens",
        "ours": mine.tokens_per_second,
        "against": f"llama-server {name}",
        "theirs": best,
        "ratio": mine.tokens_per_second / best,
        "target": 1.5,
    }
    print(row, flush=True)
    return row


SECTIONS: dict[str, Callable[[int], list[Row]]] = {
    "guesses": with_guesses,
    "chains": chains,
    "memory": lambda _repeats: memory(),
    "http": lambda _repeats: [over_http()],
}


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    chosen = sys.argv[2:] or ["single", *SECTIONS]
    if unknown := set(chosen) - {"single", *SECTIONS}:
        raise SystemExit(f"no such section: {', '.join(unknown)}; there are single, {[*SECTIONS]}")
    rows, parts = single_node(repeats) if "single" in chosen else ([], {})
    for name, section in SECTIONS.items():
        if name in chosen:
            rows += section(repeats)
    publish("engines" if len(chosen) > len(SECTIONS) else "engines-part", rows, parts=parts)
    for name, part in parts.items():
        print(name, {k: round(v, 3) for k, v in part.items()})  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
